"""Measure how good a gradient estimators give the encoder of a saved run."""

from itertools import chain
from typing import NamedTuple

import torch
from tqdm import tqdm

from vae.config.describe import method_name
from vae.config.load import SavedRun
from vae.data import DataSet, to_float, training_batches
from vae.estimators import Estimator, Exact
from vae.evaluation import GradientQuality, draws_made, fit, gradient_quality, true_gradients
from vae.model import CategoricalVAE
from vae.training.checkpoint import Which

_IMAGES = 100
_FIT_EPOCHS, _FIT_BATCH = 2, 100


class MeasuredGradients(NamedTuple):
    """The quality of gradients at the model of one run.

    Attributes:
        title: What was measured, on which images, and against which reference.
        trained_with: The estimator that the run was trained with.
        quality: The quality of each estimator's gradient, by the name of the estimator.
    """

    title: str
    trained_with: str
    quality: dict[str, GradientQuality]


def measure(
    run: SavedRun,
    estimators: dict[str, Estimator] | None,
    data: DataSet,
    which: Which | None = None,
    draws: int = 1000,
) -> MeasuredGradients:
    """Measure the gradients that estimators give the encoder of a run.

    The gradients are of the first 100 test images, at the step of the model. `Exact` is left out,
    because all others are compared with it.

    Args:
        run: The run.
        estimators: New estimators by name. What they have to learn, such as a baseline, they learn
            first, from two epochs of training images; the model is not changed. None for the
            run's own estimator as it was trained.
        data: The data set of the run.
        which: The best or the last model; by default the best, if there is one.
        draws: Draws of the noise; more are made if the number cannot be divided into equal parts.

    Raises:
        UserError: The model or the estimator cannot be loaded.
    """
    model, step = run.model(which), run.step(which)
    trained_with = method_name(run.values)
    if estimators is None:
        estimators = {trained_with: run.estimator(which)}
    else:
        for estimator in estimators.values():
            _fit(model, estimator, data)
    x = to_float(data.test.images[:_IMAGES])
    truth = true_gradients(model, x)
    reference = "the exact one" if len(truth) == 1 else "the mean of many unbiased ones"
    title = (
        f"Gradient of the distortion in the encoder's parameters, relative to {reference}: "
        f"{data.name}, {len(x)} test images, {draws_made(draws):,} draws"
    )
    progress = tqdm(estimators.items(), leave=False, disable=None, desc=run.folder.name)
    quality = {
        name: gradient_quality(model, estimator, x, truth, step, draws)
        for name, estimator in progress
        if not isinstance(estimator, Exact)
    }
    return MeasuredGradients(title, trained_with, quality)


def _fit(model: CategoricalVAE, estimator: Estimator, data: DataSet) -> None:
    generator = torch.Generator().manual_seed(0)
    epochs = (training_batches(data, _FIT_BATCH, generator) for _ in range(_FIT_EPOCHS))
    fit(model, estimator, chain.from_iterable(epochs))
