"""Build and check everything that a configuration describes, before any work starts."""

from dataclasses import dataclass
from inspect import isabstract
from typing import Annotated, Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError

from vae import estimators
from vae import objective as objectives
from vae.config.describe import Setting, describe_settings
from vae.config.instantiate import build, describe_error
from vae.config.load import build_source, foreign_targets
from vae.config.replicas import expand_replicas
from vae.config.resolvers import PUBLISHED
from vae.config.resume import COMMAND_KEYS
from vae.data import Source
from vae.estimators import Estimator
from vae.model import CategoricalVAE
from vae.objective import TrainingObjective
from vae.optimizers import OptimizerConfig
from vae.tracking import LoggingConfig
from vae.training import TrainingConfig
from vae.training.monitor import check_measurable
from vae.utils.errors import UserError
from vae.utils.validation import Count, Seed, frozen

_GROUPS = ("data", "model", "estimator", "objective", "optimizer", "training", "tracking")
_DEFAULT_IMAGE_SHAPE = [28, 28]  # used by models whose configuration has no image_shape


@frozen
class TopLevelKeys:
    """The keys of a configuration that are not groups."""

    latents: Count
    categories: Annotated[int, Field(ge=2)]
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]
    importance_samples: Count
    overfit: bool = False  # train on one batch, which the model must fit: see configs/debug


@dataclass(frozen=True)
class RunConfig:
    """The checked parts of a training run.

    Attributes:
        source: Where the data come from; they are not read yet.
        objective: What is minimised, with its model and its estimator.
        optimizer: The settings of the optimizer.
        training: The length of training and the settings of a step.
        logging: What is logged.
        top_level: The keys that are not groups.
        device: The device to train on.
        values: The resolved configuration. In schedules, `steps: null` has been replaced by the
            number of steps of the run.
        name: The name of a replica's folder; empty if the run is trained alone.
        name_without_seed: The name that replicas share if they differ only in their seed.
    """

    source: Source
    objective: TrainingObjective
    optimizer: OptimizerConfig
    training: TrainingConfig
    logging: LoggingConfig
    top_level: TopLevelKeys
    device: torch.device
    values: dict[str, Any]
    name: str
    name_without_seed: str

    @property
    def total_steps(self) -> int:
        """The number of steps of the run."""
        return self.training.total_steps(self.source.train_size)

    @property
    def stops_before_last_epoch(self) -> bool:
        """Whether `training.steps` ends the run before its last epoch is complete."""
        steps = self.training.steps
        return steps is not None and steps < self.training.steps_of_all_epochs(
            self.source.train_size
        )

    def describe(self) -> dict[str, Setting]:
        """Return all settings on one level, by dotted keys."""
        return describe_settings(self.values, self.total_steps)


@dataclass(frozen=True)
class ExperimentConfig:
    """The runs that one command trains together.

    Attributes:
        runs: One run, or several replicas.
        shared_values: The configuration that the replicas were made of; None for one run.
    """

    runs: list[RunConfig]
    shared_values: dict[str, Any] | None

    @property
    def has_replicas(self) -> bool:
        """Whether the runs are replicas. Their folders lie in the folder of the experiment."""
        return self.shared_values is not None


def build_experiment(config: DictConfig) -> ExperimentConfig:
    """Build and check everything that a composed configuration describes.

    Torch's generator is seeded with the seed of each run before its model is built. On the CPU,
    training draws its noise from that generator, beginning in the state after the last model.

    Raises:
        UserError: The configuration is not valid. The message names the key, the value and what
            is allowed.
    """
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(values, dict):
        raise UserError("a configuration must be a group of keys")
    for key in (*COMMAND_KEYS, PUBLISHED):  # the published settings are in the option files now
        values.pop(key, None)
    replicas = expand_replicas({str(key): value for key, value in values.items()})
    runs = [_build_run(r.values, r.name, r.name_without_seed) for r in replicas]
    shared_values = None
    if replicas[0].name:
        shared_values = bind_schedules(values, runs[0].total_steps)
    return ExperimentConfig(runs, shared_values)


def _build_run(values: dict[str, Any], name: str, name_without_seed: str) -> RunConfig:
    for group in _GROUPS:
        if group == "estimator" and values.get(group) is None:
            continue  # VIMCO and ReweightedWakeSleep take none
        if not isinstance(values.get(group), dict):
            raise UserError(f"{group} must be a group of keys, not {values.get(group)!r}")
    _refuse_foreign_classes(values)
    top_level = _build_top_level(values)
    device = _choose_device(top_level.device)
    training = build(values, "training", TrainingConfig)
    source = build_source(values)
    values = bind_schedules(values, _check_length(training, source))
    values = values | {"model": _with_image_shape(values["model"], source)}
    torch.manual_seed(top_level.seed)
    model = build(values, "model", CategoricalVAE)
    objective = _build_objective(values, model)
    optimizer = build(values, "optimizer", OptimizerConfig)
    logging = build(values, "tracking", LoggingConfig)
    try:
        check_measurable(objective, logging)
    except ValueError as error:
        raise UserError(str(error)) from error
    return RunConfig(
        source=source,
        objective=objective,
        optimizer=optimizer,
        training=training,
        logging=logging,
        top_level=top_level,
        device=device,
        values=values,
        name=name,
        name_without_seed=name_without_seed,
    )


