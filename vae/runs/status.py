"""What a run folder says about the state of its run: status.json, and the score for a search.

Imports no torch, for the reason that vae.runs.folder gives.
"""

import json
import logging
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal

from vae.runs.folder import STATUS, SUMMARY
from vae.utils.files import read_json, write_json

log = logging.getLogger(__name__)

Status = Literal["running", "finished", "interrupted", "diverged", "failed"]


def write_status(folder: Path, status: Status, reason: str | None = None) -> None:
    """Write the status of a run. If the disk is full, log a warning and go on."""
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
    after an exception) for every run that has not been given another status.
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
        """Write how the remaining runs ended."""
        for folder in self._running:
            if isinstance(exception, Exception):  # a signal is a BaseException only
                write_status(folder, "failed", str(exception))
            else:
                write_status(folder, "interrupted")


def score(folder: Path) -> float | None:
    """Return the ELBO that a search maximises, from the summary of a finished run.

    The score is the validation ELBO of the best epoch. If no images are held out, it is the ELBO
    of the training images at the end. For replicas, it is their mean. The score is None if it is
    not finite or cannot be read.
    """
    summaries = [folder / SUMMARY]
    if not summaries[0].exists():
        summaries = list(folder.glob(f"*/{SUMMARY}"))
    try:
        elbos = []
        for file in summaries:
            summary = json.loads(file.read_bytes())
            elbos.append(
                summary["best_elbo"] if summary["best_epoch"] else summary["train"]["elbo"]
            )
        mean = statistics.fmean(elbos)
        return mean if math.isfinite(mean) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
