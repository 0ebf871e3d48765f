"""The training loop with one run, on a tiny data set of 4 x 4 pictures."""

import math

import pytest
import torch

from tests.helpers import adam, pattern_data, pattern_objective, train_alone, weights
from vae.estimators import Exact, StraightThrough
from vae.optimizers import Adam
from vae.schedules import Linear
from vae.training import checkpoint

pytestmark = pytest.mark.usefixtures("float32")


def test_pictures_and_evaluation_do_not_change_training(tmp_path):
    plain, with_pictures = pattern_objective(), pattern_objective()
    _, plain_lines = train_alone(tmp_path / "plain", plain, pattern_data())
    _, lines = train_alone(
        tmp_path / "pictures", with_pictures, pattern_data(), pictures_every=1, train_images=7
    )
    losses, plain_losses = (
        [line["objective/loss"] for line in of_run] for of_run in (lines, plain_lines)
    )
    assert losses == plain_losses
    assert torch.equal(weights(plain), weights(with_pictures))


def test_training_improves_the_elbo(tmp_path):
    _, lines = train_alone(tmp_path, pattern_objective(Exact(limit=64)), pattern_data(), epochs=60)
    assert lines[-1]["elbo/train"] > lines[0]["elbo/train"] + 4
    assert lines[-1]["elbo/train"] <= 0


def test_training_steps_end_the_run_within_an_epoch(tmp_path):
    result, lines = train_alone(tmp_path, pattern_objective(), pattern_data(), epochs=5, steps=4)
    assert (result.steps, result.epochs) == (4, 2)
    assert [line["step"] for line in lines] == [3, 4]


def test_schedules_follow_the_global_step(tmp_path):
    temperature = Linear(start=1.0, end=0.1, steps=9)
    lr = Linear(start=1e-2, end=0.0, steps=9)
    beta = Linear(start=0.0, end=1.0, steps=9)
    objective = pattern_objective(StraightThrough(temperature=temperature), beta)
    _, lines = train_alone(tmp_path, objective, pattern_data(), adam(lr))
    for line in lines:
        for name, schedule in {"temperature": temperature, "lr": lr, "beta": beta}.items():
            assert line[f"schedule/{name}"] == pytest.approx(schedule(line["step"]))
    assert [line["step"] for line in lines] == [3, 6, 9]


def test_a_learning_rate_of_zero_leaves_the_weights_unchanged(tmp_path):
    objective = pattern_objective()
    before = weights(objective)
    train_alone(tmp_path, objective, pattern_data(), adam(0.0))
    assert torch.equal(weights(objective), before)


def test_best_has_the_best_validation_elbo_and_last_is_the_last_epoch(tmp_path):
    result, lines = train_alone(tmp_path, pattern_objective(), pattern_data(), epochs=8)
    elbos = [line["elbo/valid"] for line in lines]
    assert result.best_epoch == 1 + elbos.index(max(elbos))
    assert checkpoint.load(tmp_path, "best")["epoch"] == result.best_epoch
    assert checkpoint.load(tmp_path, "last")["epoch"] == 8


def test_without_validation_images_there_is_no_best_checkpoint(tmp_path):
    result, lines = train_alone(
        tmp_path, pattern_objective(), pattern_data(valid=0), pictures_every=1
    )
    assert result.best_epoch is None and not checkpoint.path(tmp_path, "best").exists()
    assert "elbo/valid" not in lines[0] and "latent/perplexity" in lines[0]


def test_patience_ends_training(tmp_path):
    result, lines = train_alone(
        tmp_path, pattern_objective(), pattern_data(), adam(0.0), epochs=50, patience=3
    )
    assert result.best_epoch == 1 and result.epochs == len(lines) == 4


def test_clipping_bounds_the_length_of_the_update(tmp_path):
    """A gradient step with learning rate 1 is exactly as long as its clipped gradient."""

    class GradientDescent(Adam):
        def build(self, parameters):
            return torch.optim.SGD(parameters, lr=1.0)

    objective = pattern_objective()
    before = weights(objective)
    optimizer = GradientDescent(lr=1.0, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)
    _, lines = train_alone(tmp_path, objective, pattern_data(), optimizer, clip=1e-3, steps=1)
    assert (weights(objective) - before).norm() == pytest.approx(1e-3, rel=1e-3)
    assert lines[0]["gradient/norm"] > 1e-2


def test_bf16_is_used_in_the_networks_only(tmp_path):
    objective = pattern_objective()
    _, lines = train_alone(tmp_path, objective, pattern_data(), precision="bf16")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(parameter.dtype == torch.float32 for parameter in objective.parameters())
    assert objective.model.precision is None  # evaluation is in float32


def test_a_data_set_with_redrawn_pixels_can_be_trained_on(tmp_path):
    data = pattern_data(redraw=True)
    data.train.images.fill_(128)
    _, lines = train_alone(tmp_path, pattern_objective(), data)
    assert all(math.isfinite(line["elbo/train"]) for line in lines)
