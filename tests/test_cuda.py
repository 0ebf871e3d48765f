"""The step as a CUDA graph: the same numbers, and nothing that waits. What it can, on the CPU too.

On a CUDA device torch itself complains of what waits for it. On the CPU the operations are looked
at: none may take a number from a tensor to Python, make a tensor of one, or have a shape that
depends on values.
"""

import math
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_replicas import MOMENTS, NAMES, OBJECTIVES, R
from test_replicas import data as noise
from test_replicas import objective as composed
from test_training import adam, objective, together
from test_training import data as patterns
from torch.utils._python_dispatch import TorchDispatchMode

from vae.data import Batches, DataSet, Split
from vae.estimators import Exact, StraightThroughGumbel
from vae.objective import NegativeELBO, TrainingObjective
from vae.optimizers import SGD, Adam, AdamW, Optimizer, RAdam
from vae.replicas import Replicas
from vae.schedules import Linear
from vae.step import TrainingStep
from vae.trainee import Trained

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
WAYS = [
    pytest.param("cpu", False, id="cpu"),
    pytest.param("cuda", False, id="cuda", marks=needs_cuda),
    pytest.param("cuda", True, id="cuda-captured", marks=needs_cuda),
]
CHOICES = [f"estimator={name}" for name in NAMES] + [f"objective={name}" for name in OBJECTIVES]
KINDS = [Adam, AdamW, RAdam, SGD]
RAMP = Linear(start=0.02, end=0.001, steps=20)


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def on(device: str, data: DataSet) -> DataSet:
    move = lambda split: Split(split.images.to(device), split.labels.to(device))
    splits = {name: move(getattr(data, name)) for name in ("train", "valid", "test")}
    return data._replace(**splits)


def optimizer(kind: type[Optimizer]) -> Optimizer:
    given = {"momentum": 0.9, "weight_decay": 0.01} if kind is SGD else MOMENTS
    return kind(lr=RAMP, **given)


# Nothing waits


class Looking(TorchDispatchMode):
    """Raises where an operation would wait for a device, or copy to it what is on the host."""

    WAITING = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else []
        masked = any(mask is not None and mask.dtype == torch.bool for mask in masks)
        if masked or name in self.WAITING:
            raise RuntimeError(f"{func} would synchronise a device")
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(device: str) -> Iterator[None]:
    """Raises RuntimeError where something waits for the device."""
    if device == "cpu":
        with Looking():
            yield
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode is a prototype, torch says once
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_nothing_waits(
    objectives: list[TrainingObjective],
    kind: type[Optimizer],
    device: str,
    capture: bool,
    redraw: bool = False,
    clip: float | None = None,
) -> None:
    """Through eager steps, those before a capture among them, and through replays.

    The capture itself waits once, before it begins; what would wait inside of it cannot be
    captured.
    """
    objectives = [each.float().to(device) for each in objectives]
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(len(objectives))]
    feed = Batches(on(device, noise(redraw)), 5, generators)
    feed.shuffle()
    optimizers = [optimizer(kind)] * len(objectives)
    step = TrainingStep(objectives, optimizers, feed, clip=clip, clock="device", capture=capture)
    before = [parameter.detach().clone() for each in objectives for parameter in each.parameters()]
    for epoch in range(2):
        step.begin(0, 0)
        for number in range(7):
            if capture and epoch == 0 and number == 3:
                assert step(number, number) == []
                continue
            with watched(device):
                assert step(number, number) == []
    after = [parameter for each in objectives for parameter in each.parameters()]
    assert step.sums.isfinite().all() and (step.sums[:, 0] > 0).all()
    assert all(parameter.isfinite().all() for parameter in after)
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) >= len(moved) - len(objectives)  # all, but for a prior that is in no loss


@pytest.mark.parametrize("device, capture", WAYS)
@pytest.mark.parametrize("replicas", [1, R])
@pytest.mark.parametrize("redraw, clip", [(False, None), (True, 0.5)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_optimizer_waits(kind, redraw, clip, replicas, device, capture):
    if device == "cpu" and kind is RAdam:
        pytest.skip("on the CPU RAdam reads the number of its step, which costs nothing there")
    objectives = [composed(seed) for seed in range(replicas)]
    assert_nothing_waits(objectives, kind, device, capture, redraw, clip)


@pytest.mark.parametrize("device, capture", WAYS)
@pytest.mark.parametrize("replicas", [1, R])
@pytest.mark.parametrize("choice", CHOICES)
def test_no_estimator_and_no_objective_waits(choice, replicas, device, capture):
    objectives = [composed(seed, choice) for seed in range(replicas)]
    assert_nothing_waits(objectives, Adam, device, capture)


SCHEDULES = {
    **{"constant": "value={}", "linear": "start={}", "cosine": "start={}"},
    **{"exponential": "start={}", "geometric": "start={}", "step": "values=[{},0.5]"},
}


@pytest.mark.parametrize("device, capture", WAYS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_waits(name, device, capture):
    """One of its own for each replica: they are told apart on the device."""
    choice = [f"estimator/temperature={name}"]
    if name == "step":
        choice += ["estimator.temperature.boundaries=[4]"]
    own = f"estimator.temperature.{SCHEDULES[name]}"
    objectives = [composed(seed, *choice, own.format(1 + seed)) for seed in range(R)]
    assert len({each.schedules()["temperature"](0) for each in objectives}) == R
    assert_nothing_waits(objectives, Adam, device, capture)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0.5],
        lambda x: x.nonzero(),
        lambda x: torch.tensor(0.5, device=x.device) + x,
    ],
)
def test_what_waits_is_seen(device, wait):
    x = torch.rand(5, device=device)
    with pytest.raises(RuntimeError, match="synchroni[sz]"), watched(device):
        wait(x)


