"""Linear probe: how well a linear classifier predicts the digit from the code."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from vae.data.source import Split, to_float
from vae.model import CategoricalVAE

_ENCODE_BATCH = 1_000  # images encoded at once
_ITERATIONS = 500


class Probe(NamedTuple):
    """Quality of a linear probe on the test set."""

    accuracy: float  # of the most probable class
    nll: float  # -log p(label | code), nats per image


def linear_probe(model: CategoricalVAE, train: Split, test: Split) -> Probe:
    """Fit a softmax regression from the most probable code, one-hot, to the label.

    The regression maximises the log-likelihood of the training labels less the penalty |W|^2 / 2,
    scikit-learn's default.

    Args:
        model: The model, whose encoder gives the codes.
        train: Images and labels to fit the regression to.
        test: Images and labels to measure the regression on.

    Returns:
        The quality. Both numbers are NaN if the training images are all of one class, or if they
        lack a class of the test images.
    """
    known, tested = train.labels.unique(), test.labels.unique()
    if len(known) < 2 or not torch.isin(tested, known).all():
        return Probe(math.nan, math.nan)
    classifier = LogisticRegression(max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # An unconverged fit is accepted after 500 iterations.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(_features(model, train.images), train.labels.cpu().numpy())
    predicted = classifier.predict_proba(_features(model, test.images))
    labels = test.labels.cpu().numpy()
    accuracy = (classifier.classes_[predicted.argmax(1)] == labels).mean()
    return Probe(float(accuracy), float(log_loss(labels, predicted, labels=classifier.classes_)))


@torch.no_grad()
def _features(model: CategoricalVAE, images: Tensor) -> csr_array:
    """Return the most probable codes as a sparse one-hot matrix: uint8 (n, D) -> (n, N * K)."""
    n, latents, categories = len(images), model.latents, model.categories
    codes = torch.cat([model.encode(to_float(x)).argmax(-1) for x in images.split(_ENCODE_BATCH)])
    columns = codes + categories * torch.arange(latents, device=codes.device)  # (n, N)
    row_starts = np.arange(0, n * latents + 1, latents)
    ones = np.ones(n * latents)
    return csr_array(
        (ones, columns.flatten().cpu().numpy(), row_starts), shape=(n, latents * categories)
    )
