"""Read run folders, measure their models, and collect everything in one tidy table."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from vae.config.describe import describe_settings, method_name
from vae.config.load import SavedRun
from vae.data import DataSet, Source, Split, digest, evaluation_images
from vae.evaluation import data_title, evaluate_bounds
from vae.evaluation.probe import linear_probe
from vae.runs.folder import CONFIG, ENVIRONMENT, EVALUATION, SUMMARY
from vae.runs.status import read_status
from vae.tracking.metrics import read_metrics
from vae.training.checkpoint import Which
from vae.utils.errors import UserError
from vae.utils.files import read_json, write_json

log = logging.getLogger(__name__)

Numbers = dict[str, float | None]
"""The measured numbers of one model, by name; None if a number cannot be computed."""

_FORMAT = 2  # of evaluation.json; to be raised whenever something else is measured
_PARTS = ("run", "setting", "measured", "made_with")
_MADE_WITH = {"revisions": "git", "versions of torch": "torch", "devices": "device"}


class DataCache:
    """Data sets, each read once, with the digest of its images."""

    def __init__(self, root: str | None = None) -> None:
        """Take a torchvision root to read from; by default each run's own root is used."""
        self._root = root
        self._data_sets: dict[Source, tuple[DataSet, str]] = {}

    def get(self, run: SavedRun) -> tuple[DataSet, str]:
        """Return the data set that a run was trained on, and the digest of its images.

        Raises:
            UserError: The data set cannot be read.
        """
        source = run.source(self._root)
        if source not in self._data_sets:
            data = run.data(self._root)
            self._data_sets[source] = data, digest(data)
        return self._data_sets[source]


def collect(
    folders: Iterable[Path],
    data_cache: DataCache,
    importance_samples: int | None = None,
    on_error: Callable[[Path, UserError | OSError], None] | None = None,
) -> pd.DataFrame:
    """Return one row per run and model, the best model of a run before its last one.

    A run without a saved model has one row. Models are measured on the CPU, with the same noise
    for every run; the numbers are cached in the run folder until a checkpoint, the images or the
    number of samples changes.

    Args:
        folders: Run folders.
        data_cache: Where data sets are read.
        importance_samples: Samples of the importance-weighted bound; by default as many as the
            configuration of each run says.
        on_error: Receives the folder and the error if a run cannot be read. The run is then left
            out.

    Returns:
        A table with two levels of columns, empty if there is no run:

        - `run`: folder, data (title), method, seed, status (finished, diverged or unfinished),
          training_objective (mean over the last epoch), steps, seconds, model (best or last)
        - `setting`: all settings by their dotted keys; None if a run has no such key
        - `measured`: all numbers of the model by their names, bounds in nats per image
        - `made_with`: revisions, versions of torch and devices, as sets

    Raises:
        UserError, OSError: A run cannot be read, and there is no `on_error`.
    """

    def measure(run: SavedRun) -> tuple[str, dict[Which, Numbers]]:
        data, images_digest = data_cache.get(run)
        samples = importance_samples or run.values.get("importance_samples", 100)
        if not isinstance(samples, int) or samples < 1:
            raise UserError(
                f"{run.folder / CONFIG}: importance_samples={samples!r} is not a whole number of "
                "1 or more"
            )
        return data_title(data, samples), _measure_or_load(run, data, images_digest, samples)

    return _collect(folders, measure, on_error)


def collect_reported(folders: Iterable[Path]) -> pd.DataFrame:
    """Return the table of `collect` with the numbers that training has reported.

    Neither images nor models are read. The numbers are the test bounds in summary.json.

    Args:
        folders: Folders of finished runs. A run whose summary.json is damaged has no numbers.

    Raises:
        UserError, OSError: A run cannot be read.
    """

    def read(run: SavedRun) -> tuple[str, dict[Which, Numbers]]:
        summary = read_json(run.folder / SUMMARY)
        # Runs of version 0.1.0 have no title. Their settings of the data keep data sets apart.
        return str(summary.get("title", run.values["data"])), summary.get("test", {})

    return _collect(folders, read)


