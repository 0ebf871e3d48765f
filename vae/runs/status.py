"""The status of a run, status.json, and the score of a finished run for a search.

This module imports no torch, for the reason that `vae.runs.folder` gives.
"""

import json
import logging
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from vae.runs.folder import STATUS, SUMMARY
from vae.utils.files import read_json, write_json

log = logging.getLogger(__name__)

Status = Literal["running", "finished", "interrupted", "diverged", "failed"]


def write_status(folder: Path, status: Status, reason: str | None = None) -> None:
    """Write the status of a run. If it cannot be written, log a warning and continue."""
    try:
        write_json(folder / STATUS, {"status": status, "why": reason})
    except OSError as error:
        log.warning("%s cannot be written: %s", folder / STATUS, error)


def read_status(folder: Path) -> str | None:
    """Return the status of a run, or None if it is missing or cannot be read."""
    status = read_json(folder / STATUS).get("status")
    return status if isinstance(status, str) else None


class RunStatus:
    """A context manager that keeps the status files of several runs up to date.

    On entry, it writes 'running' for every run. On exit, it writes 'interrupted' (or 'failed',
    after an exception) for every run that has no final status. After a normal exit, no such run
    should be left: the caller gives each run its final status with `set`.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        """Take the folders of the runs."""
        self._running = list(folders)

    def __enter__(self) -> "RunStatus":
        """Write 'running' for every run."""
        for folder in self._running:
            write_status(folder, "running")
        return self

    def set(self, folder: Path, status: Status, reason: str | None = None) -> None:
        """Write the final status of one run."""
        self._running.remove(folder)
        write_status(folder, status, reason)

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the final status of the remaining runs."""
        for folder in self._running:
            if isinstance(exception, Exception):  # a signal is a BaseException only
                write_status(folder, "failed", str(exception))
            else:
                write_status(folder, "interrupted")


def score(folder: Path) -> float | None:
    """Return the ELBO that a search maximises, from the summary of a finished run.

    The score is the validation ELBO of the best epoch. If no images are held out, it is the ELBO
    of the training images at the end. The score of replicas is the mean of their scores. The score
    is None if it is not finite or cannot be read.
    """
    return _mean_of_summaries(
        folder, lambda run: run["best_elbo"] if run["best_epoch"] else run["train"]["elbo"]
    )


def reported_test_elbo(folder: Path) -> float | None:
    """Return the test ELBO of a finished run, in nats per image.

    It is that of the best model, or of the last one if there is no best model. For replicas, it is
    the mean over the replicas. It is None if it is not finite or cannot be read.
    """
    return _mean_of_summaries(folder, lambda run: next(iter(run["test"].values()))["elbo"])


def _mean_of_summaries(folder: Path, number: Callable[[dict[str, Any]], float]) -> float | None:
    """Return the mean of a number in the summaries of a run, or of the replicas in a folder."""
    summary_file = folder / SUMMARY
    files = [summary_file] if summary_file.exists() else folder.glob(f"*/{SUMMARY}")
    try:
        mean = statistics.fmean(number(json.loads(file.read_bytes())) for file in files)
        return mean if math.isfinite(mean) else None
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
