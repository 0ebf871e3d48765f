"""One vectorised step of several replicas: each is what it would be alone."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.helpers import (
    CATEGORIES,
    ESTIMATOR_OPTIONS,
    ESTIMATOR_SETTINGS,
    LATENTS,
    MOMENTS,
    MULTI_SAMPLE_OBJECTIVES,
    REPLICAS,
    noise_batches,
    noise_data,
    noise_model,
    noise_objective,
)
from vae.data import Batches
from vae.estimators import Exact, StraightThrough, StraightThroughGumbel
from vae.model import CategoricalVAE
from vae.networks import MLP, Conv
from vae.objective import NegativeELBO, TrainingObjective
from vae.optimizers import SGD, Adam, AdamW, OptimizerConfig, RAdam
from vae.schedules import Constant, Linear
from vae.training.captured import CapturedStep
from vae.training.loop import optimize
from vae.training.stacked import ReplicaSchedule, StackedObjectives
from vae.training.step import EagerStep

BATCH = 5

MakeObjective = Callable[[int], TrainingObjective]
"""Builds the objective of a replica, given its number."""


class RepeatedNoise:
    """Replaces torch's noise by a fixed sequence of numbers, which `restart` begins again.

    Every replica, and every run alone, then draws the same numbers.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.restart()
        draw = lambda shape, dtype: torch.from_numpy(self.random(tuple(shape))).to(dtype)
        monkeypatch.setattr(torch, "rand", lambda shape, *, dtype, **_: draw(shape, dtype))
        monkeypatch.setattr(torch, "rand_like", lambda like: draw(like.shape, like.dtype))
        monkeypatch.setattr(torch, "randn", lambda *shape, dtype, **_: draw(shape, dtype))

    def restart(self) -> None:
        self.random = np.random.default_rng(7).random


@pytest.fixture
def noise(monkeypatch) -> RepeatedNoise:
    return RepeatedNoise(monkeypatch)


def adam() -> Adam:
    """Return settings of Adam with weight decay."""
    return Adam(lr=0.01, **MOMENTS)


def state(objective: TrainingObjective) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in objective.state_dict().items()}


def take_steps(
    objectives: Sequence[TrainingObjective],
    optimizers: Sequence[OptimizerConfig],
    batches: Batches,
    noise: RepeatedNoise,
    steps: int = 3,
    clip: float | None = None,
    precision: torch.dtype | None = None,
) -> tuple[torch.Tensor, list[float], list[dict[str, torch.Tensor]]]:
    """Take some steps; return each replica's sums of losses, gradient norm and state."""
    replicas = StackedObjectives(objectives, optimizers, clip, precision)
    step = EagerStep(optimize, replicas, batches)
    for number in range(steps):
        noise.restart()
        assert step(number, number) == []
    norms = [replicas.gradient_norm(index) for index in range(len(objectives))]
    return replicas.sums, norms, [state(objective) for objective in objectives]


def assert_replicas_equal_runs_alone(
    make: MakeObjective,
    optimizers: Sequence[OptimizerConfig],
    noise: RepeatedNoise,
    **settings: object,
) -> None:
    data = noise_data()
    objectives = [make(seed) for seed in range(REPLICAS)]
    batches = noise_batches(data, range(REPLICAS))
    sums, norms, states = take_steps(objectives, optimizers, batches, noise, **settings)
    assert len({float(loss) for loss in sums[:, 0]}) == REPLICAS  # the replicas do differ
    for index in range(REPLICAS):
        (sums_alone,), (norm_alone,), (state_alone,) = take_steps(
            [make(index)], [optimizers[index]], noise_batches(data, [index]), noise, **settings
        )
        assert_close(sums[index], sums_alone, rtol=1e-5, atol=1e-5)  # float32, as images are
        assert norms[index] == pytest.approx(norm_alone, rel=1e-5)
        for name, tensor in state_alone.items():
            assert_close(states[index][name], tensor, rtol=1e-6, atol=1e-8, msg=name)


# A replica equals a run alone


@pytest.mark.parametrize("name", [*ESTIMATOR_OPTIONS, *ESTIMATOR_SETTINGS])
def test_a_replica_equals_a_run_alone_for_every_estimator(name, noise):
    make = lambda seed: noise_objective(seed, *f"estimator={name}".split())
    assert_replicas_equal_runs_alone(make, [adam()] * REPLICAS, noise, clip=0.5)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"objective={name}"] for name in MULTI_SAMPLE_OBJECTIVES),
        ["objective=vimco", "objective.baseline=leave_out"],
    ],
)
def test_a_replica_equals_a_run_alone_for_every_objective(overrides, noise):
    make = lambda seed: noise_objective(seed, *overrides)
    assert_replicas_equal_runs_alone(make, [adam()] * REPLICAS, noise)


