"""Each file of a run folder is read once when a run is resumed, evaluated or compared."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vae
from tests.helpers import TINY, compose_config
from vae import experiment
from vae.comparison.collect import DataCache, collect
from vae.config.build import build_experiment
from vae.data import Mnist5k
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


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_a_new_run_gets_the_mean_of_its_training_images_and_a_resumed_run_keeps_it(
    tmp_path, monkeypatch, binarize
):
    overrides = ["model.output_bias=data_mean", "model.center_input=true", "seeds=2"]
    overrides += [f"data.binarize={binarize}"]
    train(tmp_path, *overrides, "training.steps=20")
    images = Mnist5k(binarize).load(torch.device("cpu")).train.images
    mean = (images.double() / 255).mean(0).float()
    before = [vae.load(tmp_path / name, "last") for name in ("seed_0", "seed_1")]
    for model in before:
        torch.testing.assert_close(model.input_mean, mean)
        torch.testing.assert_close(model.mean_logits.sigmoid(), mean.clamp(0.001, 0.999))
    monkeypatch.setattr(experiment, "pixel_means", None)  # only a new run may compute it
    train(tmp_path, *overrides, "training.steps=41")
    for name, model in zip(("seed_0", "seed_1"), before, strict=True):
        after = vae.load(tmp_path / name, "last")
        assert torch.equal(after.input_mean, model.input_mean)
        assert torch.equal(after.mean_logits, model.mean_logits)
        assert not torch.equal(after.decoder[-1].bias, model.decoder[-1].bias)


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
