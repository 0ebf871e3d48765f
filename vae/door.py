"""Where a configuration becomes a run. Configuration stops here.

Everything is built and checked before any work. What is wrong with a configuration is a UserError
of one line that names the key, the value and what is allowed.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from inspect import isabstract
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError

from . import checkpoint, estimators, grid
from . import objective as objectives
from .configuration import flat, total_steps
from .data import DataSet, Source
from .estimators import Estimator
from .files import write_atomically
from .instantiate import build, describe
from .model import CategoricalVAE
from .objective import VIMCO, TrainingObjective
from .optimizers import Optimizer
from .published import OTHERS, TABLE, is_called
from .run_folder import CONFIG, REPLICAS, foreign, read_config
from .run_state import locked, read_status, write_status
from .schedules import NonNegativeSchedule, PositiveSchedule
from .tracking import Tracking
from .training import Training, check_measurable
from .validation import Count, NonNegative, Positive, Seed, UserError, Whole, value

_ABOUT_THE_FOLDER = ("resume", "sweep")  # keys that say where a run is, and not what it is
_CHANGES_NOTHING = ("device", "data.root", "data.mirror", "training.capture")  # of the result
_LENGTH = ("training.epochs", "training.steps")  # may grow
_MAY_CHANGE = (*_LENGTH, *_CHANGES_NOTHING)
_USUAL_SHAPE = [28, 28]  # of a model that says nothing


class Finished(Exception):
    """There is nothing left to do."""


@value
class Settings:
    """The keys of a configuration that are no group."""

    latents: Count
    categories: Annotated[int, Field(ge=2)]
    seed: Seed
    device: Literal["auto", "cpu", "cuda", "mps"]
    importance_samples: Count


@value
class Row:
    """What an experiment may say of an estimator, and option files ask for."""

    optimizer: Literal["Adam", "AdamW", "RAdam", "SGD"] | None = None
    lr: NonNegativeSchedule | None = None
    warmup: Whole | None = None
    temperature: PositiveSchedule | None = None
    start: Positive | None = None  # of a temperature that falls exponentially, and its rate
    rate: NonNegative | None = None
    prior_temperature: PositiveSchedule | None = None
    inner_samples: Count | None = None


@dataclass(frozen=True)
class Experiment:
    """Everything that a training run is made of."""

    data: DataSet
    objective: TrainingObjective
    optimizer: Optimizer
    training: Training
    tracking: Tracking
    settings: Settings
    config: dict[str, Any]  # resolved
    folder: Path
    setting: str  # what a replica shares with those that differ in their seed alone
    step: int  # from which it goes on


_GROUPS = ("data", "model", "estimator", "objective", "optimizer", "training", "tracking")


def prepare(config: DictConfig, folder: Path, locks: ExitStack) -> list[Experiment]:
    """Builds and checks all that a configuration names, and makes the folder a run of it.

    Where `seeds` or lists of rates and temperatures ask for replicas, one experiment for each of
    them, in folders below, locked until `locks` is closed. Seeds torch. Reads the data last, and
    writes nothing before. Where a folder holds a run it must be the same one. Raises UserError,
    and Finished where there is nothing left to do.
    """
    config = config.copy()
    OmegaConf.set_struct(config, False)
    for key in _ABOUT_THE_FOLDER:
        config.pop(key, None)
    try:
        replicas = grid.replicas(OmegaConf.to_container(config))
    except ValueError as error:
        raise UserError(str(error)) from error
    parts = [_parts(OmegaConf.create(replica.config)) for replica in replicas]
    folders = [folder / replica.name for replica in replicas]
    device = _device(parts[0]["settings"].device)
    whole = None
    if replicas[0].name:
        whole = _resolved(config, _fill_in(config))
        _holds(folder, REPLICAS, whole)
    finished = [
        _holds(below, CONFIG, part["config"]) and read_status(below) == "finished"
        for below, part in zip(folders, parts, strict=True)
    ]
    if all(finished):
        raise Finished(f"{folder} is finished: nothing to do{_cut_short(parts[0])}")
    data = build(OmegaConf.create(parts[0]["config"]), "data", Source).load(device)
    if whole is not None:
        for below in folders:
            below.mkdir(exist_ok=True)
            locks.enter_context(locked(below))
    steps = checkpoint.steps(folders)
    if whole is not None:
        write_atomically(folder / REPLICAS, _yaml(whole))
    experiments = []
    for replica, below, part, step in zip(replicas, folders, parts, steps, strict=True):
        write_status(below, "running")  # first: a longer run is not finished because it was
        write_atomically(below / CONFIG, _yaml(part["config"]))
        part["objective"].to(device)
        experiments.append(
            Experiment(data, **part, folder=below, setting=replica.setting, step=step)
        )
    return experiments


def resumed(folder: Path, composed: DictConfig, overrides: list[str]) -> DictConfig:
    """A run's own configuration, with what of the command line may change it.

    It may get longer, and the schedules stay what they were. Raises UserError.
    """
    config = read_config(folder, REPLICAS if (folder / REPLICAS).exists() else CONFIG)
    if config.training.steps == _steps_of_all_epochs(config):
        config.training.steps = None  # says no more than the epochs, which may grow
    for override in overrides:
        key = override.partition("=")[0]
        if key in _MAY_CHANGE:
            OmegaConf.update(config, key, OmegaConf.select(composed, key))
        elif key not in _ABOUT_THE_FOLDER:
            allowed = ", ".join(_MAY_CHANGE)
            raise UserError(f"{key}: resume takes everything but {allowed} from the run itself")
    return config


def _parts(config: DictConfig) -> dict[str, Any]:
    """All of an experiment that needs no data. Raises UserError."""
    for group in _GROUPS:
        if group == "estimator" and config.get(group) is None:
            continue  # not every objective takes one
        if not OmegaConf.is_dict(config.get(group)):
            raise UserError(f"{group} must be a group of keys, not {config.get(group)!r}")
    settings = _settings(config)
    _device(settings.device)
    torch.manual_seed(settings.seed)
    training = _fill_in(config)
    _check_published(config)
    _fit_to_images(config)
    model = build(config, "model", CategoricalVAE)
    objective = _objective(config, model)
    optimizer = build(config, "optimizer", Optimizer)
    tracking = build(config, "tracking", Tracking)
    try:
        check_measurable(objective, tracking)
    except ValueError as error:
        raise UserError(str(error)) from error
    resolved = _resolved(config, training)
    for target in foreign(resolved):  # found later, it would cost the run its results
        raise UserError(f"_target_={target}: a run folder may name classes of vae/ alone")
    return {
        "objective": objective,
        "optimizer": optimizer,
        "training": training,
        "tracking": tracking,
        "settings": settings,
        "config": resolved,
    }


def _fill_in(config: DictConfig) -> Training:
    """Has `training.steps` say how many the whole run has: schedules may depend on it.

    Returns what was asked for. Raises UserError.
    """
    training = build(config, "training", Training)
    if training.patience is not None and not build(config, "data", Source).valid_size:
        raise UserError(
            f"training.patience={training.patience}: no images are held out to judge a model by"
        )
    config.training.steps = total_steps(config)
    return training


def _fit_to_images(config: DictConfig) -> None:
    """Has a model of images of another shape than MNIST's say so. Raises UserError."""
    shape = list(build(config, "data", Source).image_shape)
    if shape != _USUAL_SHAPE:
        config.model.setdefault("image_shape", shape)
    given = config.model.get("image_shape", shape)
    if OmegaConf.is_list(given) and list(given) != shape:  # else the model says what it has to be
        raise UserError(f"model.image_shape={given}: the images of data are {shape}")


