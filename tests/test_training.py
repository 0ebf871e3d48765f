"""The loop, on a tiny data set of 4 x 4 pictures."""

import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from vae import checkpoint
from vae.data import DataSet, Split
from vae.estimators import Exact, StraightThrough, StraightThroughGumbel
from vae.model import CategoricalVAE
from vae.networks import MLP
from vae.objective import NegativeELBO
from vae.optimizers import Adam
from vae.schedules import Linear
from vae.signals import Interrupted
from vae.step import TrainingStep
from vae.tracking import Tracker, Tracking
from vae.trainee import Diverged, Run, Trained
from vae.training import Training, train
from vae.validation import UserError


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def split(images: int) -> Split:
    """Ten patterns, one a class."""
    patterns = torch.rand(10, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    labels = torch.arange(images) % 10
    return Split(patterns[labels].to(torch.uint8) * 255, labels)


def data(valid: int = 20, redraw: bool = False) -> DataSet:
    return DataSet("patterns", split(60), split(valid), split(20), redraw, True)


def objective(estimator=None, beta=1.0) -> NegativeELBO:
    torch.manual_seed(2)
    networks = MLP(encoder_sizes=[16], decoder_sizes=[16], activation="relu")
    model = CategoricalVAE(networks, latents=3, categories=4, image_shape=(4, 4))
    return NegativeELBO(model, estimator or StraightThroughGumbel(temperature=0.5), beta=beta)


def adam(lr=1e-2) -> Adam:
    return Adam(lr=lr, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)


def trained(folder: Path, objective: NegativeELBO, data: DataSet, optimizer=None, **given):
    """Runs the loop; gives what it returns and the lines of metrics.jsonl."""
    ((done, lines),) = together([(folder, objective, optimizer or adam(), 0)], data, **given)
    if isinstance(done, Diverged):
        raise done
    return done, lines


def together(replicas: list[tuple], data: DataSet, **given) -> list[tuple]:
    """Of each (folder, objective, optimizer, seed) what the loop returns, and its lines."""
    settings = {"epochs": 3, "batch_size": 20, "steps": None, "clip": None, "patience": None}
    tracking = Tracking(
        pictures_every=given.pop("pictures_every", 0),
        pictures=4,
        train_images=given.pop("train_images", 30),
        projected=0,
        gradient_every=given.pop("gradient_every", 0),
    )
    training = Training(**settings | {"precision": "float32"} | given)
    torch.manual_seed(3)
    folders = [replica[0] for replica in replicas]
    with ExitStack() as stack:
        runs, steps = [], checkpoint.steps(folders)
        for (folder, objective, optimizer, seed), step in zip(replicas, steps, strict=True):
            folder.mkdir(exist_ok=True)
            tracker = stack.enter_context(Tracker(folder, step))
            runs.append(Run(objective, optimizer, tracker, folder, seed))
        done = train(runs, data, training, tracking)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in folders]
    return [
        (outcome, [json.loads(line) for line in own])
        for outcome, own in zip(done, lines, strict=True)
    ]


def weights(objective: NegativeELBO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in objective.parameters()])


def test_what_is_drawn_and_evaluated_changes_no_training(tmp_path):
    plain, drawn = objective(), objective()
    _, a = trained(tmp_path / "a", plain, data())
    _, b = trained(tmp_path / "b", drawn, data(), pictures_every=1, train_images=7)
    assert [line["objective/loss"] for line in a] == [line["objective/loss"] for line in b]
    assert torch.equal(weights(plain), weights(drawn))


def test_it_learns(tmp_path):
    _, lines = trained(tmp_path, objective(Exact(limit=64)), data(), epochs=60)
    assert lines[-1]["elbo/train"] > lines[0]["elbo/train"] + 4
    assert lines[-1]["elbo/train"] <= 0


def test_steps_end_training_inside_an_epoch(tmp_path):
    done, lines = trained(tmp_path, objective(), data(), epochs=5, steps=4)
    assert (done.steps, done.epochs) == (4, 2)
    assert [line["step"] for line in lines] == [3, 4]