# Nothing is on another device


@pytest.mark.parametrize("replicas", [1, R])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_made_on_the_way_is_made_where_the_model_is(choice, replicas):
    """The meta device computes nothing, and refuses tensors of the CPU as a GPU does."""
    objectives = [composed(seed, choice).float().to("meta") for seed in range(replicas)]
    pixels = math.prod(objectives[0].model.image_shape)
    stacked = Replicas(objectives)
    terms = stacked(
        torch.rand(replicas, 5, pixels, device="meta"),
        torch.zeros((), dtype=torch.long, device="meta"),
    )
    terms.loss.mean(1).sum().backward()
    stacked.share_out_gradients()
    assert all(p.grad.is_meta for p in objectives[0].model.decoder.parameters())
    with pytest.raises(RuntimeError, match="device"):
        terms.loss + torch.ones(5)


# Captured and not: the same


def replicas(
    cwd: Path, make, device: str, count: int, kind: type[Optimizer] = Adam
) -> list[tuple]:
    cwd.mkdir(exist_ok=True)
    return [
        (cwd / f"r{seed}", make(seed).to(device), optimizer(kind), seed) for seed in range(count)
    ]


def exact(seed: int) -> NegativeELBO:
    built = objective(Exact(limit=64))
    torch.manual_seed(seed)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return built


def weights(objective: NegativeELBO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in objective.parameters()])


def timeless(ended: Trained) -> Trained:
    return ended._replace(seconds=0.0)


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("redraw", [False, True])
def test_a_captured_run_is_the_same_bit_for_bit(tmp_path, redraw, count, clip, kind):
    """Without noise in the estimator. The images' order, and their draw, is a generator's."""
    ends = {}
    for capture in ("auto", "off"):
        many = replicas(tmp_path / capture, exact, "cuda", count, kind)
        given = {"capture": capture, "clip": clip, "batch_size": 10, "epochs": 4}
        done = together(many, on("cuda", grey(redraw)), **given)
        ends[capture] = done, [weights(each[1]) for each in many]
    (captured, ours), (eager, theirs) = ends["auto"], ends["off"]
    for (a, lines), (b, others) in zip(captured, eager, strict=True):
        assert timeless(a) == timeless(b) and a.steps == 24
        assert lines == others
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def grey(redraw: bool) -> DataSet:
    data = patterns(redraw=redraw)
    if redraw:
        data.train.images.clamp_(50, 200)
    return data


@needs_cuda
@pytest.mark.parametrize("redraw", [False, True])
def test_a_captured_run_has_the_same_distribution(tmp_path, redraw):
    """Of noise: the mean loss of the last epoch, over sixteen seeds from the same weights."""
    make = lambda seed: objective(StraightThroughGumbel(temperature=0.5))
    losses = {}
    for capture in ("auto", "off"):
        many = replicas(tmp_path / capture, make, "cuda", 16)
        ends = together(many, on("cuda", grey(redraw)), capture=capture, batch_size=10, epochs=4)
        losses[capture] = [lines[-1]["objective/loss"] for _, lines in ends]
    assert len(set(losses["auto"])) == 16
    means = [statistics.fmean(each) for each in losses.values()]
    errors = [statistics.stdev(each) / math.sqrt(16) for each in losses.values()]
    assert abs(means[0] - means[1]) < 5 * math.hypot(*errors)


@pytest.mark.parametrize("device, capture", WAYS)
@pytest.mark.parametrize("redraw", [False, True])
def test_every_step_draws_anew(device, capture, redraw):
    """The same weights and, without `redraw`, the same images: what differs is the noise."""
    same = objective(None if not redraw else Exact(limit=64)).to(device)
    feed = Batches(on(device, grey(redraw)), 60, [torch.Generator(device)])
    still = [adam(0.0)]
    step = TrainingStep([same], still, feed, clock="device", capture=capture)
    losses = []
    for _ in range(9):
        step.begin(0, 0)
        step.sums.zero_()
        step(0, 0)
        losses.append(step.sums[0, 0].item())
    assert len(set(losses)) == 9


@pytest.mark.parametrize("device, capture", WAYS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_norm_is_that_of_the_last_step(device, capture, clip):
    """Before clipping; beside what autograd gives outside of the step."""
    same = exact(0).to(device)
    feed = Batches(on(device, grey(False)), 60, [torch.Generator(device)])
    step = TrainingStep([same], [adam(0.01)], feed, clip=clip, clock="device", capture=capture)
    step.begin(0, 0)
    for number in range(6):
        x = feed.get(0).squeeze(0)
        gradients = torch.autograd.grad(same(x, 0).loss.mean(), list(same.parameters()))
        expected = torch.nn.utils.get_total_norm(gradients).item()
        step.begin(0, number)
        step(0, number)
        assert step.gradient_norm(0) == pytest.approx(expected, rel=1e-4)
        assert expected > 0.5


# Gone on with


@pytest.mark.parametrize("device, capture", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_that_goes_on_is_the_same_bit_for_bit(tmp_path, count, kind, device, capture):
    given = {"capture": "auto" if capture else "off", "batch_size": 10}
    images = on(device, grey(True))
    whole = replicas(tmp_path / "whole", exact, device, count, kind)
    expected = together(whole, images, epochs=4, **given)
    together(replicas(tmp_path / "run", exact, device, count, kind), images, epochs=2, **given)
    many = replicas(tmp_path / "run", exact, device, count, kind)
    ends = together(many, images, epochs=4, **given)
    for (end, lines), (other, theirs) in zip(ends, expected, strict=True):
        assert timeless(end) == timeless(other) and end.steps == 24
        assert lines == theirs
    for a, b in zip(many, whole, strict=True):
        assert torch.equal(weights(a[1]), weights(b[1]))
