"""The display of a sweep whose jobs run in several processes of this machine.

Each job writes three files to a temporary folder: NUMBER.job says where it runs and when it began
and ended, NUMBER.json has the numbers of its progress bar, and NUMBER.log has the lines that it
logs. The process of the sweep reads these files twice a second. In a terminal, it draws a bar of
the whole sweep and a line for each running job; elsewhere, it prints the lines that the jobs log.
This module imports no torch, so that `--help` is fast.
"""

import io
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vae.cli.sweep import read_failures
from vae.runs.status import reported_test_elbo
from vae.utils.files import read_json
from vae.utils.progress import Bar, ReportedBar
from vae.utils.signals import interrupt_worker, parent_has_ended

_SECONDS = 0.5  # between two looks at the files

_GRACE = 10.0  # seconds that interrupted jobs have to save a checkpoint


class LogReporter(logging.Handler):
    """A handler that appends each line to a file.

    Errors are ignored, because no job depends on its report: something may have removed the
    temporary folder.
    """

    def __init__(self, file: Path) -> None:
        """Take the file, which is created with the first line."""
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Append the message of a record."""
        line = f"{record.getMessage()}\n".encode("utf-8", "backslashreplace")
        with suppress(OSError), self._file.open("ab") as file:
            file.write(line)


class SweepProgress(Callback):
    """A Hydra callback that limits the processes of a sweep and shows their progress."""

    display: ClassVar["Display | None"] = None
    """The display of the sweep that this process has started; None in every other process."""

    job_file: ClassVar[Path | None] = None
    """Where the job of this worker process reports; None in every other process."""

    job: ClassVar[dict[str, Any]] = {}
    """What the job of this worker process has reported about itself."""

    def __init__(self) -> None:
        """Report nothing until `on_multirun_start` has chosen a folder for the reports."""
        self._reports: str | None = None  # the workers receive it with a copy of the callback

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start the display if jobs will run in several processes, and limit these processes.

        There are at most as many processes as jobs, because joblib starts all of them at once.
        Unless OMP_NUM_THREADS is set, each job has one thread.
        """
        launcher = config.hydra.launcher
        if "joblib" not in launcher._target_ or launcher.n_jobs == 0:  # joblib refuses 0
            return
        import joblib

        workers = joblib.effective_n_jobs(launcher.n_jobs)
        jobs = _count_jobs(config) if workers > 1 else 1
        launcher.n_jobs = min(workers, jobs)
        if launcher.n_jobs == 1:  # joblib runs the jobs in this process
            return
        # Without these variables joblib would divide the cores among the processes. Torch prefers
        # the second one.
        threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("MKL_NUM_THREADS", threads)
        self._reports = tempfile.mkdtemp(prefix="sweep-")
        SweepProgress.display = Display(Path(self._reports), jobs)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Let a job in a worker process report instead of printing."""
        if self._reports is None:
            return
        reports, number = Path(self._reports), config.hydra.job.num
        ReportedBar.report = reports / f"{number}.json"
        folder = config.hydra.runtime.output_dir
        if config.resume is not None:
            folder = os.path.join(config.hydra.runtime.cwd, str(config.resume))
        SweepProgress.job_file = reports / f"{number}.job"
        SweepProgress.job = {"folder": folder, "began": time.time(), "process": os.getpid()}
        _write_json(SweepProgress.job_file, SweepProgress.job)
        handler = LogReporter(reports / f"{number}.log")
        in_terminal = sys.stderr is not None and sys.stderr.isatty()  # None: it is closed
        handler.setLevel(logging.WARNING if in_terminal else logging.INFO)
        logging.getLogger().handlers = [handler]
        sys.stdout = io.StringIO()  # nothing that the job prints is shown

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Report that the job of a worker process has ended."""
        _report_end()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """End the display."""
        close_display()


def end_worker(status: int) -> NoReturn:
    """End this worker process after its job was interrupted, or before it begins another job.

    If a worker ends, joblib kills the other workers at once. Therefore this worker stays alive
    until the parent kills it or has ended, but at most ten seconds. The parent first waits for the
    checkpoints of all jobs.
    """
    _report_end(interrupted=True)
    end = time.monotonic() + _GRACE
    while time.monotonic() < end and not parent_has_ended():
        time.sleep(0.1)
    os._exit(status)


def interrupt_jobs() -> None:
    """Interrupt the jobs of this process's workers, and wait until each has saved a checkpoint.

    The wait ends after ten seconds. Without workers this function returns at once. It also does so
    after a second signal, so that the caller can end the sweep without waiting.
    """
    display = SweepProgress.display
    if display is None or display.interrupted:
        return
    display.interrupted = True
    interrupted: set[int] = set()
    end = time.monotonic() + _GRACE
    while time.monotonic() < end and (workers := display.working_processes()):
        for worker in workers - interrupted:
            interrupt_worker(worker)
        interrupted |= workers
        time.sleep(0.05)


def _report_end(interrupted: bool = False) -> None:
    """Report that the job of this worker process has ended. A second report changes nothing."""
    file = SweepProgress.job_file
    if file is not None:
        if "ended" not in SweepProgress.job:
            SweepProgress.job |= {"ended": time.time(), "interrupted": interrupted}
        _write_json(file, SweepProgress.job)