@pytest.mark.parametrize("optimizer", [Adam, AdamW, RAdam])
def test_each_replica_has_an_optimizer_and_a_learning_rate_of_its_own(optimizer, noise):
    rates = [0.01, 0.05, Linear(start=0.1, end=0.0, steps=3)]
    optimizers = [optimizer(lr=lr, **MOMENTS) for lr in rates]
    assert_replicas_equal_runs_alone(lambda seed: noise_objective(seed), optimizers, noise)


def test_each_replica_has_a_temperature_and_a_beta_of_its_own(noise):
    schedules = [Constant(0.5), Constant(1.5), Linear(start=2.0, end=0.1, steps=3)]

    def make(seed: int) -> TrainingObjective:
        estimator = StraightThroughGumbel(temperature=schedules[seed])
        return NegativeELBO(noise_model(seed), estimator, beta=schedules[-seed - 1]).double()

    assert_replicas_equal_runs_alone(make, [adam()] * REPLICAS, noise)


def test_a_gradient_whose_norm_overflows_is_found_also_if_it_is_clipped():
    objectives = [NegativeELBO(noise_model(seed), StraightThrough(1.0)) for seed in range(2)]
    replicas = StackedObjectives(objectives, [adam()] * 2, clip=1.0)
    for index, value in enumerate([1e200, 1.0]):  # the square of 1e200 is infinite
        for parameter in objectives[index].parameters():
            parameter.grad = torch.full_like(parameter, value)
    replicas.clip_gradients()
    losses = torch.ones(2, 3)
    assert replicas.find_nonfinite(losses, "gradient") == [0]
    assert replicas.find_nonfinite(losses, "loss") == []


def test_the_gradient_of_each_replica_is_clipped_by_its_own_norm(noise):
    """The gradient of replica 0 is a thousand times as long as that of any other replica."""

    def make(seed: int) -> TrainingObjective:
        beta = 1000.0 if seed == 0 else 1.0
        estimator = StraightThrough(temperature=1.0)
        return NegativeELBO(noise_model(seed), estimator, beta=beta).double()

    assert_replicas_equal_runs_alone(make, [adam()] * REPLICAS, noise, clip=1.0)


def test_a_replica_with_convolutions_equals_a_run_alone(noise):
    def make(seed: int) -> TrainingObjective:
        torch.manual_seed(seed)
        networks = Conv(channels=2, hidden=6, activation="relu")
        model = CategoricalVAE(networks, LATENTS, CATEGORIES, image_shape=(4, 4))
        return NegativeELBO(model, StraightThrough(temperature=1.0)).double()

    assert_replicas_equal_runs_alone(make, [adam()] * REPLICAS, noise)


def test_under_bf16_a_replica_equals_a_run_alone_to_rounding(noise, float32):
    data, optimizers = noise_data(), [adam()] * REPLICAS
    make = lambda seed: NegativeELBO(noise_model(seed), StraightThrough(temperature=1.0))
    settings = {"precision": torch.bfloat16, "steps": 1}
    objectives = [make(seed) for seed in range(REPLICAS)]
    batches = noise_batches(data, range(REPLICAS))
    sums, _, _ = take_steps(objectives, optimizers, batches, noise, **settings)
    for index in range(REPLICAS):
        batches = noise_batches(data, [index])
        (sums_alone,), _, _ = take_steps([make(index)], optimizers[:1], batches, noise, **settings)
        assert_close(sums[index], sums_alone, rtol=0.01, atol=0.05)
    assert all(objective.model.precision is None for objective in objectives)


# Replicas do not influence each other


def test_the_noise_of_replicas_is_independent():
    objectives = [
        NegativeELBO(noise_model(0), StraightThrough(temperature=1.0)) for _ in range(REPLICAS)
    ]
    images = torch.rand(1, 200, 16).expand(REPLICAS, -1, -1)
    replicas = StackedObjectives(objectives, [adam()] * REPLICAS)
    distortions = replicas(images, 0).distortion.detach()
    assert not torch.equal(distortions[0], distortions[1])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        error = (distortions[a] - distortions[b]).std() / math.sqrt(200)
        assert abs((distortions[a] - distortions[b]).mean()) < 5 * error


def test_a_replica_with_a_nan_does_not_change_the_others(noise):
    data = noise_data()

    def sums(poisoned: bool) -> torch.Tensor:
        objectives = [noise_objective(seed) for seed in range(REPLICAS)]
        if poisoned:
            objectives[1].model.encoder[0].weight.data.fill_(math.nan)
        batches = noise_batches(data, range(REPLICAS))
        replicas = StackedObjectives(objectives, [adam()] * REPLICAS)
        step = EagerStep(optimize, replicas, batches, finite_check="loss")
        for number in range(3):
            noise.restart()
            assert step(number, number) == ([1] if poisoned else [])
        return replicas.sums

    with_nan, without_nan = sums(True), sums(False)
    assert torch.equal(with_nan[[0, 2]], without_nan[[0, 2]])
    assert with_nan[1].tolist() == [0, 0, 0]


