"""How good a gradient estimators give the encoder of a run."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from tqdm import tqdm

from . import configuration, run_folder
from .checkpoint import Which
from .data import DataSet, to_float, training_batches
from .errors import one_line
from .estimators import Estimator, Exact
from .gradients import GradientQuality, draws_made, fit, gradient_quality, true_gradients
from .instantiate import build
from .model import CategoricalVAE
from .runs import Library
from .validation import UserError

_IMAGES = 100
_FIT_EPOCHS, _FIT_BATCH = 2, 100


class MeasuredGradients(NamedTuple):
    """How good a gradient estimators give the encoder of one run."""

    title: str  # of what, on what, against what
    own: str  # the estimator that the run was trained with
    quality: dict[str, GradientQuality]  # by the estimator's name


def measure(
    folder: Path,
    configs: Path,
    library: Library,
    which: Which | None = None,
    names: Iterable[str] | None = None,
    draws: int = 1000,
) -> MeasuredGradients:
    """Of the run's own estimator as it was trained, or of those named; see `named_estimators`.

    On the first test images, at the step of the model. What a named estimator has to learn, such
    as a baseline, it learns first, from two epochs of training images at the model as it is.
    `exact` is left out: the others are measured against it. Raises UserError.
    """
    config = run_folder.read_config(folder)
    data, _ = library.get(config)
    model, step = run_folder.load(folder, which), run_folder.load_step(folder, which)
    own = configuration.method(config, configs)
    if names is None:
        estimators = {own: run_folder.load_estimator(folder, which)}
    else:
        estimators = named_estimators(configs, config, names)
        for estimator in estimators.values():
            _fit(model, estimator, data)
    x = to_float(data.test.images[:_IMAGES])
    truth = true_gradients(model, x)
    reference = "the exact one" if len(truth) == 1 else "the mean of many unbiased ones"
    title = (
        f"Gradient of the distortion in the encoder's parameters, relative to {reference}: "
        f"{data.name}, {len(x)} test images, {draws_made(draws):,} draws"
    )
    bar = tqdm(estimators.items(), leave=False, disable=None, desc=folder.name)
    quality = {
        name: gradient_quality(model, estimator, x, truth, step, draws)
        for name, estimator in bar
        if not isinstance(estimator, Exact)
    }
    return MeasuredGradients(title, own, quality)


def named_estimators(
    configs: Path, config: DictConfig, names: Iterable[str]
) -> dict[str, Estimator]:
    """Estimators by what was asked for, for the codes of a run's model: `reinmax`, at its yaml's
    settings, or `reinmax:temperature=1:samples=2`.

    A schedule that spans a whole run spans this one. Raises UserError.
    """
    sizes = [f"{key}={config[key]}" for key in ("latents", "categories")]
    given = [*sizes, f"training.steps={configuration.total_steps(config)}"]
    estimators = {}
    with hydra.initialize_config_dir(str(configs.resolve()), version_base="1.3"):
        for name in names:
            option, *settings = name.split(":")
            own = [f"estimator={option}", *(f"estimator.{setting}" for setting in settings)]
            try:
                composed = hydra.compose("train", [*own, *given])
            except HydraException as error:
                raise UserError(one_line(error)) from error
            estimators[name] = build(composed, "estimator", Estimator)
    return estimators


def _fit(model: CategoricalVAE, estimator: Estimator, data: DataSet) -> None:
    generator = torch.Generator().manual_seed(0)
    epochs = (training_batches(data, _FIT_BATCH, generator) for _ in range(_FIT_EPOCHS))
    fit(model, estimator, chain.from_iterable(epochs))
