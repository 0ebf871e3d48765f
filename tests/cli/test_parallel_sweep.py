"""Sweeps whose runs are trained at the same time: how many, what is shown, and their table."""

import fcntl
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import joblib
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tests.helpers import ROOT, TINY, read_json, read_scalars, run_script
from vae.cli import progress
from vae.cli import train as command
from vae.cli.progress import Display, LogReporter, SweepProgress, interrupt_jobs
from vae.cli.sweep import OutputFolder
from vae.config import resolvers
from vae.config.resolvers import parallel_jobs
from vae.utils.progress import ReportedBar, progress_bar
from vae.utils.signals import interrupt_worker

SHORT = [*TINY, "training.steps=3", "tracking.projected=0"]

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def cores(monkeypatch) -> Callable[..., None]:
    """Set the cores, the free gigabytes and the GPU that the resolver sees."""

    def change(count: int, gigabytes: float = 100, gpu: bool = False) -> None:
        monkeypatch.setattr(joblib, "cpu_count", lambda: count)
        monkeypatch.setattr(resolvers, "available_memory", lambda: int(gigabytes * 2**30))
        monkeypatch.setattr(resolvers, "_has_gpu", lambda: gpu)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    return change


def test_each_core_trains_a_run(cores):
    cores(16)
    assert parallel_jobs("auto", None) == 16
    assert parallel_jobs("auto", 1) == 1  # a search, whose next run depends on the last one
    assert parallel_jobs("auto", 20) == 16


def test_runs_share_a_small_memory(cores):
    cores(16, gigabytes=3.5)
    assert parallel_jobs("cpu", None) == 3
    cores(16, gigabytes=0.5)
    assert parallel_jobs("cpu", None) == 1


@pytest.mark.parametrize(("threads", "jobs"), [("4", 4), ("32", 1), ("x", 16), ("0", 16)])
def test_the_threads_that_the_user_chooses_count(cores, monkeypatch, threads, jobs):
    cores(16)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert parallel_jobs("cpu", None) == jobs


def test_a_gpu_is_used_by_one_run_at_a_time(cores):
    cores(16, gpu=True)
    assert parallel_jobs("auto", None) == parallel_jobs("cuda", None) == 1
    assert parallel_jobs("cpu", None) == 16


def test_runs_are_trained_at_the_same_time_and_compared(tmp_path):
    words = ["-m", "seed=0,1,-1", "estimator=straight_through", "sweep=mine", *SHORT]
    status, output, errors = run_script("train.py", *words, cwd=tmp_path, threads=None)
    assert status == 2  # one seed is wrong, which does not end the other runs
    assert errors.startswith("train.py: job 2 (seed=-1): seed=-1: ") and errors.count("\n") == 1
    sweep = tmp_path / "outputs/mine"
    (record,) = sweep.glob("failed/*/2.json")
    assert "seed=-1" in read_json(record)["overrides"]
    runs = sorted(file.parent for file in sweep.glob("*/environment.json"))
    assert len(runs) == 2
    if joblib.cpu_count() > 1:
        assert {read_json(run / "environment.json")["threads"] for run in runs} == {1}
        ends = re.findall(r"^\[(\d)/3\] (\S+): ([^,]+), ", output, re.MULTILINE)
        assert sorted(number for number, _, _ in ends) == ["1", "2", "3"]
        results = {name: result for _, name, result in ends}
        assert "failed" in results.values()
        for run in runs:
            elbo = next(iter(read_json(run / "summary.json")["test"].values()))["elbo"]
            assert results[run.name] == f"test ELBO {elbo:.2f}"
        assert f"{runs[0].name}: epoch 1/2, ELBO train" in output
        assert re.search(r"^[123] of 3 runs have ended, \d\d:\d\d left$", output, re.MULTILINE)
    table = output.partition("in nats per image")[2]
    assert re.search(r"^straight_through +2 +-[\d.]+ ± ", table, re.MULTILINE)
    assert "evaluate.py outputs/mine\n" in table and "--logdir outputs/mine\n" in table
    means = read_scalars(sweep / "means/straight_through")["elbo/valid"]
    last = [read_scalars(run)["elbo/valid"][-1][1] for run in runs]
    assert means[-1][1] == pytest.approx(sum(last) / 2)


