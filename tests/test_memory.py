"""Long processes: memory and the number of open files do not grow with steps or jobs."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import read_json
from vae.training import monitor

SMALL = [
    "data=mnist_5k",
    "model=linear",
    "latents=2",
    "categories=3",
    "training.batch_size=20",
    "tracking.train_images=100",
    "tracking.pictures_every=0",
    "tracking.projected=0",
    "importance_samples=1",
]

RunTrain = Callable[..., tuple[int, str, str]]
"""Runs train.py in this process; returns the exit status, the output and the errors."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("float32"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc"),
]


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def train(script, tmp_path) -> RunTrain:
    return partial(script, "train.py", *SMALL, cwd=tmp_path)


def test_memory_does_not_grow_with_the_number_of_steps(train, tmp_path, monkeypatch):
    memory, files = [], []
    evaluate = monitor.evaluate

    def measure_and_evaluate(*arguments: object) -> object:
        memory.append(resident_megabytes())
        files.append(open_files())
        return evaluate(*arguments)

    monkeypatch.setattr(monitor, "evaluate", measure_and_evaluate)
    status, _, errors = train("training.epochs=100", "hydra.run.dir=run")  # 200 steps per epoch
    assert status == 0, errors
    assert len(memory) == 200  # two evaluations per epoch
    assert read_json(tmp_path / "run/summary.json")["steps"] == 20_000
    assert memory[-1] - memory[40] < 20  # MB in 16,000 steps: 1.3 kB per step
    assert files[-1] == files[40]


def test_memory_does_not_grow_with_the_number_of_jobs(train):
    status, _, errors = train("training.steps=50", "seed=0,1", "sweep=first", "-m")
    assert status == 0, errors
    memory, files = resident_megabytes(), open_files()
    status, _, errors = train("training.steps=50", "seed=range(10)", "sweep=second", "-m")
    assert status == 0, errors
    assert resident_megabytes() - memory < 60  # MB in ten jobs
    assert open_files() <= files + 1
