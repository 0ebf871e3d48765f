"""Replicas in the training loop: each ends as it would alone, whatever happens to the others."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from tests.helpers import (
    ReplicaParts,
    Trained,
    adam,
    grey_pattern_data,
    pattern_data,
    pattern_objective,
    train_replicas,
    without_seconds,
)
from vae.estimators import Estimator, Exact, StraightThroughGumbel
from vae.objective import NegativeELBO, Terms
from vae.training import Diverged, TrainingResult, checkpoint
from vae.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float32")

NEVER = 10**9


class NanAtStep(NegativeELBO):
    """An objective whose loss is nan at one step.

    The step is a buffer because replicas are run with the code of the first one.
    """

    def __init__(self, seed: int, nan_at: int, estimator: Estimator | None = None) -> None:
        plain = pattern_objective(estimator or Exact(limit=64))
        torch.manual_seed(seed)
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        super().__init__(plain.model, plain.estimator)
        self.register_buffer("nan_at", torch.tensor(nan_at), persistent=False)

    def forward(self, x: torch.Tensor, step: int) -> Terms:
        terms = super().forward(x, step)
        return terms._replace(loss=terms.loss * torch.where(self.nan_at == step, math.nan, 1.0))


def three_replicas(
    cwd: Path,
    nan_at: Mapping[int, int] | None = None,
    rates: Mapping[int, float] | None = None,
    estimator: Estimator | None = None,
) -> list[ReplicaParts]:
    """Return replicas with the seeds 0, 1 and 2.

    Args:
        cwd: Where their folders r0, r1 and r2 are made.
        nan_at: The step at which the loss of a seed is nan; by default never.
        rates: The learning rate of a seed; by default 0.01.
        estimator: The estimator of all of them.
    """
    nan_at, rates = nan_at or {}, rates or {}
    cwd.mkdir(exist_ok=True)
    return [
        ReplicaParts(
            cwd / f"r{seed}",
            NanAtStep(seed, nan_at.get(seed, NEVER), estimator),
            adam(rates.get(seed, 0.01)),
            seed,
        )
        for seed in range(3)
    ]


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights in all checkpoints of a run folder."""
    return {
        f"{which} {name}": tensor
        for which in checkpoint.WHICH
        if checkpoint.exists(folder, which)
        for name, tensor in checkpoint.load(folder, which)["objective"].items()
    }


def assert_equal_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_a_replica_logs_the_metrics_of_a_run_alone(tmp_path):
    """Twelve steps, to float32's rounding."""
    rates, settings = {1: 0.003, 2: 0.001}, {"epochs": 4, "clip": 1.0}
    together = train_replicas(three_replicas(tmp_path, rates=rates), pattern_data(), **settings)
    alone = [
        train_replicas([replica], pattern_data(), **settings)[0]
        for replica in three_replicas(tmp_path / "alone", rates=rates)
    ]
    for (outcome, lines), (expected, expected_lines) in zip(together, alone, strict=True):
        assert without_seconds(outcome) == without_seconds(expected)
        assert [line["step"] for line in lines] == [3, 6, 9, 12]
        for line, expected_line in zip(lines, expected_lines, strict=True):
            assert line == pytest.approx(expected_line, rel=1e-3, abs=1e-4)
    assert len({lines[0]["elbo/train"] for _, lines in together}) == 3


def test_a_replica_that_diverges_does_not_change_the_others(tmp_path):
    finite = train_replicas(three_replicas(tmp_path / "finite"), pattern_data())
    runs = train_replicas(three_replicas(tmp_path / "runs", nan_at={1: 4}), pattern_data())
    diverged = runs[1].outcome
    assert isinstance(diverged, Diverged) and "at step 4 of epoch 2" in str(diverged)
    assert "r1/last.pt is of step 3" in str(diverged)
    assert runs[1].lines == finite[1].lines[:1]
    assert checkpoint.load(tmp_path / "runs/r1", "last")["step"] == 3
    for index in (0, 2):
        assert runs[index].lines == finite[index].lines
        assert without_seconds(runs[index].outcome) == without_seconds(finite[index].outcome)


def test_training_ends_if_all_replicas_have_diverged(tmp_path):
    runs = train_replicas(
        three_replicas(tmp_path, nan_at={0: 1, 1: 2, 2: 1}), pattern_data(), epochs=50
    )
    assert [str(outcome).partition(":")[0][-20:] for outcome, _ in runs] == [
        f"at step {step} of epoch 1" for step in (1, 2, 1)
    ]
    assert all(not lines for _, lines in runs)


@pytest.mark.parametrize("nan_at", [{}, {1: 20}])
def test_a_replica_without_patience_keeps_its_result_while_the_others_continue(tmp_path, nan_at):
    """Its loss is still computed together with the other losses, and becomes nan later."""
    runs = train_replicas(
        three_replicas(tmp_path, nan_at, rates={1: 0.0}), pattern_data(), epochs=9, patience=2
    )
    steps = [checkpoint.load(tmp_path / f"r{seed}", "last")["step"] for seed in range(3)]
    assert steps == [27, 9, 27]
    for (outcome, lines), epochs in zip(runs, (9, 3, 9), strict=True):
        bounds = [line["elbo/valid"] for line in lines]
        best = bounds.index(max(bounds)) + 1  # 1 if the weights never change
        result = TrainingResult(epochs, 3 * epochs, best, max(bounds), 0)
        assert len(lines) == epochs and without_seconds(outcome) == result


