"""Losses and weights that are not finite: the run stops, or skips the step."""

import math

import pytest
import torch

from tests.helpers import adam, pattern_data, pattern_objective, train_alone, weights
from vae.objective import NegativeELBO, Terms
from vae.training import Diverged, checkpoint

pytestmark = pytest.mark.usefixtures("float32")


class NanAtStep4(NegativeELBO):
    """An objective whose loss is nan at step 4."""

    def __init__(self) -> None:
        plain = pattern_objective()
        super().__init__(plain.model, plain.estimator)

    def forward(self, x: torch.Tensor, step: int) -> Terms:
        terms = super().forward(x, step)
        return terms._replace(loss=terms.loss * math.nan) if step == 4 else terms


def test_the_message_names_the_step_the_schedules_and_the_largest_logit(tmp_path):
    with pytest.raises(
        Diverged, match="not finite at step 1 of epoch 1: lr 1e.30, .*largest logit"
    ):
        train_alone(tmp_path, pattern_objective(beta=3e38), pattern_data(), adam(1e30))


def test_a_nan_loss_ends_the_run_before_the_weights_are_updated(tmp_path):
    objective = NanAtStep4()
    with pytest.raises(Diverged, match=r"at step 4 of epoch 2: .*last.pt is of step 3"):
        train_alone(tmp_path, objective, pattern_data())
    assert all(parameter.isfinite().all() for parameter in objective.parameters())
    assert checkpoint.load(tmp_path, "last")["step"] == 3


def test_a_step_with_a_nan_loss_can_be_skipped_and_is_counted(tmp_path):
    _, lines = train_alone(tmp_path, NanAtStep4(), pattern_data(), on_nan="skip")
    assert [line.get("objective/skipped", 0) for line in lines] == [0, 1, 0]
    assert all(math.isfinite(value) for line in lines[:1] + lines[2:] for value in line.values())
    assert math.isfinite(lines[1]["objective/loss"]) and math.isfinite(lines[1]["elbo/train"])


def test_if_every_loss_is_finite_skipping_changes_nothing(tmp_path):
    stopping, skipping = pattern_objective(), pattern_objective()
    train_alone(tmp_path / "stop", stopping, pattern_data())
    train_alone(tmp_path / "skip", skipping, pattern_data(), on_nan="skip")
    assert torch.equal(weights(stopping), weights(skipping))


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_huge_logits_give_finite_metrics(tmp_path, factor):
    objective = pattern_objective()
    with torch.no_grad():
        objective.model.encoder[-1].weight.mul_(factor)
    _, lines = train_alone(tmp_path, objective, pattern_data(), adam(1e-4))
    assert all(math.isfinite(value) for line in lines for value in line.values())