def test_a_change_of_an_objective_changes_its_slice_of_the_stack():
    objectives = [NegativeELBO(noise_model(seed), Exact(limit=9)) for seed in range(REPLICAS)]
    replicas = StackedObjectives(objectives, [adam()] * REPLICAS)
    images = torch.rand(REPLICAS, BATCH, 16)
    before = replicas(images, 0).loss.detach()
    with torch.no_grad():
        objectives[1].model.encoder[0].weight.add_(1.0)
        objectives[2].load_state_dict(objectives[0].state_dict())
    after = replicas(images, 0).loss.detach()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert_close(after[2], objectives[0](images[2], 0).loss.detach())


@pytest.mark.parametrize("prior", ["learned", "uniform"])
def test_replicas_of_different_shapes_are_refused(prior):
    wider = MLP(encoder_sizes=[7], decoder_sizes=[6], activation="tanh")
    wider_model = CategoricalVAE(wider, LATENTS, CATEGORIES, prior=prior, image_shape=(4, 4))
    objectives = [NegativeELBO(model, Exact(limit=9)) for model in (noise_model(0), wider_model)]
    with pytest.raises(ValueError, match="differ in the shapes"):
        StackedObjectives(objectives, [adam()] * 2)


def test_a_replica_schedule_has_the_value_of_the_chosen_replica():
    schedules = [Constant(1.0), Linear(start=0.0, end=1.0, steps=4)]
    schedule = ReplicaSchedule(schedules)
    for index, step in ((0, 2), (1, 2), (1, torch.tensor(1))):
        schedule.replica.fill_(index)
        assert schedule(step).item() == pytest.approx(float(schedules[index](step)))


# Batches


@pytest.mark.parametrize("redraw", [False, True])
def test_a_replica_is_trained_on_the_batches_of_a_run_alone(redraw):
    data = noise_data(redraw)
    together = noise_batches(data, range(REPLICAS))
    alone = [noise_batches(data, [seed]) for seed in range(REPLICAS)]
    for _ in range(2):
        for number in range(len(together)):
            images = together.get(number)
            assert images.shape == (REPLICAS, BATCH, 16)
            assert torch.equal(images, torch.cat([batches.get(number) for batches in alone]))
        for batches in (together, *alone):
            batches.shuffle()


def test_the_number_of_a_batch_may_be_a_tensor():
    batches = noise_batches(noise_data(), range(REPLICAS))
    for number in range(len(batches)):
        assert torch.equal(batches.get(number), batches.get(torch.tensor(number)))


# Counters on the device


@pytest.mark.parametrize("optimizer", [Adam, AdamW, RAdam, SGD])
@pytest.mark.parametrize("replicas", [1, REPLICAS])
def test_a_step_that_reads_its_counters_from_the_device_equals_an_eager_step(
    optimizer, replicas, noise
):
    """Steps, learning rates and temperatures are tensors then. A GPU records these operations."""
    lr = Linear(start=0.05, end=0.01, steps=4)
    temperature = Linear(start=2.0, end=0.5, steps=4)
    moments = {"momentum": 0.9, "weight_decay": 0.01} if optimizer is SGD else MOMENTS
    data = noise_data()

    def build() -> tuple[StackedObjectives, Batches]:
        objectives = [
            NegativeELBO(noise_model(seed), StraightThroughGumbel(temperature=temperature))
            for seed in range(replicas)
        ]
        objectives = [objective.double() for objective in objectives]
        optimizers = [optimizer(lr=lr, **moments)] * replicas
        batches = noise_batches(data, range(replicas))
        return StackedObjectives(objectives, optimizers, clip=1.0), batches

    (eager_replicas, eager_batches), (replicas_on_device, batches) = build(), build()
    eager = EagerStep(optimize, eager_replicas, eager_batches)
    captured = CapturedStep(optimize, replicas_on_device, batches)
    for batch, step in ((2, 1), (3, 2), (4, 3)):
        noise.restart()
        assert eager(batch, step) == []
        noise.restart()
        captured.set_counters(batch, step)
        captured.run_from_counters()
    assert_close(eager_replicas.sums, replicas_on_device.sums, rtol=1e-6, atol=1e-6)
    for objective, expected in zip(
        replicas_on_device.objectives, eager_replicas.objectives, strict=True
    ):
        tensors, expected_tensors = state(objective), state(expected)
        for name, tensor in tensors.items():
            assert_close(tensor, expected_tensors[name], rtol=1e-6, atol=1e-7)
