"""Steps that can be recorded as a CUDA graph: the same numbers, and no synchronisation.

On a CUDA device, torch reports every synchronisation. On the CPU, every operation is checked
instead: none may read a number from a tensor, make a tensor from a number, or have a shape that
depends on values. These tests run without a GPU, except for those that record a graph.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import (
    ESTIMATOR_OPTIONS,
    ESTIMATOR_SETTINGS,
    MOMENTS,
    MULTI_SAMPLE_OBJECTIVES,
    REPLICAS,
    ReplicaParts,
    adam,
    grey_pattern_data,
    noise_data,
    noise_objective,
    pattern_data,
    pattern_objective,
    train_replicas,
    weights,
    without_seconds,
)
from vae.data import Batches, DataSet, Split
from vae.estimators import Estimator, Exact, StraightThroughGumbel
from vae.objective import NegativeELBO, TrainingObjective
from vae.optimizers import SGD, Adam, AdamW, OptimizerConfig, RAdam
from vae.schedules import Linear, Step
from vae.training.captured import CapturedStep
from vae.training.loop import optimize
from vae.training.stacked import StackedObjectives
from vae.training.step import DeviceStep

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
EXECUTIONS = [
    pytest.param("cpu", False, id="cpu"),
    pytest.param("cuda", False, id="cuda", marks=needs_cuda),
    pytest.param("cuda", True, id="cuda-captured", marks=needs_cuda),
]
"""A device, and whether the step is recorded there and replayed."""

CHOICES = [f"estimator={name}" for name in [*ESTIMATOR_OPTIONS, *ESTIMATOR_SETTINGS]]
CHOICES += [f"objective={name}" for name in MULTI_SAMPLE_OBJECTIVES]
OPTIMIZERS = [Adam, AdamW, RAdam, SGD]
FALLING_RATE = Linear(start=0.02, end=0.001, steps=20)

pytestmark = pytest.mark.usefixtures("float32")


def move(data: DataSet, device: str) -> DataSet:
    """Return a data set with its tensors on a device."""
    splits = {name: getattr(data, name) for name in ("train", "valid", "test")}
    moved = {
        name: Split(split.images.to(device), split.labels.to(device))
        for name, split in splits.items()
    }
    return data._replace(**moved)


def optimizer_config(optimizer: type[OptimizerConfig]) -> OptimizerConfig:
    moments = {"momentum": 0.9, "weight_decay": 0.01} if optimizer is SGD else MOMENTS
    return optimizer(lr=FALLING_RATE, **moments)


def step_on_device(replicas: StackedObjectives, batches: Batches, capture: bool) -> DeviceStep:
    """Return a step as training takes it on CUDA, recorded as a graph or not."""
    return (CapturedStep if capture else DeviceStep)(optimize, replicas, batches)


# No synchronisation


class SynchronisationDetector(TorchDispatchMode):
    """Raises RuntimeError if an operation would synchronise a device, or copy from the host."""

    OPERATIONS = (
        "_local_scalar_dense",
        "lift_fresh",
        "nonzero",
        "masked_select",
        "equal",
        "unique",
    )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        has_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if has_mask or name in self.OPERATIONS:
            raise RuntimeError(f"{func} would synchronise a device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    """Raise RuntimeError if something synchronises the device."""
    if device == "cpu":
        with SynchronisationDetector():
            yield
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns once that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_no_synchronisation(
    objectives: Sequence[TrainingObjective],
    optimizer: type[OptimizerConfig],
    device: str,
    capture: bool,
    redraw: bool = False,
    clip: float | None = None,
) -> None:
    """Take 14 steps, with the warm-up steps and the replays if the step is captured.

    The recording itself synchronises once, before it begins. An operation that synchronises
    cannot be recorded.
    """
    objectives = [objective.float().to(device) for objective in objectives]
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(len(objectives))]
    batches = Batches(move(noise_data(redraw), device), 5, generators)
    batches.shuffle()
    optimizers = [optimizer_config(optimizer)] * len(objectives)
    replicas = StackedObjectives(objectives, optimizers, clip)
    step = step_on_device(replicas, batches, capture)
    parameters = [p for objective in objectives for p in objective.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    for epoch in range(2):
        for number in range(7):
            if capture and epoch == 0 and number == 3:  # the recording
                step(number, number)
                continue
            with no_synchronisation(device):
                step(number, number)
    assert replicas.sums.isfinite().all() and (replicas.sums[:, 0] > 0).all()
    assert all(parameter.isfinite().all() for parameter in parameters)
    changed = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
    assert sum(changed) >= len(changed) - len(objectives)  # a fixed prior has no gradient


@pytest.mark.parametrize("device, capture", EXECUTIONS)
@pytest.mark.parametrize("replicas", [1, REPLICAS])
@pytest.mark.parametrize("redraw, clip", [(False, None), (True, 0.5)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_synchronises(optimizer, redraw, clip, replicas, device, capture):
    if device == "cpu" and optimizer is RAdam:
        pytest.skip("on the CPU, RAdam reads the number of its step, which costs nothing there")
    objectives = [noise_objective(seed) for seed in range(replicas)]
    assert_no_synchronisation(objectives, optimizer, device, capture, redraw, clip)


@pytest.mark.parametrize("device, capture", EXECUTIONS)
@pytest.mark.parametrize("replicas", [1, REPLICAS])
@pytest.mark.parametrize("choice", CHOICES)
def test_no_estimator_and_no_objective_synchronises(choice, replicas, device, capture):
    objectives = [noise_objective(seed, *choice.split()) for seed in range(replicas)]
    assert_no_synchronisation(objectives, Adam, device, capture)


SCHEDULES = {
    **{"constant": "value={}", "linear": "start={}", "cosine": "start={}"},
    **{"exponential": "start={}", "geometric": "start={}", "step": "values=[{},0.5]"},
}


@pytest.mark.parametrize("device, capture", EXECUTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_synchronises(name, device, capture):
    """Replicas differ in their schedules. The device chooses the schedule of each replica."""
    overrides = [f"estimator/temperature={name}"]
    if name == "step":
        overrides += ["estimator.temperature.boundaries=[4]"]
    value = f"estimator.temperature.{SCHEDULES[name]}"
    objectives = [
        noise_objective(seed, *overrides, value.format(1 + seed)) for seed in range(REPLICAS)
    ]
    temperatures = {objective.schedules()["temperature"](0) for objective in objectives}
    assert len(temperatures) == REPLICAS
    assert_no_synchronisation(objectives, Adam, device, capture)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0.5],
        lambda x: x.nonzero(),
        lambda x: torch.tensor(0.5, device=x.device) + x,
    ],
)
def test_the_detector_notices_operations_that_synchronise(device, operation):
    x = torch.rand(5, device=device)
    with pytest.raises(RuntimeError, match="synchroni[sz]"), no_synchronisation(device):
        operation(x)


# No tensor is on another device


@pytest.mark.parametrize("replicas", [1, REPLICAS])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_tensor_is_created_on_the_device_of_the_model(choice, replicas):
    """The meta device computes nothing, and refuses tensors of the CPU as a GPU does."""
    objectives = [
        noise_objective(seed, *choice.split()).float().to("meta") for seed in range(replicas)
    ]
    pixels = math.prod(objectives[0].model.image_shape)
    stacked = StackedObjectives(objectives, [adam()] * replicas)
    terms = stacked(
        torch.rand(replicas, 5, pixels, device="meta"),
        torch.zeros((), dtype=torch.long, device="meta"),
    )
    terms.loss.mean(1).sum().backward()
    stacked.unstack_gradients()
    assert all(p.grad.is_meta for p in objectives[0].model.decoder.parameters())
    with pytest.raises(RuntimeError, match="device"):
        terms.loss + torch.ones(5)


# A captured run equals an eager run


def seeded_objective(seed: int, estimator: Estimator | None = None) -> NegativeELBO:
    """Return an objective with weights drawn from a seed, by default with noise that anneals."""
    temperature = Linear(start=1.0, end=0.5, steps=20)
    objective = pattern_objective(estimator or StraightThroughGumbel(temperature=temperature))
    torch.manual_seed(seed)
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return objective


def replica_parts(
    cwd: Path, device: str, count: int, optimizer: type[OptimizerConfig] = Adam
) -> list[ReplicaParts]:
    cwd.mkdir(exist_ok=True)
    return [
        ReplicaParts(
            cwd / f"r{seed}", seeded_objective(seed).to(device), optimizer_config(optimizer), seed
        )
        for seed in range(count)
    ]


@needs_cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("redraw", [False, True])
def test_a_captured_run_equals_an_eager_run_bit_for_bit(tmp_path, redraw, count, clip, optimizer):
    """They draw the same noise, and the same images in the same order."""
    runs, final_weights = {}, {}
    for capture in ("auto", "off"):
        replicas = replica_parts(tmp_path / capture, "cuda", count, optimizer)
        settings = {"capture": capture, "clip": clip, "batch_size": 10, "epochs": 4}
        data = move(grey_pattern_data(redraw), "cuda")
        runs[capture] = train_replicas(replicas, data, **settings)
        final_weights[capture] = [weights(replica.objective) for replica in replicas]
    for (captured, lines), (eager, eager_lines) in zip(runs["auto"], runs["off"], strict=True):
        assert without_seconds(captured) == without_seconds(eager) and captured.steps == 24
        assert lines == eager_lines
    pairs = zip(final_weights["auto"], final_weights["off"], strict=True)
    assert all(torch.equal(captured, eager) for captured, eager in pairs)


class WaitingEstimator(StraightThroughGumbel):
    """An estimator that reads a number from the device, which cannot be recorded."""

    def sample(self, logits: torch.Tensor, step: Step) -> torch.Tensor:
        return super().sample(logits, step) * (1.0 if logits.sum().item() else 2.0)


@needs_cuda
def test_a_step_that_cannot_be_recorded_is_run_instead_and_leaves_the_device_usable(caplog):
    objective = pattern_objective(WaitingEstimator(temperature=0.5)).to("cuda")
    batches = Batches(move(pattern_data(), "cuda"), 20, [torch.Generator("cuda")])
    replicas = StackedObjectives([objective], [adam()])
    step, stream = step_on_device(replicas, batches, capture=True), torch.cuda.current_stream()
    sums = []
    for number in range(6):
        step(0, number)
        sums.append(replicas.sums[0, 0].item())
    (record,) = caplog.records
    assert record.getMessage().startswith("training is slower, because a step cannot be recorded:")
    assert torch.cuda.current_stream() == stream
    assert all(later > earlier for earlier, later in itertools.pairwise(sums))
    replicas = StackedObjectives([pattern_objective().to("cuda")], [adam()])
    step = step_on_device(replicas, batches, capture=True)  # draws from the same generators
    for number in range(6):
        step(0, number)
    assert replicas.sums.isfinite().all() and len(caplog.records) == 1


@pytest.mark.parametrize("device, capture", EXECUTIONS)
@pytest.mark.parametrize("redraw", [False, True])
def test_every_step_draws_new_noise(device, capture, redraw):
    """The weights and, without `redraw`, the images are equal, so only the noise differs."""
    objective = pattern_objective(Exact(limit=64) if redraw else None).to(device)
    batches = Batches(move(grey_pattern_data(redraw), device), 60, [torch.Generator(device)])
    replicas = StackedObjectives([objective], [adam(0.0)])
    step = step_on_device(replicas, batches, capture)
    losses = []
    for _ in range(9):
        replicas.sums.zero_()
        step(0, 0)
        losses.append(replicas.sums[0, 0].item())
    assert len(set(losses)) == 9


@pytest.mark.parametrize("device, capture", EXECUTIONS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_gradient_norm_is_that_of_the_last_step_before_clipping(device, capture, clip):
    objective = seeded_objective(0, Exact(limit=64)).to(device)
    batches = Batches(move(grey_pattern_data(False), device), 60, [torch.Generator(device)])
    replicas = StackedObjectives([objective], [adam(0.01)], clip)
    step = step_on_device(replicas, batches, capture)
    for number in range(6):
        loss = objective(batches.get(0).squeeze(0), 0).loss.mean()
        gradients = torch.autograd.grad(loss, list(objective.parameters()))
        expected = torch.nn.utils.get_total_norm(gradients).item()
        del loss  # its graph belongs to another stream than the step
        step(0, number)
        assert replicas.gradient_norm(0) == pytest.approx(expected, rel=1e-4)
        assert expected > 0.5


@pytest.mark.parametrize("device, capture", EXECUTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_resumed_run_equals_an_undisturbed_run_bit_for_bit(
    tmp_path, count, optimizer, device, capture
):
    settings = {"capture": "auto" if capture else "off", "batch_size": 10}
    data = move(grey_pattern_data(True), device)
    make = lambda name: replica_parts(tmp_path / name, device, count, optimizer)
    whole = make("whole")
    expected = train_replicas(whole, data, epochs=4, **settings)
    train_replicas(make("run"), data, epochs=2, **settings)
    resumed = make("run")
    runs = train_replicas(resumed, data, epochs=4, **settings)
    for (result, lines), (expected_result, expected_lines) in zip(runs, expected, strict=True):
        assert without_seconds(result) == without_seconds(expected_result)
        assert result.steps == 24
        assert lines == expected_lines
    for replica, whole_replica in zip(resumed, whole, strict=True):
        assert torch.equal(weights(replica.objective), weights(whole_replica.objective))
