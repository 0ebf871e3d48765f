"""The linear probe, compared with scikit-learn on dense codes."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from vae.data import Mnist5k, Split, to_float
from vae.evaluation.probe import linear_probe
from vae.model import CategoricalVAE
from vae.networks import MLP


@pytest.fixture(autouse=True)
def _float32():
    """Use a float32 model: images are converted to float32."""
    torch.set_default_dtype(torch.float32)


def test_probe_is_logistic_regression_of_scikit_learn_on_the_most_probable_codes():
    networks = MLP(encoder_sizes=[16], decoder_sizes=[16], activation="relu")
    model = CategoricalVAE(networks, latents=2, categories=4)
    for parameter in model.encoder.parameters():  # so that different images have different codes
        torch.nn.init.normal_(parameter)
    data = Mnist5k("none").load(torch.device("cpu"))
    probe = linear_probe(model, data.train, data.test)

    def one_hot_codes(images: Tensor) -> Tensor:
        logits = model.encode(to_float(images)).detach()
        return (logits == logits.amax(-1, keepdim=True)).flatten(1).float()

    classifier = LogisticRegression(max_iter=500)
    classifier.fit(one_hot_codes(data.train.images).numpy(), data.train.labels.numpy())
    probabilities = classifier.predict_proba(one_hot_codes(data.test.images).numpy())
    labels = data.test.labels.numpy()
    accuracy = (probabilities.argmax(1) == labels).mean()
    assert probe.accuracy == pytest.approx(accuracy, abs=0.01)
    assert probe.nll == pytest.approx(log_loss(labels, probabilities), rel=0.01)
    assert 0.1 < probe.accuracy < 1
    assert 0 < probe.nll < math.log(10)


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "is_measured"),
    [
        ([0, 1, 2], [0, 2], True),
        ([3, 3, 3], [3], False),  # one class
        ([0, 1, 1], [0, 2], False),  # a class of the test images is missing
    ],
)
def test_probe_without_enough_classes_in_its_training_images_has_no_numbers(
    train_labels, test_labels, is_measured
):
    networks = MLP(encoder_sizes=[16], decoder_sizes=[16], activation="relu")
    model = CategoricalVAE(networks, latents=2, categories=4)
    train, test = (
        Split(torch.zeros(len(labels), 784, dtype=torch.uint8), torch.tensor(labels))
        for labels in (train_labels, test_labels)
    )
    assert [not math.isnan(number) for number in linear_probe(model, train, test)] == (
        [is_measured] * 2
    )
