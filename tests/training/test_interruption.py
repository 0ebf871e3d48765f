"""A signal during training: the step is finished, the checkpoint is saved, and nothing is lost."""

import math
import os
import signal

import pytest
import torch

from tests.helpers import pattern_data, pattern_objective, train_alone, without_seconds
from vae.objective import NegativeELBO, Terms
from vae.training import Diverged, checkpoint
from vae.training.step import EagerStep
from vae.utils.signals import Interrupted

pytestmark = pytest.mark.usefixtures("float32")


class SignalAtStep(NegativeELBO):
    """An objective that sends SIGTERM to its own process at a step.

    If `nan_at` is given, the loss of that step is nan.
    """

    def __init__(self, signal_at: int | None, nan_at: int | None = None) -> None:
        plain = pattern_objective()
        super().__init__(plain.model, plain.estimator)
        self._signal_at, self._nan_at = signal_at, nan_at

    def forward(self, x: torch.Tensor, step: int) -> Terms:
        if step == self._signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        terms = super().forward(x, step)
        return terms._replace(loss=terms.loss * math.nan) if step == self._nan_at else terms


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("step", range(9))
def test_a_run_that_is_interrupted_at_any_step_ends_as_an_undisturbed_run(tmp_path, step, clip):
    """The steps include the last one of an epoch, and the last one of the run."""
    expected, expected_lines = train_alone(
        tmp_path / "undisturbed", pattern_objective(), pattern_data(), clip=clip
    )
    with pytest.raises(Interrupted):
        train_alone(tmp_path / "run", SignalAtStep(step), pattern_data(), clip=clip)
    result, lines = train_alone(tmp_path / "run", pattern_objective(), pattern_data(), clip=clip)
    assert lines == expected_lines
    assert without_seconds(result) == without_seconds(expected)


def test_an_interrupted_run_saves_no_step_after_a_nan(tmp_path, monkeypatch):
    """On a device that is not synchronised, the nan is not noticed before the signal comes."""

    def unchecked_step(*arguments: object, finite_check: str) -> EagerStep:
        assert finite_check == "loss"
        return EagerStep(*arguments)

    monkeypatch.setattr("vae.training.loop.EagerStep", unchecked_step)
    with pytest.raises(Interrupted):
        train_alone(tmp_path, SignalAtStep(5, nan_at=4), pattern_data())
    assert checkpoint.load(tmp_path, "last")["step"] == 3
    with pytest.raises(Diverged, match=r"epoch 2: .*last.pt is of step 3"):
        train_alone(tmp_path, SignalAtStep(None, nan_at=4), pattern_data())
