"""How a run stands, and who is at work on it: what its folder says beside the numbers.

Imports no torch: a process that is interrupted before that is there leaves nothing behind, either.
"""

import json
import logging
import math
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal

from filelock import FileLock, Timeout

from .files import write_json
from .validation import UserError

log = logging.getLogger(__name__)

SUMMARY = "summary.json"
STATUS = "status.json"
Status = Literal["running", "finished", "interrupted", "diverged", "failed"]

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a run folder; the lock dies with its owner.

    Raises UserError where another one is in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no run folder")
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is at work on this run") from error
    try:
        yield
    finally:
        lock.release()


def discard(folder: Path) -> None:
    """Removes a run folder that no run was made of, and that nobody is about to make one of."""
    if not folder.is_dir() or {file.name for file in folder.iterdir()} - {_LOCK}:
        return
    try:
        with locked(folder):
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()
    except UserError:
        return


def write_status(folder: Path, status: Status, why: str | None = None) -> None:
    """How a run stands, for whoever comes after; a full disk is no reason to end otherwise."""
    try:
        write_json(folder / STATUS, {"status": status, "why": why})
    except OSError as error:
        log.warning("%s cannot be written: %s", folder / STATUS, error)


class Standing:
    """How each of several runs stands, on the disk at every moment. A context manager.

    Entering says that all are running; leaving, that those are interrupted of which nothing else
    was said, or failed where an exception ends it.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._running = list(folders)

    def __enter__(self) -> "Standing":
        for folder in self._running:
            write_status(folder, "running")
        return self

    def says(self, folder: Path, status: Status, why: str | None = None) -> None:
        self._running.remove(folder)
        write_status(folder, status, why)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed = isinstance(error, Exception)  # no signal
        for folder in self._running:
            write_status(
                folder, "failed" if failed else "interrupted", str(error) if failed else None
            )


def read_status(folder: Path) -> Status | None:
    """None where nothing, or nothing that can be read, is said."""
    try:
        status = json.loads((folder / STATUS).read_bytes())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return status if isinstance(status, str) else None


def score(folder: Path) -> float | None:
    """The ELBO that a search maximises; of a finished run, from its summary.

    That of the best epoch on validation images; where none are held out, that of the training
    images at the end. Of replicas, the mean. None where it is no number, or none that can be read.
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
