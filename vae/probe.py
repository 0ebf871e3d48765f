"""How much of the digit the codes hold: a linear classifier of them."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from .data import Split, to_float
from .model import CategoricalVAE

_IMAGES = 1_000  # encoded at once
_ITERATIONS = 500


class Probe(NamedTuple):
    accuracy: float  # of the most probable class, on the test set
    nll: float  # -log p(label | code), nats per test image


def linear_probe(model: CategoricalVAE, train: Split, test: Split) -> Probe:
    """Softmax regression from the most probable code, one-hot, to the label.

    Fitted to the training codes by maximum likelihood with the penalty |W|^2 / 2, as
    scikit-learn has it by default.
    """
    classifier = LogisticRegression(max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a flat optimum is good enough
        classifier.fit(_features(model, train.images), train.labels.cpu().numpy())
    predicted = classifier.predict_proba(_features(model, test.images))
    labels = test.labels.cpu().numpy()
    accuracy = (classifier.classes_[predicted.argmax(1)] == labels).mean()
    return Probe(float(accuracy), float(log_loss(labels, predicted, labels=classifier.classes_)))


@torch.no_grad()
def _features(model: CategoricalVAE, images: Tensor) -> csr_array:
    """The one-hot codes as a sparse matrix, (n, N * K): uint8 images (n, D)."""
    n, latents, categories = len(images), model.latents, model.categories
    codes = torch.cat([model.encode(to_float(x)).argmax(-1) for x in images.split(_IMAGES)])
    columns = codes + categories * torch.arange(latents, device=codes.device)  # (n, N)
    starts = np.arange(0, n * latents + 1, latents)
    ones = np.ones(n * latents)
    return csr_array(
        (ones, columns.flatten().cpu().numpy(), starts), shape=(n, latents * categories)
    )