def close_display() -> None:
    """End the display of this process, if it has one. Repeated calls do no harm."""
    display, SweepProgress.display = SweepProgress.display, None
    if display is not None:
        display.close()


def _count_jobs(config: DictConfig) -> int:
    """Return how many jobs a sweep has."""
    trials = OmegaConf.select(config, "hydra.sweeper.n_trials")
    if trials is not None:
        return int(trials)
    words = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*words, *config.hydra.overrides.task])
    sweeps = {
        override.get_key_element(): len(list(override.sweep_string_iterator()))
        for override in overrides
        if override.is_discrete_sweep()
    }
    return math.prod(sweeps.values())


class Display:
    """Shows, in a separate thread, what the jobs of a sweep report, until it is closed."""

    def __init__(self, reports: Path, jobs: int) -> None:
        """Take the folder of the reports, which is removed in the end, and the number of jobs."""
        tqdm.set_lock(threading.RLock())  # the default outlives a killed process
        self._reports, self._jobs = reports, jobs
        self.interrupted = False  # whether the jobs were asked to end
        self._began = time.time()
        # By the number of a job:
        self._ended: set[int] = set()
        self._lines_shown: dict[int, int] = {}
        self._bars: dict[int, Bar] = {}
        self._whole: Bar = tqdm(
            total=jobs,
            disable=None,
            dynamic_ncols=True,
            leave=False,
            smoothing=0,  # the time left follows from the average speed
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show what was reported last, and remove the bars and the reports."""
        self._closed.set()
        self._thread.join()
        for bar in (*self._bars.values(), self._whole):
            bar.close()
        shutil.rmtree(self._reports, ignore_errors=True)

    def working_processes(self) -> set[int]:
        """Return the ids of the processes whose job has begun and not ended."""
        jobs = map(read_json, self._reports.glob("*.job"))
        return {job["process"] for job in jobs if "process" in job and "ended" not in job}

    def _run(self) -> None:
        while not self._closed.wait(_SECONDS):
            self._update()
        self._update()

    def _update(self) -> None:
        """Read all reports, and show what is new."""
        ended_before = len(self._ended)
        done = initially_done = 0.0  # the sum of the finished shares of all jobs
        for file in sorted(self._reports.glob("*.job"), key=lambda file: int(file.stem)):
            job, progress = read_json(file), read_json(file.with_suffix(".json"))
            if "folder" not in job:  # it is being written, or the disk is full
                continue
            number, name = int(file.stem), Path(job["folder"]).name
            self._show_lines(number, name, file.with_suffix(".log"))
            total = progress.get("total") or 1
            start = progress.get("initial", 0) / total
            if "ended" in job:
                done += 1
                # A job that an earlier command finished trains nothing, and has no progress.
                initially_done += start if progress else 1
                if number not in self._ended and not job["interrupted"]:
                    self._ended.add(number)
                    self._show_end(number, name, job)
            elif progress:
                done += progress["n"] / total
                initially_done += start
                self._show_progress(number, name, progress)
        self._whole.n, self._whole.initial = done, initially_done
        self._whole.set_description_str(f"{len(self._ended)} of {self._jobs} runs have ended")
        if self._whole.disable and len(self._ended) > ended_before and done > initially_done:
            seconds = (time.time() - self._began) * (self._jobs - done) / (done - initially_done)
            left = tqdm.format_interval(seconds)
            self._print(f"{len(self._ended)} of {self._jobs} runs have ended, {left} left")

    def _show_progress(self, number: int, name: str, progress: dict[str, Any]) -> None:
        if self._whole.disable:
            return
        if number not in self._bars:
            self._bars[number] = tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False)
        texts = [name, *([progress["text"]] if progress["text"] else [])]
        if progress["n"] == progress["total"]:
            texts.append("evaluating")
        elif progress["rate"] is not None:
            texts.append(f"{progress['rate']:.0f} steps/s")
        self._bars[number].set_description_str(", ".join(texts))

    def _show_lines(self, number: int, name: str, log_file: Path) -> None:
        """Print the lines that a job has logged since they were printed last."""
        with suppress(OSError):
            *lines, _ = log_file.read_text("utf-8", "replace").split("\n")
            for line in lines[self._lines_shown.get(number, 0) :]:
                self._print(f"{name}: {line}")
            self._lines_shown[number] = len(lines)

    def _show_end(self, number: int, name: str, job: dict[str, Any]) -> None:
        """Print how a job ended, and remove its line from the display."""
        bar = self._bars.pop(number, None)
        if bar is not None:
            bar.close()
        elbo = reported_test_elbo(Path(job["folder"]))
        if number in read_failures():
            result = "failed"
        else:
            state = "finished" if Path(job["folder"]).exists() else "not started"
            result = state if elbo is None else f"test ELBO {elbo:.2f}"
        seconds = tqdm.format_interval(job["ended"] - job["began"])
        self._print(f"[{len(self._ended)}/{self._jobs}] {name}: {result}, {seconds}")

    def _print(self, text: str) -> None:
        with suppress(OSError):  # stdout is closed, or the disk is full
            if self._whole.disable:
                print(text, flush=True)
            else:
                self._whole.write(text)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file. An error is ignored, because no job depends on its report."""
    with suppress(OSError):
        file.write_text(json.dumps(content))
