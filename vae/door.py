"""Where a configuration becomes objects, and a run folder a model. Configuration stops here.

Everything is built and checked before any work. What is wrong with a configuration is a UserError
of one line that names the key, the value and what is allowed.
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra
import torch
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError
from torch import nn

from . import checkpoint, estimators, grid
from .data import DataSet, Source
from .errors import close_match, one_line
from .estimators import Estimator
from .files import write_atomically
from .model import CategoricalVAE
from .networks import Networks
from .objective import VIMCO, TrainingObjective
from .optimizers import Optimizer
from .published import OTHERS, TABLE, is_called
from .run_state import locked, read_status
from .schedules import NonNegativeSchedule, PositiveSchedule, Schedule
from .tracking import Tracking
from .training import Training, check_measurable
from .validation import Count, NonNegative, Positive, UserError, Whole, value

CONFIG = "config.yaml"
REPLICAS = "replicas.yaml"
"""In place of a configuration, where the runs are replicas in folders below."""

Config = DictConfig

_ABOUT_THE_FOLDER = ("resume", "sweep")  # keys that say where a run is, and not what it is
_CHANGES_NOTHING = ("device", "data.root", "training.capture")  # of what is computed
_MAY_CHANGE = ("training.epochs", *_CHANGES_NOTHING)


class Finished(Exception):
    """There is nothing left to do."""


@value
class Settings:
    """The keys of a configuration that are no group."""

    latents: Count
    categories: Annotated[int, Field(ge=2)]
    seed: Whole
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


_GROUPS = ("data", "model", "estimator", "objective", "optimizer", "training", "tracking")


def prepare(config: DictConfig, folder: Path, locks: ExitStack) -> list[Experiment]:
    """Builds and checks all that a configuration names, and makes the folder a run of it.

    Where `seeds` or lists of rates and temperatures ask for replicas, one experiment for each of
    them, in folders below, locked until `locks` is closed. Fills in `training.steps`, on which
    schedules may depend. Seeds torch. Reads the data last, and writes nothing before. Where a
    folder holds a run it must be the same one. Raises UserError, and Finished where there is
    nothing left to do.
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
        _fill_in(config)
        whole = _resolved(config)
        _holds(folder, REPLICAS, whole)
    finished = [
        _holds(below, CONFIG, part["config"]) and read_status(below) == "finished"
        for below, part in zip(folders, parts, strict=True)
    ]
    if all(finished):
        raise Finished(f"{folder} is finished: nothing to do")
    data = build(OmegaConf.create(parts[0]["config"]), "data", Source).load(device)
    if whole is not None:
        for below in folders:
            below.mkdir(exist_ok=True)
            locks.enter_context(locked(below))
        write_atomically(folder / REPLICAS, _yaml(whole))
    experiments = []
    for replica, below, part in zip(replicas, folders, parts, strict=True):
        write_atomically(below / CONFIG, _yaml(part["config"]))
        part["objective"].to(device)
        experiments.append(Experiment(data, **part, folder=below, setting=replica.setting))
    return experiments


def _yaml(config: dict[str, Any]) -> bytes:
    return OmegaConf.to_yaml(OmegaConf.create(config)).encode()


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
    model = build(config, "model", CategoricalVAE)
    objective = _objective(config, model)
    optimizer = build(config, "optimizer", Optimizer)
    tracking = build(config, "tracking", Tracking)
    try:
        check_measurable(objective, tracking)
    except ValueError as error:
        raise UserError(str(error)) from error
    return {
        "objective": objective,
        "optimizer": optimizer,
        "training": training,
        "tracking": tracking,
        "settings": settings,
        "config": _resolved(config),
    }


def _resolved(config: DictConfig) -> dict[str, Any]:
    resolved = OmegaConf.to_container(config, resolve=True)
    resolved.pop(TABLE, None)  # what was picked from it stands where it is used
    return resolved


def _fill_in(config: DictConfig) -> Training:
    """Says in the configuration how many steps the whole run has. Raises UserError."""
    source = build(config, "data", Source)
    training = build(config, "training", Training)
    try:
        config.training.steps = training.total_steps(source.train_size)
    except ValueError as error:
        raise UserError(f"training.{error}") from error
    return training


