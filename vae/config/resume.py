"""What may change when a run is resumed, and whether a folder holds the run that is asked for."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae.config.describe import flatten
from vae.config.load import read_config, total_steps
from vae.runs.folder import CONFIG, REPLICAS
from vae.utils.errors import UserError

LOCATION_KEYS = ("resume", "sweep")
"""Keys that say where a run is, and nothing about the run."""

_NO_EFFECT_ON_RESULTS = ("device", "data.root", "data.mirror", "training.capture")
_LENGTH = ("training.epochs", "training.steps")
_MAY_CHANGE = (*_LENGTH, *_NO_EFFECT_ON_RESULTS)


def resumed_config(folder: Path, composed: DictConfig, overrides: list[str]) -> DictConfig:
    """Return a run's own configuration with the changes that the command line asks for.

    The run may become longer; its schedules stay as they are.

    Args:
        folder: A run folder, or a folder of replicas.
        composed: The configuration that the command line describes.
        overrides: The overrides on the command line.

    Raises:
        UserError: The folder is no run folder, or an override may not change.
    """
    name = REPLICAS if (folder / REPLICAS).exists() else CONFIG
    config = OmegaConf.create(read_config(folder, name))
    for override in overrides:
        key = override.partition("=")[0]
        if key in _MAY_CHANGE:
            OmegaConf.update(config, key, OmegaConf.select(composed, key))
        elif key not in LOCATION_KEYS:
            allowed = ", ".join(_MAY_CHANGE)
            raise UserError(f"{key}: resume takes everything but {allowed} from the run itself")
    return config


def holds_same_run(folder: Path, name: str, values: dict[str, Any]) -> bool:
    """Return whether a folder holds the run that a configuration describes, at the same length.

    Args:
        folder: A folder, which may be empty.
        name: CONFIG for a run, REPLICAS for the configuration of several replicas.
        values: The configuration.

    Raises:
        UserError: The folder holds another run, or a longer one.
    """
    other_name = {CONFIG: REPLICAS, REPLICAS: CONFIG}[name]
    if (folder / other_name).exists():
        raise UserError(f"{folder} holds another run: it has a {other_name}, and no {name}")
    if not (folder / name).exists():
        return False
    saved_values = read_config(folder, name)
    additional_steps = total_steps(values) - total_steps(saved_values)
    saved, asked = flatten(saved_values), flatten(values)
    for key in dict.fromkeys([*saved, *asked]):
        old, new = saved.get(key), asked.get(key)
        may_differ = key in _NO_EFFECT_ON_RESULTS or (key in _LENGTH and additional_steps >= 0)
        if old != new and not may_differ:
            raise UserError(f"{folder} holds another run: its {key} is {old}, and not {new}")
    return additional_steps == 0
