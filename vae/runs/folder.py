"""The files of a run folder, the lock that one process holds on it, and finding run folders.

This module imports no torch. Importing torch takes seconds, and a process that is interrupted
meanwhile still has to remove the empty folder that Hydra has created for it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vae.utils.errors import UserError

CONFIG = "config.yaml"
"""The resolved configuration of a run."""

REPLICAS = "replicas.yaml"
"""The configuration of several replicas, in the folder that holds the replicas' run folders."""

METRICS = "metrics.jsonl"
"""One line of numbers per epoch."""

SUMMARY = "summary.json"
"""The test bounds of a finished run, and how long it took."""

STATUS = "status.json"
"""The status of the run: running, finished, interrupted, diverged or failed."""

ENVIRONMENT = "environment.json"
"""The versions, the revision and the device that the run was made with."""

EVALUATION = "evaluation.json"
"""The cache of `evaluate.py`."""

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder. The lock is released when the context or the process ends.

    Raises:
        UserError: The folder does not exist, or another process has locked it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    try:
        lock = FileLock(folder / _LOCK).acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is using this run folder") from error
    with lock:
        yield


def remove_if_empty(folder: Path) -> None:
    """Remove a run folder that holds only its lock file, unless another process holds the lock."""
    if not folder.is_dir() or {file.name for file in folder.iterdir()} - {_LOCK}:
        return
    try:
        with locked(folder):
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()
    except UserError:
        return


def find_runs(path: Path) -> list[Path]:
    """Return every run folder at or below a path, sorted."""
    return sorted(Path(folder) for folder, _, files in os.walk(path) if CONFIG in files)