def resumed(folder: Path, overrides: list[str]) -> DictConfig:
    """A run's own configuration, with what of the command line may change it.

    `training.epochs` may grow, and the schedules stay what they were. Raises UserError.
    """
    config = read_config(folder, REPLICAS if (folder / REPLICAS).exists() else CONFIG)
    for override in overrides:
        key, _, word = override.partition("=")
        if key in _MAY_CHANGE:
            OmegaConf.update(config, key, OmegaConf.create(f"_: {word}")._)
        elif key != "resume":
            allowed = ", ".join(_MAY_CHANGE)
            raise UserError(f"{key}: resume takes everything but {allowed} from the run itself")
    training = build(config, "training", Training)
    images = build(config, "data", Source).train_size
    batches = images // training.batch_size
    if training.steps is not None and training.steps % batches == 0:
        # The whole run, unless someone asked for exactly that many steps; then it is as good.
        config.training.steps = None
    return config


def _holds(folder: Path, name: str, config: dict[str, Any]) -> bool:
    """Whether the folder holds this run at this length. Raises UserError where it is another."""
    other = {CONFIG: REPLICAS, REPLICAS: CONFIG}[name]
    if (folder / other).exists():
        raise UserError(f"{folder} holds another run: it has a {other}, and no {name}")
    if not (folder / name).exists():
        return False
    before, now = flat(OmegaConf.to_container(read_config(folder, name))), flat(config)
    grows = ("training.epochs", "training.steps")
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new or key in _CHANGES_NOTHING:
            continue
        if key in grows and None not in (old, new) and new > old:
            continue
        raise UserError(f"{folder} holds another run: its {key} is {old}, and not {new}")
    return all(before.get(key) == now.get(key) for key in grows)


def build(config: DictConfig, key: str, kind: type = object, **extra: object) -> Any:
    """Instantiates the node at `key`, with extra arguments. Raises UserError."""
    try:
        built = hydra.utils.instantiate(config[key], _convert_="all", **extra)
    except InstantiationException as error:
        raise UserError(_explain(error, config)) from error
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from error
    if not isinstance(built, kind):
        raise UserError(f"{key}._target_={config[key].get('_target_')} is no {kind.__name__}")
    return built


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, bool | str | float | int]:
    """A resolved configuration on one level, by dotted keys; lists as words, nulls left out.

    What a group is goes by the group's own name: estimator: StraightThrough.
    """
    level = {}
    for key, held in config.items():
        if isinstance(held, dict):
            level |= flat(held, f"{prefix}{key}.")
        elif key == "_target_":
            level[prefix.rstrip(".")] = held.rpartition(".")[2]
        elif held is not None:
            level[prefix + key] = str(held) if isinstance(held, list) else held
    return level


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


def load_estimator(run: Path, which: checkpoint.Which | None = None) -> Estimator:
    """The estimator of a run as it was trained.

    Raises UserError, also where the run's objective took none.
    """
    config = read_config(run)
    if config.get("estimator") is None:
        raise UserError(f"{run} was trained without an estimator")
    which, content = _checkpoint(run, which)
    estimator = build(config, "estimator", Estimator)
    _restore(estimator, content, "estimator.", checkpoint.path(run, which))
    return estimator


def load_step(run: Path, which: checkpoint.Which | None = None) -> int:
    """The global step at which a run's model stood. Raises UserError."""
    return _checkpoint(run, which)[1]["step"]


def default_estimators(
    configs: Path, config: DictConfig, names: Iterable[str]
) -> dict[str, Estimator]:
    """Estimators at their yaml's settings, by the yaml's name, for the codes of a run's model.

    A schedule that spans a whole run spans this one. Raises UserError.
    """
    sizes = [f"{key}={config[key]}" for key in ("latents", "categories")]
    given = [*sizes, f"training.steps={config.training.steps}"]
    estimators = {}
    with hydra.initialize_config_dir(str(configs.resolve()), version_base="1.3"):
        for name in names:
            try:
                composed = hydra.compose("train", [f"estimator={name}", *given])
            except HydraException as error:
                raise UserError(one_line(error)) from error
            estimators[name] = build(composed, "estimator", Estimator)
    return estimators