def test_schedules_follow_the_global_step(tmp_path):
    ramp = Linear(start=1.0, end=0.1, steps=9)
    estimator = StraightThrough(temperature=ramp)
    lr = Linear(start=1e-2, end=0.0, steps=9)
    beta = Linear(start=0.0, end=1.0, steps=9)
    _, lines = trained(tmp_path, objective(estimator, beta), data(), adam(lr))
    for line in lines:
        for name, schedule in {"temperature": ramp, "lr": lr, "beta": beta}.items():
            assert line[f"schedule/{name}"] == pytest.approx(schedule(line["step"]))
    assert [line["step"] for line in lines] == [3, 6, 9]


def test_a_learning_rate_of_zero_changes_nothing(tmp_path):
    still = objective()
    before = weights(still)
    trained(tmp_path, still, data(), adam(0.0))
    assert torch.equal(weights(still), before)


def test_best_is_the_best_validation_elbo_and_last_the_last(tmp_path):
    done, lines = trained(tmp_path, objective(), data(), epochs=8)
    valid = [line["elbo/valid"] for line in lines]
    assert done.best_epoch == 1 + valid.index(max(valid))
    assert checkpoint.load(tmp_path, "best")["epoch"] == done.best_epoch
    assert checkpoint.load(tmp_path, "last")["epoch"] == 8


def test_without_validation_there_is_no_best(tmp_path):
    done, lines = trained(tmp_path, objective(), data(valid=0), pictures_every=1)
    assert done.best_epoch is None and not checkpoint.path(tmp_path, "best").exists()
    assert "elbo/valid" not in lines[0] and "latent/perplexity" in lines[0]


class Signalled(NegativeELBO):
    """Is asked to stop in one step."""

    def __init__(self, at: int) -> None:
        plain = objective()
        super().__init__(plain.model, plain.estimator)
        self._at = at

    def forward(self, x, step):
        if step == self._at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x, step)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("at", range(9))
def test_a_signal_in_any_step_loses_nothing(tmp_path, at, clip):
    """The last one of an epoch, and of the run, among them."""
    end, lines = trained(tmp_path / "whole", objective(), data(), clip=clip)
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", Signalled(at), data(), clip=clip)
    again, gone_on = trained(tmp_path / "run", objective(), data(), clip=clip)
    assert gone_on == lines
    assert timeless(again) == timeless(end)


def test_patience_ends_training(tmp_path):
    done, lines = trained(tmp_path, objective(), data(), adam(0.0), epochs=50, patience=3)
    assert done.best_epoch == 1 and done.epochs == len(lines) == 4


def test_clipping_bounds_the_step(tmp_path):
    """One plain gradient step of rate 1 is exactly as long as its clipped gradient."""

    class Descent(Adam):
        def build(self, parameters, on_device=False):
            return torch.optim.SGD(parameters, lr=1.0)

    clipped = objective()
    before = weights(clipped)
    sgd = Descent(lr=1.0, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)
    _, lines = trained(tmp_path, clipped, data(), sgd, clip=1e-3, steps=1)
    assert (weights(clipped) - before).norm() == pytest.approx(1e-3, rel=1e-3)
    assert lines[0]["gradient/norm"] > 1e-2


def test_a_nan_stops_with_where_it_was(tmp_path):
    with pytest.raises(
        Diverged, match="no number at step 1 of epoch 1: lr 1e.30, .*largest logit"
    ):
        trained(tmp_path, objective(beta=3e38), data(), adam(1e30))


class Blowing(NegativeELBO):
    """Its loss is no number at one step."""

    at = 4

    def forward(self, x, step):
        terms = super().forward(x, step)
        return terms._replace(loss=terms.loss * math.nan) if step == self.at else terms


def blowing() -> Blowing:
    plain = objective()
    return Blowing(plain.model, plain.estimator)


