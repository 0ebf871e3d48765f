"""Describe a run by its configuration: its method, and all settings on one level."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

Setting = bool | str | float | int

OPTIONS = Path(__file__).parents[2] / "configs"
"""The folder of the option files."""


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Setting]:
    """Return a resolved configuration on one level, by dotted keys.

    Lists become strings, and nulls are left out. A group's `_target_` is stored under the name of
    the group, as its class name: `estimator: StraightThrough`.
    """
    level: dict[str, Setting] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            level |= flatten(value, f"{prefix}{key}.")
        elif key == "_target_":
            level[prefix.rstrip(".")] = value.rpartition(".")[2]
        elif value is not None:
            level[prefix + key] = str(value) if isinstance(value, list) else value
    return level


def describe_settings(values: dict[str, Any], total_steps: int) -> dict[str, Setting]:
    """Return all settings of a run on one level, with the option names of estimator and objective.

    Args:
        values: The run's configuration.
        total_steps: The number of its steps, which replaces `training.steps` (a limit, or null).
    """
    return flatten(values) | _chosen_options(values) | {"training.steps": total_steps}


def method_name(values: dict[str, Any]) -> str:
    """Return the name of a run's estimator, or of its objective if that takes no estimator."""
    names = _chosen_options(values)
    return names.get("estimator", names["objective"])


@cache
def option_targets(group: str) -> dict[str, str]:
    """Return the options of a group, and the class that each of them builds."""
    files = sorted((OPTIONS / group).glob("*.yaml"))
    return {file.stem: OmegaConf.select(OmegaConf.load(file), "_target_") for file in files}


def _chosen_options(values: dict[str, Any]) -> dict[str, str]:
    """Return the option names of a run's objective and estimator.

    If no option builds the class, or more than one does, the name of the class is returned.
    """
    groups = [group for group in ("objective", "estimator") if values.get(group) is not None]
    names = {}
    for group in groups:
        target = values[group]["_target_"]
        fits = [name for name, built in option_targets(group).items() if built == target]
        names[group] = fits[0] if len(fits) == 1 else target.rpartition(".")[2]
    return names
