"""How a run stands, and who is at work on it: what its folder says beside the numbers."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from .files import write_atomically
from .tracking import SUMMARY
from .validation import UserError

log = logging.getLogger(__name__)

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
    """Removes a run folder that no run was made of."""
    if folder.is_dir() and {file.name for file in folder.iterdir()} <= {_LOCK}:
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


def write_status(folder: Path, status: Status, why: str | None = None) -> None:
    """How a run stands, for whoever comes after; a full disk is no reason to end otherwise."""
    try:
        content = json.dumps({"status": status, "why": why}, indent=2) + "\n"
        write_atomically(folder / STATUS, content.encode())
    except OSError as error:
        log.warning("%s cannot be written: %s", folder / STATUS, error)


def read_status(folder: Path) -> Status | None:
    """None where nothing, or nothing that can be read, is said."""
    try:
        return json.loads((folder / STATUS).read_bytes())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def score(folder: Path) -> float | None:
    """The ELBO that a search maximises; of a finished run, from its summary.

    That of the best epoch on validation images; where none are held out, that of the training
    images at the end. None where it is no number, or none that can be read.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        elbo = summary["best_elbo"] if summary["best_epoch"] else summary["train"]["elbo"]
        return elbo if math.isfinite(elbo) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
