"""`+debug=fast` and `+debug=overfit`, and `evaluate.py` without arguments."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from tests.helpers import TINY, read_json
from vae.config.resolvers import temporary_folder
from vae.data import elbo_without_code

pytestmark = pytest.mark.usefixtures("float32")

SMALL = [word for word in TINY if not word.startswith(("training", "tracking", "importance"))]


def test_a_fast_run_takes_one_step_and_writes_everything_elsewhere(script, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    cwd = tmp_path / "here"
    cwd.mkdir()
    status, output, errors = script("train.py", "+debug=fast", *SMALL, cwd=cwd)
    assert (status, errors) == (0, "")
    assert list(cwd.iterdir()) == []
    (run,) = Path(temporary_folder()).iterdir()
    assert run.is_relative_to(tmp_path / "temporary")
    assert f"Run folder: {run}" in output
    assert read_json(run / "summary.json")["steps"] == 1
    names = {file.name.split(".")[0] for file in run.iterdir()}
    assert {"best", "last", "metrics", "projector_config", "status", "summary"} <= names


def test_each_user_of_a_machine_has_a_temporary_folder(monkeypatch):
    mine = temporary_folder()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert temporary_folder() != mine


def test_a_model_must_fit_one_batch(script, tmp_path):
    words = ["+debug=overfit", *SMALL, "training.batch_size=10", "importance_samples=2"]
    status, output, errors = script("train.py", *words, "hydra.run.dir=good", cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert "first 10 training images, test, 10 images" in " ".join(output.split())
    assert output.splitlines()[-1].startswith("The model fits the batch: its ELBO is above -")
    assert read_json(tmp_path / "good/summary.json")["steps"] == 1000
    words += ["optimizer.lr=1e-9", "training.epochs=1", "hydra.run.dir=poor"]
    status, output, errors = script("train.py", *words, cwd=tmp_path)
    assert status == 1
    assert errors.startswith("train.py: last (epoch 1) does not fit the batch: its ELBO is not")
    # The numbers of the run are those of the batch also when it is read again.
    status, output, errors = script("evaluate.py", "good", cwd=tmp_path)
    assert status == 0 and "first 10 training images, test, 10" in " ".join(output.split())


def test_the_best_elbo_without_a_code_is_that_of_the_mean_pixels():
    images = torch.tensor([[0, 255, 51], [0, 255, 255]], dtype=torch.uint8)
    pixels = images.double() / 255
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        nll = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.expand(2, 3), pixels, reduction="none"
        )
        nll.sum(1).mean().backward()
        return nll.sum(1).mean()

    value = optimizer.step(loss)
    assert elbo_without_code(images) == pytest.approx(-loss().item(), abs=1e-4)
    assert value > -elbo_without_code(images)


def test_evaluate_takes_the_newest_run_by_default(script, tmp_path):
    status, _, errors = script("evaluate.py", cwd=tmp_path)
    assert status == 2 and errors == "evaluate.py: there is no run in outputs; name a run folder\n"
    words = [*TINY, "training.steps=2"]
    for name in ("b", "a"):
        folder = f"hydra.run.dir=outputs/{name}"
        assert script("train.py", *words, folder, cwd=tmp_path)[0] == 0
    status, output, errors = script("evaluate.py", "--runs", "--format=csv", cwd=tmp_path)
    assert status == 0 and errors == "The newest in outputs: outputs/a\n"
    assert "outputs/a" in output and "outputs/b" not in output
