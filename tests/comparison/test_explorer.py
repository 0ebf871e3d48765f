"""Models that the explorer cannot show are named with the reason."""

import base64

import numpy as np
import pytest
import torch
from torch import nn

from vae.comparison.explorer import collect_explorer, embedded_bytes
from vae.model import CategoricalVAE
from vae.networks import Conv, Linear

pytestmark = pytest.mark.usefixtures("float32")

IMAGES = torch.zeros(2, 16, dtype=torch.uint8)


def model_with(decoder: nn.Module) -> CategoricalVAE:
    model = CategoricalVAE(Linear(), 2, 3, image_shape=(4, 4))
    model.decoder = decoder
    return model


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Softplus(), "Softplus"),
        (nn.Linear(6, 16, bias=False), "Linear"),
        (nn.LeakyReLU(0.1), "LeakyReLU"),
        (nn.ConvTranspose2d(6, 1, 4, dilation=2), "ConvTranspose2d"),
        (nn.ConvTranspose2d(6, 1, (4, 3)), "ConvTranspose2d"),
    ],
)
def test_a_layer_that_the_page_cannot_evaluate_is_named(layer, name):
    models = {"good": model_with(nn.Linear(6, 16)), "bad": model_with(nn.Sequential(layer))}
    explorer = collect_explorer(models, IMAGES)
    assert [model["name"] for model in explorer["models"]] == ["good"]
    assert explorer["not_shown"] == {"bad": f"the page cannot evaluate a layer {name}"}


@pytest.mark.parametrize("weight", [1e6, float("nan")])
def test_weights_that_float16_cannot_represent_are_not_embedded(weight):
    decoder = nn.Linear(6, 16)
    nn.init.constant_(decoder.bias, weight)
    explorer = collect_explorer({"bad": model_with(decoder)}, IMAGES)
    assert explorer["models"] == []
    assert explorer["not_shown"] == {"bad": "a weight of its decoder is not finite in float16"}


def test_the_logits_of_the_data_mean_are_added_behind_the_decoder():
    model = CategoricalVAE(Linear(), 2, 3, image_shape=(4, 4), output_bias="data_mean")
    model.set_data_mean(torch.linspace(0, 1, 16))
    plain = CategoricalVAE(Linear(), 2, 3, image_shape=(4, 4))
    described, without = collect_explorer({"mean": model, "plain": plain}, IMAGES)["models"]
    assert described["layers"] == [*without["layers"], {"type": "add", "outputs": 16}]
    weights = np.frombuffer(base64.b64decode(described["weights"]), dtype="<f2")
    assert len(weights) == 6 * 16 + 16 + 16
    assert weights[-16:] == pytest.approx(model.mean_logits.numpy(), abs=4e-3)


def test_a_weight_takes_less_than_three_bytes_in_the_page():
    model = CategoricalVAE(Conv(2, 5, "relu"), 2, 3, image_shape=(8, 8))
    explorer = collect_explorer({"conv": model}, torch.zeros(2, 64, dtype=torch.uint8))
    weights = sum(weight.numel() for weight in model.decoder.parameters())
    assert 2 * weights < embedded_bytes([explorer]) < 3 * weights
