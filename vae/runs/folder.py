"""The files of a run folder, the lock that one process holds on it, and finding run folders.

This module imports no torch. Importing torch takes seconds, and a process that is interrupted
meanwhile still has to remove the empty folder that Hydra has created for it.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vae.utils.errors import UserError

log = logging.getLogger(__name__)

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

# The files that a run overwrites, apart from its status, which it writes before its configuration.
_OVERWRITTEN = (
    *(METRICS, SUMMARY, ENVIRONMENT, EVALUATION),
    *("best.pt", "last.pt", "best.previous.pt", "last.previous.pt"),
)


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a run folder. The lock is released when the context or the process ends.

    Args:
        folder: An existing folder.
        wait: Wait while another process has locked the folder. If that process removes the folder,
            it is created again.

    Raises:
        UserError: The folder does not exist, or another process has locked it and `wait` is false.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise UserError(f"{folder}: another process is using this run folder") from error
        log.info("%s: waiting for another process, which is using this run folder", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_if_empty(folder: Path) -> None:
    """Remove a run folder that holds only its lock file, unless another process holds the lock."""
    if not folder.is_dir() or {file.name for file in folder.iterdir()} - {_LOCK}:
        return
    try:
        with locked(folder):
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()
    except (UserError, OSError):  # it is in use, or a link, or another process has removed it
        return


def empty_folders(path: Path) -> list[str]:
    """Return the absolute path of each folder at or below a path that holds nothing but a lock."""
    return [
        os.path.abspath(folder)
        for folder, subfolders, files in os.walk(path)
        if not subfolders and set(files) <= {_LOCK}
    ]


def first_foreign_file(folder: Path) -> Path | None:
    """Return the first file that a new run in this folder would overwrite; None without one."""
    return next((folder / name for name in _OVERWRITTEN if (folder / name).exists()), None)


def find_runs(path: Path, on_error: Callable[[OSError], None] | None = None) -> list[Path]:
    """Return every run folder at or below a path, sorted. Symbolic links are followed.

    A folder that is reached in several ways is returned once. A folder that holds the status, the
    summary or the metrics of a run is a run folder even if its configuration is missing.

    Args:
        path: Where to look.
        on_error: Receives the error of each folder that cannot be read, and of each link that
            leads nowhere. They are left out in any case.
    """
    found: list[Path] = []
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(path, onerror=on_error, followlinks=True):
        real_path = os.path.realpath(folder)
        if real_path in visited:
            subfolders.clear()  # perhaps a link to a folder above, which would never end
            continue
        visited.add(real_path)
        subfolders.sort()
        if not {CONFIG, STATUS, SUMMARY, METRICS}.isdisjoint(files):
            found.append(Path(folder))
        for file in (os.path.join(folder, name) for name in sorted(files)):
            if on_error and os.path.islink(file) and not os.path.exists(file):
                on_error(FileNotFoundError(errno.ENOENT, "the link leads nowhere", file))
    return sorted(found)