def _resolved(config: DictConfig, asked: Training) -> dict[str, Any]:
    """As it is kept: with the length that was asked for."""
    resolved = OmegaConf.to_container(config, resolve=True)
    resolved.pop(TABLE, None)  # what was picked from it stands where it is used
    resolved["training"]["steps"] = asked.steps
    return resolved


def _cut_short(parts: dict[str, Any]) -> str:
    """Whether a run ends before its epochs do, for one who would have more of them."""
    config, asked = OmegaConf.create(parts["config"]), parts["training"].steps
    cut = asked is not None and asked < _steps_of_all_epochs(config)
    return f"; training.steps={asked} ends it" if cut else ""


def _steps_of_all_epochs(config: DictConfig) -> int:
    """Whatever `training.steps` says. Raises UserError."""
    training, source = build(config, "training", Training), build(config, "data", Source)
    return training.epochs * (source.train_size // training.batch_size)


def _yaml(config: dict[str, Any]) -> bytes:
    return OmegaConf.to_yaml(OmegaConf.create(config)).encode()


def _holds(folder: Path, name: str, config: dict[str, Any]) -> bool:
    """Whether the folder holds this run at this length. Raises UserError where it is another."""
    other = {CONFIG: REPLICAS, REPLICAS: CONFIG}[name]
    if (folder / other).exists():
        raise UserError(f"{folder} holds another run: it has a {other}, and no {name}")
    if not (folder / name).exists():
        return False
    held = read_config(folder, name)
    longer = total_steps(OmegaConf.create(config)) - total_steps(held)
    before, now = flat(OmegaConf.to_container(held)), flat(config)
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        may_differ = key in _CHANGES_NOTHING or (key in _LENGTH and longer >= 0)
        if old != new and not may_differ:
            raise UserError(f"{folder} holds another run: its {key} is {old}, and not {new}")
    return not longer


def _objective(config: DictConfig, model: CategoricalVAE) -> TrainingObjective:
    """The objective, with the estimator that the configuration names, if any."""
    if config.get("estimator") is None:  # as with VIMCO; the others complain
        return build(config, "objective", TrainingObjective, model=model)
    estimator = build(config, "estimator", Estimator)
    try:
        estimator.check(model.latents, model.categories)
    except ValueError as error:
        raise UserError(f"estimator: {error}") from error
    target = config.objective.get("_target_", "")
    if target == f"{VIMCO.__module__}.{VIMCO.__name__}":
        raise UserError("estimator: VIMCO has a gradient of its own; leave it out")
    _check_fit(target, estimator)
    return build(config, "objective", TrainingObjective, model=model, estimator=estimator)


def _check_fit(objective: str, estimator: Estimator) -> None:
    """Raises UserError where the objective needs more of an estimator than this one has."""
    kind = getattr(objectives, str(objective).rpartition(".")[2], None)
    takes = get_type_hints(getattr(kind, "__init__", None)).get("estimator", Estimator)
    if not isinstance(estimator, takes):
        every = [getattr(estimators, name) for name in estimators.__all__]
        classes = [each for each in every if isinstance(each, type) and not isabstract(each)]
        fits = [each.__name__ for each in classes if issubclass(each, takes)]
        raise UserError(
            f"estimator: {kind.__name__} does not take {type(estimator).__name__}; it takes "
            f"{', '.join(fits)}"
        )


def _check_published(config: DictConfig) -> None:
    """Nothing in an experiment's table that no option file would ever ask for."""
    if TABLE not in config:
        return
    table = config[TABLE]
    if not OmegaConf.is_dict(table):
        raise UserError(f"{TABLE} must be a table of estimators, not {table!r}")
    for name in table:
        if name != OTHERS and not any(is_called(known, name) for known in estimators.__all__):
            raise UserError(f"{TABLE}.{name}: there is no such estimator")
        if not OmegaConf.is_dict(table[name]):
            raise UserError(f"{TABLE}.{name} must be a row of settings, not {table[name]!r}")
        try:
            Row(**build(table, name))
        except ValidationError as error:
            raise UserError(
                describe(error, f"{TABLE}.{name}.", Row, [*Row.__annotations__])
            ) from error


def _settings(config: DictConfig) -> Settings:
    values = {key: value for key, value in config.items() if key not in (*_GROUPS, TABLE)}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise UserError(describe(error, "", Settings, list(config))) from error


def _device(name: str) -> torch.device:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = [device for device, there in available.items() if there]
        raise UserError(f"device={name}: not on this machine, which has {', '.join(there)}")
    return torch.device(name)
