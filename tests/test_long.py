"""Long runs: what a process holds does not grow with its steps, nor with its jobs."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = [
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


def held() -> tuple[float, int]:
    """Resident memory in MB, and open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6, len(os.listdir("/proc/self/fd"))


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", *TINY, *words])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        assert exit.value.code == 0, capsys.readouterr().err

    return call


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_does_not_grow_with_the_steps(train, monkeypatch):
    import vae.trainee

    seen, real = [], vae.trainee.evaluate

    def watched(*given):
        seen.append(held())
        return real(*given)

    monkeypatch.setattr(vae.trainee, "evaluate", watched)
    train("training.epochs=100", "hydra.run.dir=run")  # 200 steps an epoch, two measurements
    assert len(seen) == 200
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 20_000
    early, late = seen[40], seen[-1]
    assert late[0] - early[0] < 20  # MB over 16,000 steps: 1.3 kB a step
    assert late[1] == early[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_does_not_grow_with_the_jobs(train):
    train("training.steps=50", "seed=0,1", "sweep=first", "-m")
    before = held()
    train("training.steps=50", "seed=0,1,2,3,4,5,6,7,8,9", "sweep=second", "-m")
    after = held()
    assert after[0] - before[0] < 60  # MB over ten jobs
    assert after[1] <= before[1] + 1