def test_a_job_goes_on_if_its_reports_cannot_be_written(tmp_path, monkeypatch):
    report = LogReporter(tmp_path / "removed/0.log")
    report.emit(logging.makeLogRecord({"msg": "epoch %d", "args": (1,)}))
    monkeypatch.setattr(ReportedBar, "report", tmp_path / "removed/0.json")
    with progress_bar(total=2, initial=0) as bar:
        bar.update()
    (tmp_path / "removed").mkdir()
    report.emit(logging.makeLogRecord({"msg": "epoch %d of ü \udcff", "args": (2,)}))
    assert (tmp_path / "removed/0.log").read_bytes().decode() == "epoch 2 of ü \\udcff\n"


def sweep_config(workers: int = 2, jobs: int = 3, **config: object) -> DictConfig:
    """Return what the callbacks of Hydra receive of a sweep, or of its first job."""
    hydra = {
        "launcher": {"_target_": "joblib", "n_jobs": workers},
        "sweeper": {"n_trials": jobs},
        "job": {"num": 0},
        "runtime": {"cwd": "/home", "output_dir": "/home/outputs/run"},
    }
    return OmegaConf.create({"hydra": hydra, "resume": None, **config})


@pytest.fixture
def callback(tmp_path, monkeypatch) -> Iterator[SweepProgress]:
    """Return the callback, whose changes to this process are undone."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(OutputFolder, "sweep", None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(ReportedBar, "report", None)
    monkeypatch.setattr(SweepProgress, "job_file", None)
    monkeypatch.setattr(SweepProgress, "job", {})
    yield SweepProgress()
    progress.close_display()


def test_no_more_processes_are_started_than_there_are_jobs(callback):
    for jobs in (5, 3, 1):
        config = sweep_config(workers=4, jobs=jobs)
        callback.on_multirun_start(config)
        assert config.hydra.launcher.n_jobs == min(jobs, 4)
        assert (SweepProgress.display is not None) == (jobs > 1)
        callback.on_multirun_end(config)


@pytest.mark.parametrize("chosen, threads", [(None, "1"), ("3", "3")])
def test_each_process_has_the_threads_that_the_user_chooses(
    callback, monkeypatch, chosen, threads
):
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    callback.on_multirun_start(sweep_config())
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == threads


def test_joblib_on_one_core_prints_what_the_jobs_print(callback, monkeypatch):
    """It runs the jobs in the process of the sweep."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    stdout = sys.stdout
    config = sweep_config(workers=-1)
    callback.on_multirun_start(config)
    callback.on_job_start(config)
    assert SweepProgress.display is None and sys.stdout is stdout
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    "resume, folder",
    [(None, "/home/outputs/run"), ("old/a", "/home/old/a"), ("/old/a", "/old/a"), (7, "/home/7")],
)
def test_a_job_reports_the_folder_in_which_it_works(callback, tmp_path, resume, folder):
    callback.on_multirun_start(sweep_config())
    callback.on_job_start(sweep_config(resume=resume))
    assert read_json(SweepProgress.job_file)["folder"] == folder


@pytest.fixture
def display(tmp_path, monkeypatch) -> Iterator[Display]:
    """Start the display of a sweep of three jobs, whose reports are in a folder."""
    (tmp_path / "reports").mkdir()
    monkeypatch.setattr(OutputFolder, "sweep", None)
    monkeypatch.setattr(SweepProgress, "display", Display(tmp_path / "reports", 3))
    yield SweepProgress.display
    progress.close_display()


def report_job(reports: Path, number: int, **content: object) -> None:
    """Write what a job reports about itself."""
    job = {"folder": f"run{number}", "began": 0.0, **content}
    (reports / f"{number}.job").write_text(json.dumps(job))


def test_lines_of_a_job_that_are_not_unicode_are_shown(display, tmp_path, capsys):
    (tmp_path / "reports/0.log").write_bytes(b"epoch \xc3\xbc \xff\n")
    report_job(tmp_path / "reports", 0, process=11)
    progress.close_display()
    assert "run0: epoch ü \ufffd\n" in capsys.readouterr().out


def test_a_job_whose_first_report_was_lost_is_shown_at_its_end(callback, capsys):
    callback.on_multirun_start(sweep_config())
    stdout = sys.stdout
    callback.on_job_start(sweep_config())
    sys.stdout = stdout
    SweepProgress.job_file.unlink()
    callback.on_job_end(sweep_config(), job_return=None)
    progress.close_display()
    assert "[1/3] run: not started" in capsys.readouterr().out