def _collect(
    folders: Iterable[Path],
    measure: Callable[[SavedRun], tuple[str, dict[Which, Numbers]]],
    on_error: Callable[[Path, UserError | OSError], None] | None = None,
) -> pd.DataFrame:
    """Return the table of runs; `measure` returns the title of the data and the numbers."""
    rows: list[dict[str, dict[str, Any]]] = []
    for folder in folders:
        try:
            rows += _read_run(folder, measure)
        except (UserError, OSError) as error:
            if on_error is None:
                raise
            on_error(folder, error)
    # Python objects, because a missing number would turn the integers of its column into floats.
    parts = {part: pd.DataFrame([row[part] for row in rows], dtype=object) for part in _PARTS}
    parts["setting"] = parts["setting"][_merge_orders(list(row["setting"]) for row in rows)]
    table = pd.concat(parts, axis="columns")
    return table.where(table.notna(), None)


def _merge_orders(lists_of_keys: Iterable[list[str]]) -> list[str]:
    """Return all keys in one order, in which a key follows the key before it in its own list."""
    merged: list[str] = []
    for keys in lists_of_keys:
        position = 0
        for key in keys:
            if key not in merged:
                merged.insert(position, key)
            position = merged.index(key) + 1
    return merged


def _read_run(
    folder: Path, measure: Callable[[SavedRun], tuple[str, dict[Which, Numbers]]]
) -> list[dict[str, dict[str, Any]]]:
    """Return the rows of one run."""
    run = SavedRun(folder)
    title, measured = measure(run)
    summary = read_json(folder / SUMMARY)
    status = read_status(folder) or ("finished" if summary else "unfinished")
    metrics = read_metrics(folder)
    facts = {
        "folder": str(folder),
        "data": title,
        "method": method_name(run.values),
        "seed": run.values["seed"],
        "status": status if status in ("finished", "diverged") else "unfinished",
        "training_objective": None if metrics.empty else metrics["objective/loss"].iloc[-1],
        "steps": _number_or_none(summary.get("steps")),
        "seconds": _number_or_none(summary.get("seconds")),
    }
    shared: dict[str, dict[str, Any]] = {
        "setting": describe_settings(run.values, run.total_steps()),
        "made_with": _made_with(read_json(folder / ENVIRONMENT)),
    }
    return [
        {"run": facts | {"model": model}, "measured": numbers, **shared}
        for model, numbers in measured.items() or [(None, {"elbo": None})]
    ]


def _measure_or_load(
    run: SavedRun, data: DataSet, images_digest: str, importance_samples: int
) -> dict[Which, Numbers]:
    """Return the numbers of each saved model: those in evaluation.json, if they are valid."""
    models = run.saved_models()
    file = run.folder / EVALUATION
    key = {
        "format": _FORMAT,
        "images": images_digest,
        "importance_samples": importance_samples,
        "models": {which: run.checkpoint(which)["digest"] for which in models},
    }
    cached = read_json(file)
    if cached.get("asked") == key and _is_complete(cached.get("measured"), models):
        return cached["measured"]
    # The probe is trained on images that are binarised like the test images.
    train = Split(evaluation_images(data, data.train), data.train.labels)

    def measure(which: Which) -> Numbers:
        model = run.model(which)
        bounds = evaluate_bounds(model, data.test.images, importance_samples)
        return bounds | linear_probe(model, train, data.test)._asdict()

    measured = run.measure_models(models, measure)
    try:
        write_json(file, {"asked": key, "measured": measured})
    except OSError as error:  # the runs of other people, or a disk that is read only
        log.warning("%s cannot be written, so nothing is cached: %s", file, error)
    return measured


def _is_complete(measured: object, models: list[Which]) -> bool:
    """Return whether the content of a cache has numbers for each model."""
    return (
        isinstance(measured, dict)
        and list(measured) == models
        and all(isinstance(numbers, dict) and "elbo" in numbers for numbers in measured.values())
    )


def _made_with(environment: dict[str, Any]) -> dict[str, frozenset[str]]:
    """Return revisions, versions and devices; several if a run was resumed with others."""
    resumed = environment.get("went_on")
    parts = [environment, *(resumed if isinstance(resumed, list) else ())]
    return {
        name: frozenset(
            str(part[key]) for part in parts if isinstance(part, dict) and part.get(key)
        )
        for name, key in _MADE_WITH.items()
    }


def _number_or_none(value: object) -> float | None:
    return value if isinstance(value, int | float) else None
