import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vae import published  # noqa: F401  # the resolvers of option files, for tests that compose

ROOT = Path(__file__).parents[1]
TINY = [
    "device=cpu",
    "data=mnist_5k",
    "model.networks.encoder_sizes=[16]",
    "model.networks.decoder_sizes=[16]",
    "latents=2",
    "categories=4",
    "training.epochs=2",
    "training.steps=41",
    "optimizer.lr=0.002",
    "tracking.projected=20",
    "tracking.pictures_every=1",
    "importance_samples=2",
]


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # small operations: on busy cores threads mostly wait for each other


@pytest.fixture(autouse=True)
def _float64_and_seeded():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def train_in(cwd: Path, *words: str) -> None:
    """The real command, in a process of its own, on one thread."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def written(folder: Path) -> dict[Path, int]:
    """When each file at or below a folder was, in ns; a lock is filelock's, to touch or remove."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A short sweep over two estimators and three seeds, by the real command."""
    cwd = tmp_path_factory.mktemp("trained")
    choice = ["-m", "estimator=straight_through,reinforce_moving_average", "seed=0,1,2"]
    train_in(cwd, *choice, *TINY, "tracking.gradient_every=1", "hydra.sweep.dir=sweep")
    return cwd / "sweep"


@pytest.fixture
def script(monkeypatch, capsys):
    """A door in this process, which has paid for importing torch: status, output and errors."""

    def call(name: str, *words: object, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        printed = capsys.readouterr()
        return exit.value.code, printed.out, printed.err

    return call
