"""Read a run folder: its configuration, its models, its estimator and its data."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from torch import nn

from vae.config.instantiate import build
from vae.data import DataSet, OneBatch, Source
from vae.estimators import Estimator
from vae.model import CategoricalVAE
from vae.networks import Networks
from vae.objective import TrainingObjective
from vae.optimizers import OptimizerConfig
from vae.runs.folder import CONFIG
from vae.schedules import Schedule
from vae.tracking import LoggingConfig
from vae.training import TrainingConfig, checkpoint
from vae.training.checkpoint import WHICH, Checkpoint, Which
from vae.utils.errors import UserError, first_line

Measured = TypeVar("Measured")

_KEYS_OF_OLD_RUNS: dict[str, dict[str, object]] = {
    "vae.model.CategoricalVAE": {
        "posterior": "softmax",
        "output_bias": "default",
        "center_input": False,
    },
    "vae.objective.VIMCO": {"baseline": "geometric"},
    "vae.estimators.Disarm": {"samples": 2},
}
"""Keys that the configuration of an old run lacks, with the values that the run has, by class."""


class SavedRun:
    """A saved run. The configuration is read at once, and each checkpoint when it is needed, once.

    Attributes:
        folder: The run folder.
        values: The run's resolved configuration.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the configuration of a run folder.

        Raises:
            UserError: The folder is not a run folder, or its configuration cannot be read.
        """
        self.folder = Path(folder)
        self.values = read_config(self.folder)
        self._checkpoints: dict[Which, Checkpoint] = {}

    def saved_models(self) -> list[Which]:
        """Return which checkpoints the folder holds."""
        return [which for which in WHICH if checkpoint.exists(self.folder, which)]

    def default_model(self) -> Which:
        """Return which model is used by default: "best", or "last" without a best checkpoint."""
        return "best" if checkpoint.exists(self.folder, "best") else "last"

    def checkpoint(self, which: Which) -> Checkpoint:
        """Return the content of a checkpoint.

        Raises:
            UserError: The checkpoint is missing or damaged.
        """
        if which not in self._checkpoints:
            self._checkpoints[which] = checkpoint.load(self.folder, which)
        return self._checkpoints[which]

    def model(self, which: Which | None = None) -> CategoricalVAE:
        """Return a trained model, on the CPU and in evaluation mode.

        Args:
            which: Best (by validation ELBO) or last; by default the best, if there is one.

        Raises:
            UserError: The checkpoint is missing, damaged, or of another model.
        """
        model = build(self.values, "model", CategoricalVAE)
        self._load_part(model, "model", which)
        return model.eval()

    def estimator(self, which: Which | None = None) -> Estimator:
        """Return the trained estimator.

        Raises:
            UserError: The run was trained without an estimator, or its checkpoint is missing,
                damaged, or of another estimator.
        """
        if self.values.get("estimator") is None:
            raise UserError(f"{self.folder} was trained without an estimator")
        estimator = build(self.values, "estimator", Estimator)
        self._load_part(estimator, "estimator", which)
        return estimator

    def step(self, which: Which | None = None) -> int:
        """Return the global step at which a model was saved."""
        return self.checkpoint(which or self.default_model())["step"]

    def measure_models(
        self, models: Iterable[Which], measure: Callable[[Which], Measured]
    ) -> dict[Which, Measured]:
        """Measure each of the run's models, but only once if the best model is the last one."""
        steps = {which: self.step(which) for which in models}
        model_at = {step: which for which, step in steps.items()}
        measured = {step: measure(which) for step, which in model_at.items()}
        return {which: measured[step] for which, step in steps.items()}

    def data(self, root: str | None = None) -> DataSet:
        """Read the data set that the run was trained on, on the CPU.

        Args:
            root: A torchvision root to read from in place of the run's own.

        Raises:
            UserError: The data set cannot be read.
        """
        return self.source(root).load(torch.device("cpu"))

    def source(self, root: str | None = None) -> Source:
        """Build the source of the data set, which is not read yet.

        Sources that are equal have the same images.

        Args:
            root: As in `data`.

        Raises:
            UserError: The settings of the data are not valid.
        """
        values = self.values
        if root is not None and "root" in values["data"]:
            values = values | {"data": values["data"] | {"root": root}}
        return build_source(values)

    def total_steps(self) -> int:
        """Return the number of steps that the configuration asks for."""
        return total_steps(self.values)

    def _load_part(self, part: nn.Module, name: str, which: Which | None) -> None:
        """Load the trained state of the model or the estimator, which the objective contains."""
        content = self.checkpoint(which or self.default_model())
        prefix = f"{name}."
        state = {
            key.removeprefix(prefix): tensor
            for key, tensor in content["objective"].items()
            if key.startswith(prefix)
        }
        try:
            part.load_state_dict(state)
        except RuntimeError as error:
            file = checkpoint.path(self.folder, which or self.default_model())
            raise UserError(
                f"{file} holds a different {name} from the one that {CONFIG} describes"
            ) from error


