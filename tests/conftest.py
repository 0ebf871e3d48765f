import io
import runpy
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch

from tests.helpers import ROOT, SERIAL, TINY, train_in
from vae.config.resolvers import register_resolvers

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pytest runs in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # on busy cores, the threads of small operations mostly wait

register_resolvers()


@pytest.fixture(autouse=True)
def _float64_and_seeded():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def float32():
    """Make float32 the default dtype, as in training."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def file_reads(monkeypatch) -> Callable[[Path], Counter[str]]:
    """Count how often files are opened to be read.

    The function that is returned gives the counts of the files in a folder, by their names.
    """
    counts: Counter[Path] = Counter()
    open_file = io.open

    def count(file: object, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(file, str | Path) and "r" in mode:
            counts[Path(file).resolve()] += 1
        return open_file(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", count)
    return lambda folder: Counter(
        {path.name: n for path, n in counts.items() if path.parent == folder.resolve()}
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Return the folder of a short sweep over two estimators and three seeds."""
    cwd = tmp_path_factory.mktemp("trained")
    choice = ["-m", "estimator=straight_through,reinforce_moving_average", "seed=0,1,2"]
    train_in(cwd, *choice, *TINY, "tracking.gradient_every=1", "hydra.sweep.dir=sweep", *SERIAL)
    return cwd / "sweep"


@pytest.fixture
def script(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs train.py or evaluate.py in this process.

    This process has already imported torch, which takes seconds. The function returns the exit
    status, the output and the errors.
    """

    def run(name: str, *words: object, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        # With so many threads for each run, the runs of a sweep are trained in this process.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.setenv(variable, str(joblib.cpu_count()))
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        printed = capsys.readouterr()
        return exit.value.code, printed.out, printed.err

    return run
