"""The display of a sweep whose jobs run in several processes of this machine.

Each job writes two files to a temporary folder: the numbers of its progress bar, and the lines
that it logs. The process of the sweep reads these files twice a second. In a terminal, it draws a
bar of the whole sweep and a line for each running job; elsewhere, it prints the lines that the
jobs log. This module imports no torch, so that `--help` is fast.
"""

import io
import json
import logging
import math
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vae.cli.sweep import read_failures
from vae.runs.status import test_elbo
from vae.utils.files import read_json
from vae.utils.progress import Bar, ReportedBar

_SECONDS = 0.5  # between two looks at the files


class SweepProgress(Callback):
    """A Hydra callback that shows the progress of a sweep on several processes."""

    display: ClassVar["Display | None"] = None
    """The display of the sweep that this process has started; None in every other process."""

    def __init__(self) -> None:
        """Report nothing until `on_multirun_start` has chosen a folder for the reports."""
        self._reports: str | None = None  # the workers receive it with a copy of the callback

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start the display if jobs will run in several processes."""
        launcher = config.hydra.launcher
        if "joblib" not in launcher._target_ or launcher.n_jobs == 1:
            return
        self._reports = tempfile.mkdtemp(prefix="sweep-")
        SweepProgress.display = Display(Path(self._reports), _count_jobs(config))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Let a job in a worker process report instead of printing."""
        if self._reports is None:
            return
        reports, number = Path(self._reports), config.hydra.job.num
        ReportedBar.report = reports / f"{number}.json"
        folder = config.hydra.runtime.output_dir
        _write_line(reports / f"{number}.job", {"folder": folder, "began": time.time()})
        handler = logging.FileHandler(reports / f"{number}.log", delay=True)
        handler.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
        logging.getLogger().handlers = [handler]
        sys.stdout = io.StringIO()  # nothing that the job prints is shown

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Report that the job of a worker process has ended."""
        if self._reports is None:
            return
        file = Path(self._reports) / f"{config.hydra.job.num}.job"
        _write_line(file, read_json(file) | {"ended": time.time()})

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """End the display."""
        close_display()


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
    """Shows what the jobs of a sweep report, from a thread of its own, until it is closed."""

    def __init__(self, reports: Path, jobs: int) -> None:
        """Take the folder of the reports, which is removed in the end, and the number of jobs."""
        tqdm.set_lock(threading.RLock())  # the default outlives a killed process
        self._reports, self._jobs = reports, jobs
        self._ended: set[str] = set()
        self._lines_shown: dict[str, int] = {}
        self._bars: dict[str, Bar] = {}
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

    def _run(self) -> None:
        while not self._closed.wait(_SECONDS):
            self._update()
        self._update()

    def _update(self) -> None:
        """Read all reports, and show what is new."""
        done = initially_done = 0.0
        for file in sorted(self._reports.glob("*.job"), key=lambda file: int(file.stem)):
            job, progress = read_json(file), read_json(file.with_suffix(".json"))
            if not job:  # it is being written
                continue
            name = Path(job["folder"]).name
            self._show_lines(name, file.with_suffix(".log"))
            total = progress.get("total") or 1
            start = progress.get("initial", 0) / total
            if "ended" in job:
                done += 1
                # A job that was finished before has no progress.
                initially_done += start if progress else 1
                if name not in self._ended:
                    self._ended.add(name)
                    self._show_end(int(file.stem), name, job)
            elif progress:
                done += progress["n"] / total
                initially_done += start
                self._show_progress(name, progress)
        self._whole.n, self._whole.initial = done, initially_done
        self._whole.set_description_str(f"{len(self._ended)} of {self._jobs} runs have ended")

    def _show_progress(self, name: str, progress: dict[str, Any]) -> None:
        if self._whole.disable:
            return
        if name not in self._bars:
            self._bars[name] = tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False)
        texts = [name, progress["text"] or "epoch 1"]
        if progress["n"] == progress["total"]:
            texts.append("evaluating")
        elif progress["rate"] is not None:
            texts.append(f"{progress['rate']:.0f} steps/s")
        self._bars[name].set_description_str(", ".join(texts))

    def _show_lines(self, name: str, log_file: Path) -> None:
        """Print the lines that a job has logged since they were printed last."""
        with suppress(OSError):
            *lines, _ = log_file.read_text().split("\n")
            for line in lines[self._lines_shown.get(name, 0) :]:
                self._print(f"{name}: {line}")
            self._lines_shown[name] = len(lines)

    def _show_end(self, number: int, name: str, job: dict[str, Any]) -> None:
        """Print how a job ended, and remove its line from the display."""
        bar = self._bars.pop(name, None)
        if bar is not None:
            bar.close()
        elbo = test_elbo(Path(job["folder"]))
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


def _write_line(file: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file. An error is ignored, because no job depends on its report."""
    with suppress(OSError):
        file.write_text(json.dumps(content))