def _refuse_foreign_classes(values: dict[str, Any]) -> None:
    """Raise UserError if a `_target_` is not a class that run folders may name."""
    for target in foreign_targets(values):
        if str(target).startswith("vae."):
            raise UserError(f"_target_={target}: a run consists of no such class")
        if target is not None:  # which the group that lacks a class reports itself
            raise UserError(
                f"_target_={target}: only classes of the package vae can be used, because a run "
                "folder may name no others"
            )


def _check_length(training: TrainingConfig, source: Source) -> int:
    """Return the number of steps of a run."""
    if training.patience is not None and not source.valid_size:
        raise UserError(
            f"training.patience={training.patience}: no images are held out to judge a model by; "
            "set data.validation"
        )
    try:
        return training.total_steps(source.train_size)
    except ValueError as error:
        raise UserError(f"training.{error}") from error


def bind_schedules(node: Any, total_steps: int) -> Any:
    """Return a configuration in which `steps: null` of a schedule is the length of the run."""
    if isinstance(node, list):
        return [bind_schedules(value, total_steps) for value in node]
    if not isinstance(node, dict):
        return node
    bound = {key: bind_schedules(value, total_steps) for key, value in node.items()}
    is_schedule = str(node.get("_target_")).startswith("vae.schedules.")
    if is_schedule and "steps" in node and node["steps"] is None:
        bound["steps"] = total_steps
    return bound


def _with_image_shape(model: dict[str, Any], source: Source) -> dict[str, Any]:
    """Return the model's configuration with the shape of the images, if that is not MNIST's."""
    shape = list(source.image_shape)
    if shape != _DEFAULT_IMAGE_SHAPE:
        model = {"image_shape": shape} | model
    given = model.get("image_shape", shape)
    if isinstance(given, list) and given != shape:  # the model itself checks other types
        raise UserError(f"model.image_shape={given}: the images of the data have shape {shape}")
    return model


def _build_objective(values: dict[str, Any], model: CategoricalVAE) -> TrainingObjective:
    """Build the objective, with the estimator if the configuration names one."""
    if values.get("estimator") is None:
        return build(values, "objective", TrainingObjective, model=model)
    estimator = build(values, "estimator", Estimator)
    try:
        estimator.check(model.latents, model.categories)
    except ValueError as error:
        raise UserError(f"estimator: {error}") from error
    _check_objective_takes(values["objective"].get("_target_"), estimator)
    return build(values, "objective", TrainingObjective, model=model, estimator=estimator)


def _check_objective_takes(target: object, estimator: Estimator) -> None:
    """Raise UserError if the objective takes no estimator, or estimators of another type."""
    objective = getattr(objectives, str(target).rpartition(".")[2], None)
    if not (isinstance(objective, type) and issubclass(objective, TrainingObjective)):
        return  # building the objective reports the error
    takes = objective.takes_estimator
    if takes is None:
        raise UserError(
            f"estimator: {objective.__name__} computes its gradient without an estimator; "
            "add '~estimator'"
        )
    if not isinstance(estimator, takes):
        known = (getattr(estimators, name) for name in estimators.__all__)
        fits = [
            known_class.__name__
            for known_class in known
            if isinstance(known_class, type)
            and issubclass(known_class, takes)
            and not isabstract(known_class)
        ]
        raise UserError(
            f"estimator: {objective.__name__} does not take {type(estimator).__name__}; it takes "
            f"{', '.join(fits)}"
        )


def _build_top_level(values: dict[str, Any]) -> TopLevelKeys:
    top_level = {key: value for key, value in values.items() if key not in _GROUPS}
    try:
        return TopLevelKeys(**top_level)
    except ValidationError as error:
        raise UserError(describe_error(error, "", TopLevelKeys, values)) from error


def _choose_device(name: str) -> torch.device:
    available = _available_devices()
    if name == "auto":
        name = available[0]
    if name not in available:
        raise UserError(f"device={name} is not available here; choose from {', '.join(available)}")
    return torch.device(name)


def _available_devices() -> list[str]:
    """Return the types of devices of this machine, the fastest first."""
    return ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