def test_a_bad_step_ends_the_run_before_it_does_harm(tmp_path):
    broken = blowing()
    with pytest.raises(Diverged, match=r"at step 4 of epoch 2: .*last.pt is of step 3"):
        trained(tmp_path, broken, data())
    assert all(p.isfinite().all() for p in broken.parameters())
    assert checkpoint.load(tmp_path, "last")["step"] == 3


class SignalledAfterNan(Signalled):
    """As on a device that nobody waits for: the loss is no number, and then comes a signal."""

    def forward(self, x, step):
        terms = super().forward(x, step)
        return terms._replace(loss=terms.loss * math.nan) if step == self._at - 1 else terms


def test_a_signal_keeps_no_bad_step(tmp_path, monkeypatch):
    unseen = lambda *given, **named: TrainingStep(*given, **{**named, "look": None})
    monkeypatch.setattr("vae.training.TrainingStep", unseen)
    with pytest.raises(Interrupted):
        trained(tmp_path, SignalledAfterNan(5), data())
    assert checkpoint.load(tmp_path, "last")["step"] == 3
    with pytest.raises(Diverged, match=r"epoch 2: .*last.pt is of step 3"):
        trained(tmp_path, blowing(), data())


def test_a_bad_step_can_be_skipped_and_is_counted(tmp_path):
    broken = blowing()
    _, lines = trained(tmp_path, broken, data(), on_nan="skip")
    assert [line.get("objective/skipped", 0) for line in lines] == [0, 1, 0]
    assert all(math.isfinite(value) for line in lines[:1] + lines[2:] for value in line.values())
    assert math.isfinite(lines[1]["objective/loss"]) and math.isfinite(lines[1]["elbo/train"])


def test_skipping_where_nothing_is_bad_changes_nothing(tmp_path):
    a, b = objective(), objective()
    trained(tmp_path / "a", a, data())
    trained(tmp_path / "b", b, data(), on_nan="skip")
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_are_no_nan(tmp_path, size):
    huge = objective()
    with torch.no_grad():
        huge.model.encoder[-1].weight.mul_(size)
    _, lines = trained(tmp_path, huge, data(), adam(1e-4))
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_bf16_is_for_the_networks_alone(tmp_path):
    mixed = objective()
    _, lines = trained(tmp_path, mixed, data(), precision="bf16")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    assert mixed.model.precision is None  # what is measured is measured in float32


def test_images_are_drawn_anew_where_the_data_says_so(tmp_path):
    grey = data(redraw=True)
    grey.train.images.fill_(128)
    _, lines = trained(tmp_path, objective(), grey)
    assert all(math.isfinite(line["elbo/train"]) for line in lines)


# Replicas


class Fragile(NegativeELBO):
    """Its loss is no number at one step, which is a buffer: replicas share their code."""

    def __init__(self, seed: int, estimator=None, at: int = 10**9) -> None:
        plain = objective(estimator or Exact(limit=64))
        torch.manual_seed(seed)
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        super().__init__(plain.model, plain.estimator)
        self.register_buffer("at", torch.tensor(at), persistent=False)

    def forward(self, x, step):
        terms = super().forward(x, step)
        return terms._replace(loss=terms.loss * torch.where(self.at == step, math.nan, 1.0))


def fragile(cwd: Path, at: dict[int, int], lr: dict[int, float], estimator=None) -> list[tuple]:
    """Three replicas; the steps at which some fail, the rates of some."""
    return [
        (
            cwd / f"r{seed}",
            Fragile(seed, estimator, at.get(seed, 10**9)),
            adam(lr.get(seed, 0.01)),
            seed,
        )
        for seed in range(3)
    ]


def timeless(outcome: Trained | Diverged) -> object:
    return str(outcome) if isinstance(outcome, Diverged) else outcome._replace(seconds=0)


