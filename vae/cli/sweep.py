"""The failed jobs of a sweep: each job records its failure, and the sweep reports all of them.

Jobs may run in other processes or on other machines, so a failure is a file in the sweep's folder.
This module imports no torch, so that `--help` is fast.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vae.utils.files import write_json

FAILURES_FOLDER = "failed"
"""The folder of the records, in the sweep's folder."""


class JobFailure(NamedTuple):
    """Why a job of a sweep failed."""

    status: int  # the exit status that the job would have had outside a sweep
    why: str
    overrides: list[str]


class SweepFailures(Callback):
    """A Hydra callback that remembers the folder of the sweep that this process has started.

    At the start of a sweep, it removes the records of an earlier sweep in the same folder. At the
    end, it removes the folder if no run is in it, as with `resume=`.
    """

    folder: ClassVar[Path | None] = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget the sweep's folder: this process runs a single job."""
        SweepFailures.folder = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep's folder, and remove old records."""
        SweepFailures.folder = Path(config.hydra.sweep.dir)
        shutil.rmtree(SweepFailures.folder / FAILURES_FOLDER, ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove the sweep's folder if it holds nothing but Hydra's multirun.yaml."""
        folder = Path(config.hydra.sweep.dir)
        if folder.is_dir() and {file.name for file in folder.iterdir()} == {"multirun.yaml"}:
            with suppress(OSError):  # another process may write to the folder
                (folder / "multirun.yaml").unlink()
                folder.rmdir()


def record_failure(sweep: Path, job: int, failure: JobFailure) -> None:
    """Write the record of a failed job into the sweep's folder.

    Raises:
        OSError: The folder cannot be written to.
    """
    (sweep / FAILURES_FOLDER).mkdir(exist_ok=True)
    write_json(sweep / FAILURES_FOLDER / f"{job}.json", failure._asdict())


def read_failures() -> dict[int, JobFailure]:
    """Return the failed jobs of the sweep that this process has started, by number."""
    if SweepFailures.folder is None:
        return {}
    files = (SweepFailures.folder / FAILURES_FOLDER).glob("*.json")
    failures = {int(file.stem): JobFailure(**json.loads(file.read_bytes())) for file in files}
    return dict(sorted(failures.items()))


def override_that_resumes(folder: Path) -> str:
    """Return the override with which the same command resumes a sweep."""
    has_default_parent = folder.parent.name == "outputs"
    return f"sweep={folder.name}" if has_default_parent else f"hydra.sweep.dir={folder}"
