"""Check what may change when a run is resumed, and whether a folder holds the same run."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae.config.describe import flatten
from vae.config.load import read_config, total_steps
from vae.runs.folder import CONFIG, REPLICAS, first_foreign_file
from vae.utils.errors import UserError

COMMAND_KEYS = ("resume", "sweep", "on_failure")
"""Keys of the command, which are not a part of the configuration of a run."""

_MAY_ALWAYS_CHANGE = ("device", "data.root", "data.mirror", "training.capture")
_LENGTH = ("training.epochs", "training.steps")
_MAY_CHANGE = (*_LENGTH, *_MAY_ALWAYS_CHANGE)


def resumed_config(folder: Path, composed: DictConfig, overrides: list[str]) -> DictConfig:
    """Return a run's own configuration with the changes that the command line asks for.

    The run may become longer. Its schedules keep their length, so a cosine stays at its end value
    for the added steps.

    Args:
        folder: A run folder, or a folder of replicas.
        composed: The configuration that the command line describes.
        overrides: The overrides on the command line.

    Raises:
        UserError: The folder is not a run folder, or an override may not change.
    """
    name = REPLICAS if (folder / REPLICAS).exists() else CONFIG
    config = OmegaConf.create(read_config(folder, name))
    for override in overrides:
        key = override.partition("=")[0]
        if key in _MAY_CHANGE:
            OmegaConf.update(config, key, OmegaConf.select(composed, key))
        elif key not in COMMAND_KEYS:
            allowed = ", ".join(_MAY_CHANGE)
            raise UserError(f"{key} cannot change when a run is resumed; only {allowed} can")
    return config


def holds_complete_run(folder: Path, name: str, values: dict[str, Any], steps: int) -> bool:
    """Check that a folder holds no other run; return whether it holds this run at full length.

    A folder that is empty, or that holds a shorter part of the run, gives False.

    Args:
        folder: A folder, which may be empty.
        name: CONFIG for a run, REPLICAS for the configuration of several replicas.
        values: The configuration.
        steps: The number of steps of the run.

    Raises:
        UserError: The folder holds another run, or a longer one, or files that are not of a run.
    """
    other_name = {CONFIG: REPLICAS, REPLICAS: CONFIG}[name]
    if (folder / other_name).exists():
        content = {CONFIG: "replicas", REPLICAS: "a single run"}[name]
        raise UserError(f"{folder} holds another run: its {other_name} describes {content}")
    if not (folder / name).exists():
        foreign = first_foreign_file(folder)
        if foreign is not None:
            raise UserError(
                f"{foreign} would be overwritten, and no {name} says that it belongs to a run; "
                "choose another folder"
            )
        return False
    saved_values = read_config(folder, name)
    additional_steps = steps - total_steps(saved_values)
    saved, asked = flatten(saved_values), flatten(values)
    for key in dict.fromkeys([*saved, *asked]):
        old, new = saved.get(key), asked.get(key)
        may_differ = key in _MAY_ALWAYS_CHANGE or (key in _LENGTH and additional_steps >= 0)
        if old != new and not may_differ:
            kind = "a longer" if key in _LENGTH else "another"
            raise UserError(f"{folder} holds {kind} run: its {key} is {old}, not {new}")
    return additional_steps == 0