def total_steps(values: dict[str, Any]) -> int:
    """Return the number of steps that a configuration asks for.

    Raises:
        UserError: The settings of training or data are not valid.
    """
    training, source = build(values, "training", TrainingConfig), build_source(values)
    try:
        return training.total_steps(source.train_size)
    except ValueError as error:
        raise UserError(f"training.{error}") from error


def build_source(values: dict[str, Any]) -> Source:
    """Build the source of the images that a configuration describes.

    Raises:
        UserError: The settings of the data are not valid; with `overfit`, also those of training.
    """
    source = build(values, "data", Source)
    if values.get("overfit"):
        batch_size = build(values, "training", TrainingConfig).batch_size
        return OneBatch(source, min(batch_size, source.train_size))
    return source


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return the resolved configuration in a run folder.

    Raises:
        UserError: The file is missing or damaged, names a class that run folders may not use, or
            holds an interpolation, which could read the environment or build any class.
    """
    file = folder / name
    try:
        config = OmegaConf.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a run folder: it has no {name}") from error
    except Exception as error:  # PyYAML and OmegaConf share no base class
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    values = OmegaConf.to_container(config) if OmegaConf.is_dict(config) else None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no configuration")
    for key in ("data", "model", "objective", "training"):
        if not _is_group(values.get(key)):
            raise UserError(f"{file} names no {key}")
    if values.get("estimator") is not None and not _is_group(values["estimator"]):
        raise UserError(f"{file} names no estimator")
    for key in ("latents", "categories", "seed"):
        if not isinstance(values.get(key), int):
            raise UserError(f"{file} has no {key}")
    for node in _nodes(values):
        if isinstance(node, str) and "${" in node:
            raise UserError(f"{file} holds {node}, and run folders may not use interpolations")
    for target in foreign_targets(values):
        raise UserError(f"{file} names {target}, which is not a class that run folders may use")
    for group in ("model", "objective", "estimator"):
        if values.get(group) is not None:
            added = _KEYS_OF_OLD_RUNS.get(values[group]["_target_"], {})
            values[group] = added | values[group]
    return {str(key): value for key, value in values.items()}


def to_yaml(values: dict[str, Any]) -> str:
    """Return a configuration as the text of a yaml file."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def foreign_targets(values: object) -> list[object]:
    """Return every `_target_` of a configuration that is not a class that run folders may use.

    Run folders are data that people share, so they may name only such classes.
    """
    groups = (node for node in _nodes(values) if isinstance(node, dict))
    targets = [group["_target_"] for group in groups if "_target_" in group]
    return [target for target in targets if not _is_part_of_runs(target)]


_PARTS_OF_RUNS = (
    Source,
    Networks,
    CategoricalVAE,
    Estimator,
    Schedule,
    TrainingObjective,
    OptimizerConfig,
    TrainingConfig,
    LoggingConfig,
)


def _is_group(value: object) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _nodes(node: object) -> Iterator[object]:
    """Yield a configuration and everything in it: groups, lists, keys and values."""
    yield node
    if isinstance(node, dict):
        node = [*node.keys(), *node.values()]
    if isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _is_part_of_runs(target: object) -> bool:
    module, _, name = str(target).rpartition(".")
    if not module.startswith("vae."):
        return False
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return isinstance(value, type) and issubclass(value, _PARTS_OF_RUNS)