def test_a_replica_writes_the_lines_of_a_run_alone(tmp_path):
    """To float32's rounding, after twelve steps."""
    rates, given = {1: 0.003, 2: 0.001}, {"epochs": 4, "clip": 1.0}
    tmp_path.joinpath("alone").mkdir()
    many = together(fragile(tmp_path, {}, rates), data(), **given)
    alone = [together([own], data(), **given)[0] for own in fragile(tmp_path / "alone", {}, rates)]
    for (done, lines), (own, expected) in zip(many, alone, strict=True):
        assert timeless(done) == timeless(own)
        assert [line["step"] for line in lines] == [3, 6, 9, 12]
        for line, other in zip(lines, expected, strict=True):
            assert line == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert len({lines[0]["elbo/train"] for _, lines in many}) == 3


def test_one_that_diverges_changes_nothing_of_the_others(tmp_path):
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    good = together(fragile(tmp_path / "good", {}, {}), data())
    bad = together(fragile(tmp_path / "bad", {1: 4}, {}), data())
    assert isinstance(bad[1][0], Diverged) and "at step 4 of epoch 2" in str(bad[1][0])
    assert "r1/last.pt is of step 3" in str(bad[1][0])
    assert bad[1][1] == good[1][1][:1]
    assert checkpoint.load(tmp_path / "bad/r1", "last")["step"] == 3
    for which in (0, 2):
        assert bad[which][1] == good[which][1]
        assert timeless(bad[which][0]) == timeless(good[which][0])


def test_where_all_diverge_training_ends(tmp_path):
    ends = together(fragile(tmp_path, {0: 1, 1: 2, 2: 1}, {}), data(), epochs=50)
    assert [str(end).partition(":")[0][-20:] for end, _ in ends] == [
        f"at step {step} of epoch 1" for step in (1, 2, 1)
    ]
    assert all(not lines for _, lines in ends)


@pytest.mark.parametrize("at", [{}, {1: 20}])
def test_one_that_is_out_of_patience_stays_as_it_is(tmp_path, at):
    """Whatever becomes of it, in memory, while the others go on."""
    ends = together(fragile(tmp_path, at, {1: 0.0}), data(), epochs=9, patience=2)
    steps = [checkpoint.load(tmp_path / f"r{seed}", "last")["step"] for seed in range(3)]
    assert steps == [27, 9, 27]
    assert [timeless(end) for end, _ in ends] == [
        Trained(epochs, 3 * epochs, best, lines[best - 1]["elbo/valid"], 0)
        for (_, lines), epochs, best in zip(ends, (9, 3, 9), (9, 1, 9), strict=True)
    ]
    assert [len(lines) for _, lines in ends] == [9, 3, 9]


class Killed(BaseException):
    pass


