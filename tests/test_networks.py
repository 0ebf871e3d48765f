"""Encoders and decoders: shapes, rows that do not affect each other, activations, checks."""

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close

from vae.networks import MLP, Conv, Linear, mlp

SHAPE = (8, 12)  # not square, so that exchanging height and width would be noticed
PIXELS, CODE = 96, 15

ACTIVATIONS = {
    "relu": torch.relu,
    "leaky_relu": lambda x: nn.functional.leaky_relu(x, 0.2),
    "leaky_relu_0.3": lambda x: nn.functional.leaky_relu(x, 0.3),
    "tanh": torch.tanh,
    "elu": nn.functional.elu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}
FAMILIES = {
    "mlp": MLP(encoder_sizes=[20, 10], decoder_sizes=[30], activation="relu"),
    "mlp without hidden layers": MLP(encoder_sizes=[], decoder_sizes=[], activation="relu"),
    "linear": Linear(),
    "conv": Conv(channels=3, hidden=16, activation="relu"),
}

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def weight_shapes(module: nn.Module) -> list[tuple[int, ...]]:
    """Return the shapes of all weight_shapes, without biases."""
    return [tuple(p.shape) for p in module.parameters() if p.dim() > 1]


@every_family
@pytest.mark.parametrize("rows", [1, 7])
def test_encoder_maps_images_to_codes_and_decoder_codes_to_images(family, rows):
    assert family.encoder(SHAPE, CODE)(torch.rand(rows, PIXELS)).shape == (rows, CODE)
    assert family.decoder(SHAPE, CODE)(torch.rand(rows, CODE)).shape == (rows, PIXELS)


@every_family
@pytest.mark.parametrize("part, size", [("encoder", PIXELS), ("decoder", CODE)])
def test_each_row_of_the_output_depends_on_the_same_row_of_the_input_alone(family, part, size):
    network = getattr(family, part)(SHAPE, CODE)  # in training mode
    x = torch.rand(6, size)
    changed = x.clone()
    changed[2] += torch.randn(size)
    before, after = network(x), network(changed)
    others = [0, 1, 3, 4, 5]
    assert_close(after[others], before[others], rtol=0, atol=1e-12)
    assert not torch.allclose(after[2], before[2])


@every_family
@pytest.mark.parametrize("part, size", [("encoder", PIXELS), ("decoder", CODE)])
def test_output_is_the_same_at_every_call_and_in_evaluation_mode(family, part, size):
    network, x = getattr(family, part)(SHAPE, CODE), torch.rand(6, size)
    first = network(x)
    assert torch.equal(network(x), first)
    assert torch.equal(network.eval()(x), first)


@every_family
@pytest.mark.parametrize("part, size", [("encoder", PIXELS), ("decoder", CODE)])
def test_every_parameter_has_a_gradient(family, part, size):
    network = getattr(family, part)(SHAPE, CODE)
    network(torch.rand(50, size)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


@every_family
def test_every_network_that_is_built_has_weights_of_its_own(family):
    first, second = family.decoder(SHAPE, CODE), family.decoder(SHAPE, CODE)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_mlp_has_the_given_hidden_sizes():
    family = MLP(encoder_sizes=[20, 10], decoder_sizes=[30], activation="relu")
    assert weight_shapes(family.encoder(SHAPE, CODE)) == [(20, PIXELS), (10, 20), (CODE, 10)]
    assert weight_shapes(family.decoder(SHAPE, CODE)) == [(30, CODE), (PIXELS, 30)]


def test_linear_is_one_linear_map():
    assert weight_shapes(Linear().encoder(SHAPE, CODE)) == [(CODE, PIXELS)]
    assert weight_shapes(Linear().decoder(SHAPE, CODE)) == [(PIXELS, CODE)]
    assert isinstance(Linear().encoder(SHAPE, CODE), nn.Linear)


@every_activation
def test_mlp_is_linear_maps_with_the_activation_between_them(activation):
    network, x = mlp([5, 4, 3, 2], activation), torch.randn(7, 5)
    y, layers = x, [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer, following in pairwise([*layers, None]):
        y = y @ layer.weight.T + layer.bias
        if following is not None:
            y = ACTIVATIONS[activation](y)
    assert_close(network(x), y, rtol=0, atol=1e-12)


@every_activation
def test_conv_uses_its_activation_three_times(activation):
    family = Conv(channels=2, hidden=4, activation=activation)
    activation_type = type(mlp([1, 1, 1], activation)[1])
    for network in (family.encoder(SHAPE, CODE), family.decoder(SHAPE, CODE)):
        assert sum(isinstance(layer, activation_type) for layer in network) == 3


def test_conv_takes_the_pixels_of_an_image_row_by_row():
    """A pixel changes the 2 x 2 outputs whose 4 x 4 windows, of stride 2, contain the pixel."""
    first = Conv(channels=1, hidden=4, activation="relu").encoder(SHAPE, CODE)[:2]
    image = torch.zeros(1, *SHAPE)
    blank = first(image.reshape(1, -1))
    image[0, 3, 8] = 1.0
    changed = (first(image.reshape(1, -1)) != blank)[0, 0].nonzero()
    assert changed.tolist() == [[1, 3], [1, 4], [2, 3], [2, 4]]


@pytest.mark.parametrize("shape", [(28, 30), (26, 28), (5, 4)])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_conv_refuses_sides_that_are_not_multiples_of_four(shape, part):
    with pytest.raises(ValueError, match="multiples of 4"):
        getattr(Conv(channels=2, hidden=4, activation="relu"), part)(shape, CODE)


VALID = {
    MLP: {"encoder_sizes": [4], "decoder_sizes": [4], "activation": "relu"},
    Conv: {"channels": 2, "hidden": 4, "activation": "relu"},
    Linear: {},
}


@pytest.mark.parametrize(
    "family, name, wrong",
    [
        *((MLP, "encoder_sizes", wrong) for wrong in ([0], [4, -1], [2.5], ["4"], 4, None)),
        *((MLP, "decoder_sizes", wrong) for wrong in ([0], [True], "4")),
        *((MLP, "activation", wrong) for wrong in ("RELU", "sigmoid", None)),
        *((Conv, "channels", wrong) for wrong in (0, -1, 1.5, "2", True)),
        *((Conv, "hidden", wrong) for wrong in (0, [4])),
        (Conv, "activation", "swish"),
        (MLP, "dropout", 0.1),
        (Conv, "dropout", 0.1),
        (Linear, "dropout", 0.1),
    ],
)
def test_invalid_setting_is_refused(family, name, wrong):
    with pytest.raises(ValidationError):
        family(**VALID[family] | {name: wrong})