# Killed between two checkpoint files, and resumed


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def kill_after(monkeypatch) -> Callable[[int], None]:
    """Return a function that arms an exception.

    After so many checkpoint files have been put in place, the next one is not: see
    `checkpoint.save`.
    """
    replace = os.replace

    def arm(files: int) -> None:
        remaining = files

        def replace_or_die(source: object, target: object) -> None:
            nonlocal remaining
            if str(target).endswith(".pt"):
                remaining -= 1
                if remaining < 0:
                    raise KilledError
            replace(source, target)

        monkeypatch.setattr(os, "replace", replace_or_die)

    return arm


NAN_AT = {"never": {}, "in the first epoch": {1: 1}, "later": {1: 7}}


def train_with_all_generators(cwd: Path, nan: str) -> list[Trained]:
    """Train four epochs that depend on every generator; replica 2 runs out of patience."""
    estimator = StraightThroughGumbel(temperature=0.5)
    replicas = three_replicas(cwd, NAN_AT[nan], rates={2: 0.0}, estimator=estimator)
    return train_replicas(replicas, grey_pattern_data(redraw=True), epochs=4, patience=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[str], tuple[Path, list[Trained]]]:
    """Return a function that trains without being killed; it does so once for each case."""
    finished = {}

    def get(nan: str) -> tuple[Path, list[Trained]]:
        if nan not in finished:
            cwd = tmp_path_factory.mktemp("undisturbed")
            finished[nan] = cwd, train_with_all_generators(cwd, nan)
        return finished[nan]

    return get


@pytest.mark.parametrize("nan", NAN_AT)
@pytest.mark.parametrize(
    "kills", [[1], [8], [10, 3, 3, 4], [14, 6, 6], [17, 7, 5, 5], [23, 9, 9, 2, 2], [26, 4, 6]]
)
def test_replicas_that_are_killed_between_two_saves_end_as_undisturbed_ones(
    tmp_path, kill_after, undisturbed, nan, kills
):
    """They are killed several times: each attempt resumes from what the one before had saved."""
    whole, expected = undisturbed(nan)
    for files in kills:
        kill_after(files)
        with pytest.raises(KilledError):
            train_with_all_generators(tmp_path, nan)
    kill_after(NEVER)
    runs = train_with_all_generators(tmp_path, nan)
    for seed, (run, expected_run) in enumerate(zip(runs, expected, strict=True)):
        assert run.lines == expected_run.lines
        assert type(run.outcome) is type(expected_run.outcome)
        if isinstance(expected_run.outcome, TrainingResult):
            assert without_seconds(run.outcome) == without_seconds(expected_run.outcome)
        assert_equal_tensors(
            saved_weights(tmp_path / f"r{seed}"), saved_weights(whole / f"r{seed}")
        )


# Resumed together and alone


@pytest.mark.parametrize("nan_step", [1, 4])
def test_a_replica_that_has_diverged_stays_diverged_when_the_others_resume(tmp_path, nan_step):
    steps, reasons = [], []
    for epochs in (4, 4, 6):  # to the end, once more, and further
        replicas = three_replicas(tmp_path, nan_at={1: nan_step})
        runs = train_replicas(replicas, pattern_data(), epochs=epochs)
        assert isinstance(runs[1].outcome, Diverged)
        reasons.append(str(runs[1].outcome))
        results = [outcome for outcome, _ in runs if isinstance(outcome, TrainingResult)]
        steps.append([result.steps for result in results])
    assert steps == [[12, 12], [12, 12], [18, 18]]
    assert f"at step {nan_step} of" in reasons[0] and reasons == reasons[:1] * 3


@pytest.mark.parametrize("nan_at", [{}, {0: 1}, {0: 4}])
@pytest.mark.parametrize("epochs", [3, 5])
def test_replicas_do_not_resume_with_one_that_was_trained_further_alone(tmp_path, nan_at, epochs):
    train_replicas(three_replicas(tmp_path, nan_at), pattern_data(), epochs=2)
    train_replicas(three_replicas(tmp_path)[1:2], pattern_data(), epochs=epochs)
    before = saved_weights(tmp_path / "r1")
    with pytest.raises(UserError, match=f"r1 is at step {3 * epochs} without the others"):
        train_replicas(three_replicas(tmp_path, nan_at), pattern_data(), epochs=6)
    assert_equal_tensors(saved_weights(tmp_path / "r1"), before)


def test_one_of_several_replicas_can_resume_alone(tmp_path):
    train_replicas(three_replicas(tmp_path), pattern_data(), epochs=2)
    (run,) = train_replicas(three_replicas(tmp_path)[:1], pattern_data(), epochs=5)
    assert run.outcome.steps == 15 and len(run.lines) == 5
