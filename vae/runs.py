"""Run folders, found and measured: each is rebuilt from what it holds, and nothing else."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd

from . import checkpoint, configuration, run_folder
from .checkpoint import WHICH, Which
from .comparison import Run, title
from .data import DataSet, Split, digest, fixed_draw
from .environment import ENVIRONMENT
from .evaluation import bounds
from .files import write_json
from .probe import linear_probe
from .run_state import SUMMARY, read_status
from .tracking import METRICS
from .validation import UserError

log = logging.getLogger(__name__)

CACHE = "evaluation.json"

_FORMAT = 2  # of the cache: to be raised with every change of what is measured
_ENDED = {"finished": "finished", "diverged": "diverged"}  # all others are yet to end


def find(path: Path) -> list[Path]:
    """Every run folder at or below the path, sorted."""
    return sorted(Path(at) for at, _, files in os.walk(path) if run_folder.CONFIG in files)


class Library:
    """Data sets, each read once, with what identifies the images that were measured on."""

    def __init__(self, root: str | None = None) -> None:
        self._root = root
        self._read: dict[str, tuple[DataSet, str]] = {}

    def get(self, config: run_folder.Config) -> tuple[DataSet, str]:
        """The data set of a run's configuration, and a digest of it. Raises UserError."""
        key = str(config.data)
        if key not in self._read:
            data = run_folder.load_data(config, self._root)
            self._read[key] = data, digest(data)
        return self._read[key]


def evaluated(
    folder: Path, library: Library, importance_samples: int | None, configs: Path
) -> Run:
    """A run with all that is measured of its best and its last model, cached in its folder.

    The bound is at as many samples as are asked for, or as the run itself was to have. The cache
    holds as long as checkpoints, images and settings are what they were. On the CPU, with the same
    noise for every run. Raises UserError.
    """
    config = run_folder.read_config(folder)
    data, images = library.get(config)
    importance_samples = importance_samples or config.get("importance_samples", 100)
    there = [which for which in WHICH if checkpoint.exists(folder, which)]
    asked = {
        "format": _FORMAT,
        "images": images,
        "importance_samples": importance_samples,
        "models": {which: checkpoint.digest(folder, which) for which in there},
    }
    cached = _read_json(folder / CACHE)
    measured = cached.get("measured")
    if cached.get("asked") != asked or not _is_measured(measured, there):
        measured = _measure(folder, there, data, importance_samples)
        _keep(folder / CACHE, {"asked": asked, "measured": measured})
    summary, status = _read_json(folder / SUMMARY), read_status(folder)
    return Run(
        folder=str(folder),
        data=title(data, importance_samples),
        method=configuration.method(config, configs),
        settings=configuration.settings(config, configs),
        seed=config.seed,
        status=_ENDED.get(status, "unfinished") if status or not summary else "finished",
        measured=measured,
        objective=_last_objective(folder),
        steps=_number(summary.get("steps")),
        seconds=_number(summary.get("seconds")),
        made_with=_made_with(_read_json(folder / ENVIRONMENT)),
    )


def metrics(folder: Path) -> pd.DataFrame:
    """metrics.jsonl, a row a line; empty where there is none yet. Raises UserError.

    A last line that is still being written is left out.
    """
    file = folder / METRICS
    try:
        *lines, rest = file.read_bytes().split(b"\n")
        table = pd.DataFrame([json.loads(line) for line in lines], dtype=float)
    except FileNotFoundError:
        return pd.DataFrame()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    missing = [name for name in ("step", "objective/loss", "elbo/train") if name not in table]
    if lines and missing:
        raise UserError(f"{file} cannot be read: there is no {missing[0]} in it")
    return table


def _made_with(environment: dict[str, Any]) -> dict[str, frozenset[str]]:
    """What may tell runs of the same settings apart, by its name in the plural.

    A run that went on with something else says so, too.
    """
    kinds = {"revisions": "git", "versions of torch": "torch", "devices": "device"}
    later = environment.get("went_on")
    parts = [environment, *(later if isinstance(later, list) else ())]
    parts = [part for part in parts if isinstance(part, dict)]
    held = {
        kind: frozenset(str(part[key]) for part in parts if part.get(key))
        for kind, key in kinds.items()
    }
    return {kind: values for kind, values in held.items() if values}


def _last_objective(folder: Path) -> float | None:
    lines = metrics(folder)
    return None if lines.empty else _number(lines["objective/loss"].iloc[-1])


def _number(held: object) -> float | None:
    return held if isinstance(held, int | float) else None


def _is_measured(held: object, there: list[Which]) -> bool:
    """Whether it is what `_measure` gives, and not what is left of it."""
    return (
        isinstance(held, dict)
        and list(held) == there
        and all(isinstance(numbers, dict) and "elbo" in numbers for numbers in held.values())
    )


def _measure(
    folder: Path, there: list[Which], data: DataSet, importance_samples: int
) -> dict[Which, dict[str, float | None]]:
    seen = Split(fixed_draw(data, data.train), data.train.labels)  # as the test images are drawn

    def numbers(which: Which) -> dict[str, float | None]:
        model = run_folder.load(folder, which)
        probe = linear_probe(model, seen, data.test)._asdict()
        return bounds(model, data.test.images, importance_samples) | probe

    return run_folder.of_each_step(folder, there, numbers)


def _read_json(file: Path) -> dict[str, Any]:
    """What a file holds; nothing, where it is missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _keep(file: Path, content: dict[str, Any]) -> None:
    try:
        write_json(file, content)
    except OSError as error:  # other people's runs, on a disk that is read only
        log.warning("%s cannot be written, so nothing is cached: %s", file, error)
