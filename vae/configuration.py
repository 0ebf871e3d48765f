"""What a configuration says of its run: what it is called, how long it is, what was chosen."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import published  # noqa: F401  # option files ask for what was published
from .data import Source
from .instantiate import build
from .training import Training
from .validation import UserError


def total_steps(config: DictConfig) -> int:
    """How many steps a configuration asks for. Raises UserError."""
    training, source = build(config, "training", Training), build(config, "data", Source)
    try:
        return training.total_steps(source.train_size)
    except ValueError as error:
        raise UserError(f"training.{error}") from error


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


def settings(config: DictConfig, configs: Path) -> dict[str, bool | str | float | int]:
    """All keys of a run's configuration on one level; groups by the names of their options.

    `training.steps` is how many the run has, whether they were asked for or follow from epochs.
    """
    asked = flat(OmegaConf.to_container(config, resolve=True))
    return asked | chosen(config, configs) | {"training.steps": total_steps(config)}


def method(config: DictConfig, configs: Path) -> str:
    """What a run is called in comparisons: its estimator, or an objective that goes without."""
    names = chosen(config, configs)
    return names.get("estimator", names["objective"])


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


@cache
def option_names(configs: Path, group: str) -> dict[str, str]:
    """The options of a group, and what each builds: yaml names and their `_target_`."""
    files = sorted((configs / group).glob("*.yaml"))
    return {file.stem: OmegaConf.load(file).get("_target_") for file in files}