@cache
def option_names(configs: Path, group: str) -> dict[str, str]:
    """The options of a group, and what each builds: yaml names and their `_target_`."""
    files = sorted((configs / group).glob("*.yaml"))
    return {file.stem: OmegaConf.load(file).get("_target_") for file in files}


def chosen(config: DictConfig, configs: Path) -> dict[str, str]:
    """The names of a run's estimator, if it has one, and objective, as options of their groups.

    The name of the class where no yaml, or more than one, builds it.
    """
    groups = [group for group in ("objective", "estimator") if config.get(group) is not None]
    names = {}
    for group in groups:
        target = config[group]._target_
        fits = [name for name, built in option_names(configs, group).items() if built == target]
        names[group] = fits[0] if len(fits) == 1 else target.rpartition(".")[2]
    return names


def settings(config: DictConfig, configs: Path) -> dict[str, bool | str | float | int]:
    """All keys of a run's configuration on one level; groups by the names of their options."""
    return flat(OmegaConf.to_container(config, resolve=True)) | chosen(config, configs)


def method(config: DictConfig, configs: Path) -> str:
    """What a run is called in comparisons: its estimator, or an objective that goes without."""
    names = chosen(config, configs)
    return names.get("estimator", names["objective"])


def load_data(config: DictConfig, root: str | None = None) -> DataSet:
    """The data set that a run was trained on, on the CPU; from another root, if one is given.

    Raises UserError.
    """
    config = config.copy()
    if root is not None and "root" in config.data:
        config.data.root = root
    return build(config, "data", Source).load(torch.device("cpu"))


def read_config(run: Path, name: str = CONFIG) -> DictConfig:
    """A run's resolved configuration. Raises UserError."""
    file = run / name
    try:
        config = OmegaConf.load(file)
    except OSError as error:
        raise UserError(f"{run} is no run folder: it has no {name}") from error
    except Exception as error:  # PyYAML and OmegaConf share no base class
        raise UserError(f"{file} cannot be read: {_first_line(error)}") from error
    if not OmegaConf.is_dict(config):
        raise UserError(f"{file} holds no configuration")
    for key in ("data", "model"):
        if not OmegaConf.is_dict(config.get(key)) or "_target_" not in config[key]:
            raise UserError(f"{file} names no {key}")
    for target in _targets(OmegaConf.to_container(config)):
        if not _is_ours(target):
            raise UserError(f"{file} would build {target}, which is no part of a run")
    return config


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
    """Run folders are data that people share: they may name what runs are made of, and no more."""
    module, _, name = str(target).rpartition(".")
    if not module.startswith("vae."):
        return False
    try:
        held = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return isinstance(held, type) and issubclass(held, _PARTS)


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
    return build(config, "objective", TrainingObjective, model=model, estimator=estimator)


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
                _describe(error, f"{TABLE}.{name}.", Row, [*Row.__annotations__])
            ) from error


def _settings(config: DictConfig) -> Settings:
    values = {key: value for key, value in config.items() if key not in (*_GROUPS, TABLE)}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise UserError(_describe(error, "", Settings, list(config))) from error


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


def _explain(error: InstantiationException, config: DictConfig) -> str:
    """Hydra's several lines as one; the full key of the node stands in them."""
    key = re.search(r"full_key: (\S+)", str(error))
    key = key.group(1) if key else ""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        target = hydra.utils.get_object(OmegaConf.select(config, f"{key}._target_"))
        return _describe(cause, f"{key}.", target, list(inspect.signature(target).parameters))
    return f"{key}: {_first_line(cause or error)}"


def _describe(error: ValidationError, prefix: str, target: type, allowed: list[str]) -> str:
    """The first thing that pydantic found, in one line."""
    first = error.errors()[0]
    # A union's branches are not part of the key.
    names = [str(part) for part in first["loc"] if str(part) in allowed or isinstance(part, int)]
    key = prefix + ".".join(names or map(str, first["loc"][:1]))
    match first["type"]:
        case "unexpected_keyword_argument":
            known = [name for name in allowed if name != first["loc"][0]]
            return f"{key}: {target.__name__} has no such key{close_match(first['loc'][0], known)}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{key} is missing"
        case "value_error":
            return f"{key.rstrip('.')}: {first['ctx']['error']}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}={first['input']}: {message}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(":")
