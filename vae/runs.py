"""Run folders, measured: each is rebuilt from what it holds, and nothing else."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from . import door
from .checkpoint import Which
from .data import DataSet, to_float, training_batches
from .estimators import Estimator, Exact
from .gradients import GradientQuality, fit, gradient_quality, true_gradients
from .model import CategoricalVAE
from .tracking import METRICS
from .validation import UserError

_GRADIENT_IMAGES = 100
_FIT_EPOCHS, _FIT_BATCH = 2, 100


class MeasuredGradients(NamedTuple):
    """How good a gradient estimators give the encoder of one run."""

    title: str  # of what, on what, against what
    quality: dict[str, GradientQuality]  # by the estimator's name


def measure_gradients(
    run: Path,
    configs: Path,
    which: Which | None = None,
    names: Iterable[str] | None = None,
    draws: int = 1000,
    data_root: str | None = None,
) -> MeasuredGradients:
    """Of the run's own estimator as it was trained, or of those named, at their yaml's settings.

    On the first test images, at the run's last step. What a named estimator has to learn, such as
    a baseline, it learns first, from two epochs of training images at the model as it is. `exact`
    is left out: the others are measured against it. Raises UserError.
    """
    model, data = door.load(run, which), door.load_data(run, data_root)
    step = door.load_step(run, which)
    if names is None:
        estimators = {door.method(run, configs): door.load_estimator(run, which)}
    else:
        estimators = door.default_estimators(configs, run, names)
        for estimator in estimators.values():
            _fit(model, estimator, data)
    x = to_float(data.test.images[:_GRADIENT_IMAGES])
    truth = true_gradients(model, x)
    reference = "the exact one" if len(truth) == 1 else "the mean of many unbiased ones"
    title = (
        f"Gradient of the distortion in the encoder's parameters, relative to {reference}: "
        f"{data.name}, {len(x)} test images, {draws:,} draws"
    )
    bar = tqdm(estimators.items(), leave=False, disable=None, desc=run.name)
    quality = {
        name: gradient_quality(model, estimator, x, truth, step, draws)
        for name, estimator in bar
        if not isinstance(estimator, Exact)
    }
    return MeasuredGradients(title, quality)


def metrics(run: Path) -> pd.DataFrame:
    """metrics.jsonl, a row a line; empty where there is none yet. Raises UserError."""
    try:
        return pd.read_json(run / METRICS, lines=True)
    except FileNotFoundError:
        return pd.DataFrame()
    except ValueError as error:
        raise UserError(f"{run / METRICS} cannot be read: {error}") from error


def _fit(model: CategoricalVAE, estimator: Estimator, data: DataSet) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(_FIT_EPOCHS):
        fit(model, estimator, training_batches(data, _FIT_BATCH, generator))
