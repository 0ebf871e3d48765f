"""The failed jobs of a sweep: each job records its failure, and the sweep reports all of them.

Jobs may run in other processes or on other machines, so a failure is a file in the sweep's folder.
Each time a sweep is started, it writes its records to a new folder. No record is ever removed,
because several processes may share the folder of a sweep. This module imports no torch, so that
`--help` is fast.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vae.cli.overrides import override
from vae.runs.folder import REPLICAS, empty_folders, find_runs
from vae.runs.status import read_status
from vae.utils.commands import script_command, tensorboard_command
from vae.utils.files import write_json
from vae.utils.stdout import print_or_raise, terminal_width


class JobFailure(NamedTuple):
    """Why a job of a sweep failed."""

    status: int  # the exit status that the job would have had outside a sweep
    why: str
    overrides: list[str]


class OutputFolder(Callback):
    """A Hydra callback that remembers in which folder this process has started a run or a sweep.

    At the end of a sweep, it removes the folder if the sweep has created it and no run is in it,
    as with `resume=`.
    """

    sweep: ClassVar[Path | None] = None
    """The folder of the sweep; None in a process that has started no sweep, such as a worker."""

    keeps_empty_folder: ClassVar[bool] = False
    """Whether the folder of this process's job is kept although it is empty, as it was before."""

    _records: ClassVar[Path]

    def __init__(self, failed: str) -> None:
        """Take the folder for the records of failed jobs: the same in every worker of a sweep."""
        self._failed = failed
        self._sweep_existed = False
        self._folders_to_keep: list[str] = []  # the workers receive it with a copy of the callback

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that this process runs a single job."""
        OutputFolder.sweep = None
        with suppress(OmegaConfBaseException):  # Hydra reports it when it creates the folder
            if Path(config.hydra.run.dir).exists():
                self._folders_to_keep = [os.path.abspath(config.hydra.run.dir)]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the folder of the sweep, empty folders in it, and the folder of its records."""
        OutputFolder.sweep = Path(config.hydra.sweep.dir).absolute()
        self._sweep_existed = OutputFolder.sweep.exists()
        self._folders_to_keep = empty_folders(OutputFolder.sweep)
        OutputFolder._records = Path(self._failed).absolute()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note whether an empty folder of the job was there before."""
        OutputFolder.keeps_empty_folder = config.hydra.runtime.output_dir in self._folders_to_keep

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove the sweep's folder if it holds nothing but Hydra's multirun.yaml."""
        folder = OutputFolder.sweep
        if folder is None or self._sweep_existed or not folder.is_dir():
            return
        if {file.name for file in folder.iterdir()} == {"multirun.yaml"}:
            with suppress(OSError):  # another process may write to the folder
                (folder / "multirun.yaml").unlink()
                folder.rmdir()


def failed_jobs_folder() -> Path:
    """Return the folder for the records of failed jobs, in any process of the sweep.

    It exists as soon as a job has failed.
    """
    hydra_config = HydraConfig.get()
    folder = hydra_config.callbacks["output_folder"]["failed"]
    return Path(hydra_config.runtime.cwd) / folder


def record_failure(failure: JobFailure) -> None:
    """Write the record of the job of this process.

    Raises:
        OSError: The folder of the sweep cannot be written to.
    """
    records = failed_jobs_folder()
    records.mkdir(parents=True, exist_ok=True)
    write_json(records / f"{HydraConfig.get().job.num}.json", failure._asdict())


def read_failures() -> dict[int, JobFailure]:
    """Return the failed jobs of the sweep that this process has started, by number."""
    if OutputFolder.sweep is None:
        return {}
    files = OutputFolder._records.glob("*.json")
    failures = {int(file.stem): JobFailure(**json.loads(file.read_bytes())) for file in files}
    return dict(sorted(failures.items()))


def command_that_resumes(folder: Path) -> str:
    """Return the command that resumes the sweep of this process in its folder."""
    words = sys.argv[1:]
    if not any(word.startswith(("sweep=", "hydra.sweep.dir=")) for word in words):
        in_outputs = folder.parent == Path("outputs").absolute()
        key, value = ("sweep", folder.name) if in_outputs else ("hydra.sweep.dir", str(folder))
        words = [*words, override(key, value)]
    return script_command("train.py", *words)


def print_comparison(folder: Path) -> None:
    """Print the table of a sweep's runs, and write their means over seeds for TensorBoard.

    The numbers are those that training has reported. Nothing is printed if fewer than two runs
    have finished. The means are written if runs differ in their seed alone.

    Raises:
        OutputClosed: The table cannot be printed.
        UserError, OSError: A run cannot be read, or the means cannot be written.
    """
    runs = [run for run in find_runs(folder) if read_status(run) == "finished"]
    if len(runs) < 2:
        return
    from vae.comparison.collect import collect_reported
    from vae.comparison.columns import group_layout, render_short
    from vae.comparison.means import write_means
    from vae.comparison.table import DEFAULT_SELECTION, compare, group_table

    evaluate = script_command("evaluate.py", folder)
    comparisons = compare(collect_reported(runs))
    layouts = {
        title: group_layout(group_table(comparison, DEFAULT_SELECTION, comparison.labels()[0]))
        for title, comparison in comparisons.items()
        if comparison.labels()
    }
    table = render_short(layouts, terminal_width(), f"All columns: {evaluate} --columns all")
    hints = [f"Run folders: {folder}/*", f"To compare them: {evaluate}"]
    hints += [f"To look at them: {tensorboard_command(folder)}"]
    print_or_raise("\n".join(["", table, "", *hints]))
    # Replicas have written their means themselves.
    replicas = {run for run in runs if (run.parent / REPLICAS).exists()}
    separate = compare(collect_reported(run for run in runs if run not in replicas))
    if any(comparison.runs["run", "group"].duplicated().any() for comparison in separate.values()):
        write_means(separate, folder / "means")
