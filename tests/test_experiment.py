"""Each file of a run folder is read once when a run is resumed, evaluated or compared."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY, compose_config
from vae import experiment
from vae.comparison.collect import DataCache, collect
from vae.config.build import build_experiment
from vae.experiment import run_experiment

pytestmark = pytest.mark.usefixtures("float32")

CountReads = Callable[[Path], Counter[str]]

CHECKPOINTS = ["best.pt", "best.previous.pt", "last.pt", "last.previous.pt"]


@pytest.fixture
def run(tmp_path) -> Path:
    """Return the folder of a finished run of two epochs."""
    train(tmp_path / "run", "training.steps=80")
    return tmp_path / "run"


def train(folder: Path, *overrides: str) -> None:
    run_experiment(build_experiment(compose_config(*TINY, *overrides)), folder)


def checkpoint_reads(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in CHECKPOINTS if name in counts}


def test_each_checkpoint_is_read_once_to_resume_and_once_to_evaluate(
    run, file_reads: CountReads, monkeypatch
):
    reads_before_training = []
    plain_train = experiment.train

    def note_and_train(*arguments: Any) -> Any:
        reads_before_training.append(file_reads(run))
        return plain_train(*arguments)

    monkeypatch.setattr(experiment, "train", note_and_train)
    train(run, "training.epochs=3", "training.steps=120")
    (before,) = reads_before_training
    assert checkpoint_reads(before) == {"last.pt": 1, "last.previous.pt": 1}
    after = checkpoint_reads(file_reads(run))
    # In training, best.pt is read to see whether it is newer than last.pt.
    assert after == {"last.pt": 2, "last.previous.pt": 1, "best.pt": 2}


def test_comparing_a_run_reads_each_of_its_files_once(run, file_reads: CountReads):
    table = collect([run], DataCache())
    assert len(table) == 2  # the best model and the last one
    counts = file_reads(run)
    assert {"config.yaml", "best.pt", "last.pt"} <= set(counts)
    assert set(counts.values()) == {1}


def test_table_at_the_end_of_training_fits_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    train(tmp_path / "run", "training.steps=2")
    table, _, hints = capsys.readouterr().out.partition("Run folder: ")
    assert hints
    assert max(map(len, table.splitlines())) <= 60
    headings = next(line for line in table.splitlines() if line.startswith("model"))
    assert headings.split() == ["model", "ELBO", "IW", "bound", "log", "p(x)", "rate"]
    named = " ".join(table.split())
    assert "No room for: distortion, ELBO of the mode, perplexity" in named
    assert named.endswith("summary.json has all numbers.")