def test_an_incomplete_report_does_not_end_the_display(display, tmp_path, capsys):
    (tmp_path / "reports/0.job").write_text('{"ended": 1.0, "interrupted": false}')
    report_job(tmp_path / "reports", 1, ended=1.0, interrupted=False)
    progress.close_display()
    assert "[1/3] run1: not started" in capsys.readouterr().out


def test_only_processes_with_a_running_job_are_interrupted(display, tmp_path, monkeypatch):
    """A worker that has no job yet would end at once, and joblib would kill all others."""
    report = partial(report_job, tmp_path / "reports")
    end = {"ended": 1.0, "interrupted": True}
    interrupted = []

    def interrupt(process: int) -> None:
        interrupted.append(process)
        if process == 12:  # meanwhile, a worker has begun its next job
            report(2, process=13)
        report(process - 11, process=process, **end)

    monkeypatch.setattr(progress, "interrupt_worker", interrupt)
    report(0, process=11, **end)
    report(1, process=12)
    interrupt_jobs()
    assert interrupted == [12, 13]
    interrupt_jobs()  # a second signal
    assert interrupted == [12, 13]


def test_a_worker_that_is_interrupted_outside_training_ends_its_job(tmp_path, monkeypatch):
    """The default effect of the signal would be that joblib kills all other workers."""
    hydra_config = SimpleNamespace(
        mode=RunMode.MULTIRUN,
        runtime=SimpleNamespace(cwd=str(tmp_path), output_dir=str(tmp_path / "run")),
        overrides=SimpleNamespace(task=[]),
    )
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra_config)
    monkeypatch.setattr(OutputFolder, "sweep", None)
    monkeypatch.setattr(OutputFolder, "keeps_empty_folder", False)
    monkeypatch.setattr(command, "_train", lambda *arguments: interrupt_worker(os.getpid()))
    monkeypatch.setattr(command, "end_worker", sys.exit)
    monkeypatch.setattr(command, "_is_joblib_worker", lambda: True)
    handler = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    try:
        with pytest.raises(SystemExit) as end:
            command.job.__wrapped__(OmegaConf.create({"resume": None, "on_failure": "continue"}))
    finally:
        signal.signal(signal.SIGUSR2, handler)
    assert end.value.code == 128 + signal.SIGUSR2
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(joblib.cpu_count() < 2, reason="needs two cores")
def test_a_terminal_shows_each_run_and_the_whole_sweep(tmp_path):
    words = ["-m", "seed=0,1", "sweep=mine", *TINY, "training.steps=null", "training.epochs=6"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    terminal, stream = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 90, 0, 0))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=stream,
        stderr=stream,
    )
    os.close(stream)
    screen = b""
    while True:
        try:
            screen += os.read(terminal, 2**16)
        except OSError:  # Linux reports the end of a terminal so
            break
    assert process.wait() == 0, screen
    text = screen.decode()
    assert re.search(
        r"straight_through_gumbel_2x4_seed1\w*, epoch \d/6, ELBO -\d+\.\d\d, \d+ s", text
    )
    assert re.search(r"[01] of 2 runs have ended +\d+%\|[^|]*\| 00:\d\d, 00:\d\d left", text)
    assert "images/s" not in text  # what a run logs is for other places than a terminal
    assert "[2/2] straight_through_gumbel_2x4_seed" in text
    assert text.index("[2/2]") < text.index("in nats per image")


def test_a_sweep_can_stop_at_its_first_failure(script, tmp_path):
    words = ["estimator=exact", "estimator.limit=100,10,101", "sweep=mine", *SHORT]
    status, output, errors = script("train.py", "-m", *words, "on_failure=stop", cwd=tmp_path)
    assert status == 2
    assert errors.startswith("train.py: job 1 (estimator.limit=10): estimator: Exact enumerates")
    assert output.count("not started, because another run of the sweep has failed") == 1
    runs = list((tmp_path / "outputs/mine").glob("*/status.json"))
    assert len(runs) == 1
    status, _, errors = script("train.py", "-m", *words, cwd=tmp_path)
    assert status == 2 and len(list((tmp_path / "outputs/mine").glob("*/status.json"))) == 2
    status, _, errors = script("train.py", "-m", *words, "on_failure=no", cwd=tmp_path)
    assert status == 2 and "on_failure=no: choose continue or stop" in errors
    status, _, errors = script("train.py", *SHORT, "on_failure=stop", cwd=tmp_path)
    assert status == 2 and "on_failure=stop has no effect without -m" in errors