@pytest.fixture
def killed(monkeypatch) -> Callable[[int], None]:
    """Dies instead of putting a checkpoint's file in its place for the n-th time: see `save`."""
    replace = os.replace

    def arm(after: int) -> None:
        left = after

        def count(source: object, target: object) -> None:
            nonlocal left
            if str(target).endswith(".pt"):
                left -= 1
                if left < 0:
                    raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", count)

    return arm


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of all that is there."""
    return {
        f"{which} {name}": held
        for which in checkpoint.WHICH
        if checkpoint.exists(folder, which)
        for name, held in checkpoint.load(folder, which)["objective"].items()
    }


FAILING = {"none": {}, "in the first epoch": {1: 1}, "later": {1: 7}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[str], tuple[Path, list[tuple]]]:
    found = {}

    def get(failing: str) -> tuple[Path, list[tuple]]:
        if failing not in found:
            cwd = tmp_path_factory.mktemp("undisturbed")
            found[failing] = cwd, noisy(cwd, failing)
        return found[failing]

    return get


def noisy(cwd: Path, failing: str) -> list[tuple]:
    """Four epochs that depend on every generator there is; the third one runs out of patience."""
    estimator = StraightThroughGumbel(temperature=0.5)
    many = fragile(cwd, FAILING[failing], {2: 0.0}, estimator)
    grey = data(redraw=True)
    grey.train.images.clamp_(50, 200)
    return together(many, grey, epochs=4, patience=2)


@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize(
    "kills", [[1], [8], [10, 3, 3, 4], [14, 6, 6], [17, 7, 5, 5], [23, 9, 9, 2, 2], [26, 4, 6]]
)
def test_killed_between_two_saves_it_goes_on_to_the_same_end(
    tmp_path, killed, undisturbed, failing, kills
):
    """Time and again: what an attempt had kept before it was killed is kept again by the next."""
    whole, expected = undisturbed(failing)
    for after in kills:
        killed(after)
        with pytest.raises(Killed):
            noisy(tmp_path, failing)
    killed(10**9)
    ends = noisy(tmp_path, failing)
    for seed, ((end, lines), (own, theirs)) in enumerate(zip(ends, expected, strict=True)):
        assert lines == theirs
        assert type(end) is type(own)
        if isinstance(own, Trained):
            assert timeless(end) == timeless(own)
        a, b = kept(tmp_path / f"r{seed}"), kept(whole / f"r{seed}")
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("at", [1, 4])
def test_one_that_had_diverged_stays_diverged(tmp_path, at):
    steps, why = [], []
    for epochs in (4, 4, 6):  # to the end, once more, and further
        ends = together(fragile(tmp_path, {1: at}, {}), data(), epochs=epochs)
        assert isinstance(ends[1][0], Diverged)
        why.append(str(ends[1][0]))
        steps.append([end.steps for end, _ in ends if isinstance(end, Trained)])
    assert steps == [[12, 12], [12, 12], [18, 18]]
    assert f"at step {at} of" in why[0] and why == why[:1] * 3


@pytest.mark.parametrize("failing", [{}, {0: 1}, {0: 4}])
@pytest.mark.parametrize("epochs", [3, 5])
def test_one_that_has_gone_on_alone_is_not_gone_on_with(tmp_path, failing, epochs):
    together(fragile(tmp_path, failing, {}), data(), epochs=2)
    together(fragile(tmp_path, {}, {})[1:2], data(), epochs=epochs)
    before = kept(tmp_path / "r1")
    with pytest.raises(UserError, match=f"r1 is at step {3 * epochs} without the others"):
        together(fragile(tmp_path, failing, {}), data(), epochs=6)
    assert all(torch.equal(held, before[name]) for name, held in kept(tmp_path / "r1").items())


def test_those_that_were_left_go_on_alone_too(tmp_path):
    together(fragile(tmp_path, {}, {}), data(), epochs=2)
    ((end, lines),) = together(fragile(tmp_path, {}, {})[:1], data(), epochs=5)
    assert end.steps == 15 and len(lines) == 5


# Where replicas stand


def saved(run: Path, *kept: int | str | tuple[int, list[str]], of: int = 2) -> Path:
    """Checkpoints of these steps, one after the other, each with the names of those who left.

    Of so many runs together, or, where the step is a word, of this one alone.
    """
    run.mkdir()
    for each in kept:
        step, left = each if isinstance(each, tuple) else (each, [])
        together = [run.name] if isinstance(step, str) else [str(which) for which in range(of)]
        content = {"step": int(step), "together": together, "left": dict.fromkeys(left)}
        content["epoch"] = int(step) // 40
        checkpoint.save(run, "last", content)
    return run


STEPS = {
    "nothing is kept": ([[], []], [0, 0]),
    "one alone": ([[40, 80]], [80]),
    "together": ([[40, 80], [40, 80]], [80, 80]),
    "together, one checkpoint": ([[40], [40]], [40, 40]),
    "the first is ahead": ([[40, 80, 120], [40, 80], [40, 80]], [80, 80, 80]),
    "the last is ahead": ([[40, 80], [40, 80], [40, 80, 120]], [80, 80, 80]),
    "only one has anything": ([[40], []], [0, 0]),
    "only one has anything, twice": ([[17, 40], []], [0, 0]),
    "in the middle of an epoch": ([[40, 57], [40]], [40, 40]),
    "one left long ago": ([[80, (120, ["1"])], [40]], [120, 40]),
    "one left just now": ([[80, (120, ["1"])], [40, 80]], [120, 80]),
    "one left before anything was kept": ([[(40, ["1"]), (80, ["1"])], []], [80, 0]),
    "one left at once": ([[(40, ["1"])], []], [40, 0]),
    "one left, and of the others one is ahead": (
        [[(80, ["2"]), (120, ["2"])], [40, (80, ["2"])], [40]],
        [80, 80, 40],
    ),
    "one leaves in the epoch that is not kept": (
        [[40, 80, (120, ["2"])], [40, 80], [40, 80]],
        [80, 80, 80],
    ),
    "all but one left": ([[(120, ["1", "2"])], [80], [40]], [120, 80, 40]),
    "one that was with others, alone": ([[(120, ["1"])]], [120]),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_from_which_replicas_go_on(tmp_path, case):
    kept, expected = STEPS[case]
    of = 3 if "was with others" in case else len(kept)
    runs = [saved(tmp_path / str(which), *own, of=of) for which, own in enumerate(kept)]
    assert checkpoint.steps(runs) == expected


APART = {
    "too far ahead": [[40, 80], [40, 80, 120, 160]],
    "too far ahead, with one that left": [[40], [80, (120, ["2"])], []],
    "more than an epoch, and one that has none": [[40, 80], []],
    "one epoch alone": [[40, 80], [40, 80, "120"]],
    "some steps alone": [[40, 80], [40, 80, "97"]],
    "all of them alone": [["80"], ["80"]],
    "alone, and the others left in their first epoch": [[], [40, (80, ["0"]), "120"]],
    "alone, and the others left before": [[40], [40, (80, ["0"]), "120", "160"]],
    "one that left has gone on alone": [[(80, ["1"]), (120, ["1"])], [40, "80", "160"]],
}


@pytest.mark.parametrize("case", APART)
def test_replicas_that_stand_apart_are_refused(tmp_path, case):
    kept = APART[case]
    runs = [saved(tmp_path / str(which), *own, of=len(kept)) for which, own in enumerate(kept)]
    with pytest.raises(UserError, match="[01] is at step .* without the others"):
        checkpoint.steps(runs)


def test_another_kind_of_device_draws_anew(tmp_path, caplog):
    """What a CUDA device's generators were at means nothing to the CPU's."""
    trained(tmp_path, objective(), data(), epochs=2)
    content = checkpoint.load(tmp_path, "last")
    del content["file"]
    content |= {"device": "cuda", "batches": torch.zeros(16, dtype=torch.uint8)}
    checkpoint.save(tmp_path, "last", content)
    done, lines = trained(tmp_path, objective(), data(), epochs=4)
    assert done.steps == 12 and len(lines) == 4
    assert "another device than before" in caplog.text


def test_what_was_kept_of_old_names_nobody(tmp_path):
    checkpoint.save(saved(tmp_path / "0"), "last", {"step": 40})
    assert checkpoint.steps([tmp_path / "0"]) == [40]


@pytest.mark.parametrize("harm", [lambda file: None, lambda file: file.write_bytes(b"")])
def test_a_missing_or_damaged_one_counts_as_the_one_before(tmp_path, harm):
    runs = [saved(tmp_path / str(which), 40, 80) for which in range(2)]
    file = checkpoint.path(runs[1], "last")
    file.unlink()
    harm(file)
    assert checkpoint.steps(runs) == [40, 40]


def test_rewinding_leaves_the_one_before_whole(tmp_path):
    run = saved(tmp_path / "run", 40, 80, 120)
    checkpoint.rewind(run, 120)
    assert checkpoint.load(run, "last")["step"] == 120
    checkpoint.rewind(run, 80)
    assert checkpoint.load(run, "last")["step"] == 80
    checkpoint.save(run, "last", {"step": 120})
    steps = [checkpoint.load(run, "last", step)["step"] for step in (120, 119)]
    assert steps == [120, 80]
