"""What a run folder gives back: its configuration, model, estimator and data."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from . import checkpoint
from .data import DataSet, Source
from .estimators import Estimator
from .instantiate import build, first_line
from .model import CategoricalVAE
from .networks import Networks
from .objective import TrainingObjective
from .optimizers import Optimizer
from .schedules import Schedule
from .tracking import Tracking
from .training import Training
from .validation import UserError

CONFIG = "config.yaml"
REPLICAS = "replicas.yaml"
"""In place of a configuration, where the runs are replicas in folders below."""

Config = DictConfig
Measured = TypeVar("Measured")


def load(run: str | Path, which: checkpoint.Which | None = None) -> CategoricalVAE:
    """The model of a run folder, on the CPU and in evaluation mode.

    `which` is best (by validation ELBO) or last; by default the best that there is. Raises
    UserError where the folder is not a run, or its checkpoint is not whole or of another model.
    """
    run = Path(run)
    config = read_config(run)
    which, content = _checkpoint(run, which)
    model = build(config, "model", CategoricalVAE)
    _restore(model, content, "model.", checkpoint.path(run, which))
    return model.eval()


def load_estimator(run: str | Path, which: checkpoint.Which | None = None) -> Estimator:
    """The estimator of a run as it was trained.

    Raises UserError, also where the run's objective took none.
    """
    run = Path(run)
    config = read_config(run)
    if config.get("estimator") is None:
        raise UserError(f"{run} was trained without an estimator")
    which, content = _checkpoint(run, which)
    estimator = build(config, "estimator", Estimator)
    _restore(estimator, content, "estimator.", checkpoint.path(run, which))
    return estimator


def load_step(run: str | Path, which: checkpoint.Which | None = None) -> int:
    """The global step at which a run's model stood. Raises UserError."""
    return _checkpoint(Path(run), which)[1]["step"]


def of_each_step(
    run: Path, models: Iterable[checkpoint.Which], measure: Callable[[checkpoint.Which], Measured]
) -> dict[checkpoint.Which, Measured]:
    """What is measured of a run's models: once, where the best is the last. Raises UserError."""
    steps = {which: load_step(run, which) for which in models}
    one_of = {step: which for which, step in steps.items()}
    measured = {step: measure(which) for step, which in one_of.items()}
    return {which: measured[step] for which, step in steps.items()}


def load_data(config: DictConfig, root: str | None = None) -> DataSet:
    """The data set that a run was trained on, on the CPU; from another root, if one is given.

    Raises UserError.
    """
    config = config.copy()
    if root is not None and "root" in config.data:
        config.data.root = root
    return build(config, "data", Source).load(torch.device("cpu"))


def read_config(run: str | Path, name: str = CONFIG) -> DictConfig:
    """A run's resolved configuration. Raises UserError."""
    file = Path(run) / name
    try:
        config = OmegaConf.load(file)
    except OSError as error:
        raise UserError(f"{run} is no run folder: it has no {name}") from error
    except Exception as error:  # PyYAML and OmegaConf share no base class
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    if not OmegaConf.is_dict(config):
        raise UserError(f"{file} holds no configuration")
    for key in ("data", "model", "objective", "training"):
        if not OmegaConf.is_dict(config.get(key)) or "_target_" not in config[key]:
            raise UserError(f"{file} names no {key}")
    estimator = config.get("estimator")  # not every objective takes one
    if estimator is not None and (not OmegaConf.is_dict(estimator) or "_target_" not in estimator):
        raise UserError(f"{file} names no estimator")
    for key in ("latents", "categories", "seed"):
        if not isinstance(config.get(key), int):
            raise UserError(f"{file} has no {key}")
    if config.data._target_ == "vae.data.Mnist5k":
        config.data.setdefault("validation", 500)  # of a folder from before it could be said
    for target in foreign(OmegaConf.to_container(config)):
        raise UserError(f"{file} would build {target}, which is no part of a run")
    return config


def foreign(config: object) -> list[object]:
    """Every `_target_` of a configuration that is no part of a run.

    Run folders are data that people share: they may name what runs are made of, and no more.
    """
    return [target for target in _targets(config) if not _is_ours(target)]


_PARTS = (
    *(Source, Networks, CategoricalVAE, Estimator, Schedule),
    *(TrainingObjective, Optimizer, Training, Tracking),
)


def _targets(node: object) -> Iterator[object]:
    """Every `_target_` in a configuration."""
    if isinstance(node, dict):
        yield from [held for key, held in node.items() if key == "_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for held in node:
            yield from _targets(held)


def _is_ours(target: object) -> bool:
    module, _, name = str(target).rpartition(".")
    if not module.startswith("vae."):
        return False
    try:
        held = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return isinstance(held, type) and issubclass(held, _PARTS)


def _checkpoint(
    run: Path, which: checkpoint.Which | None
) -> tuple[checkpoint.Which, dict[str, Any]]:
    """By default the best that there is."""
    if which is None:
        which = "best" if checkpoint.exists(run, "best") else "last"
    return which, checkpoint.load(run, which)


def _restore(module: nn.Module, content: dict[str, Any], prefix: str, file: Path) -> None:
    """Gives a part of the objective its trained state."""
    state = content["objective"]
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        part = prefix.rstrip(".")
        raise UserError(f"{file} holds another {part} than {CONFIG} names") from error
