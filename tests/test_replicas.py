"""Many runs in the same steps: each is what it would be alone."""

import math
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.testing import assert_close

from vae.data import Batches, DataSet, Split
from vae.estimators import Exact, StraightThrough, StraightThroughGumbel
from vae.model import CategoricalVAE
from vae.networks import MLP, Conv
from vae.objective import NegativeELBO, TrainingObjective
from vae.optimizers import SGD, Adam, AdamW, RAdam
from vae.replicas import OneOf, Replicas
from vae.schedules import Constant, Linear
from vae.step import TrainingStep

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(file.stem for file in (CONFIGS / "estimator").glob("*.yaml"))
OBJECTIVES = ["vimco", "concrete", "importance_weighted"]
N, K = 2, 3
R, B = 3, 5
MOMENTS = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}


class Stream:
    """Uniform noise in a fixed sequence: every replica, and every run alone, draws the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rewind()
        draw = lambda shape, dtype: torch.from_numpy(self.random(tuple(shape))).to(dtype)
        monkeypatch.setattr(torch, "rand", lambda shape, *, dtype, **_: draw(shape, dtype))
        monkeypatch.setattr(torch, "rand_like", lambda like: draw(like.shape, like.dtype))

    def rewind(self) -> None:
        self.random = np.random.default_rng(7).random


@pytest.fixture
def stream(monkeypatch) -> Stream:
    return Stream(monkeypatch)


def model(seed: int, prior: str = "learned") -> CategoricalVAE:
    torch.manual_seed(seed)
    networks = MLP(encoder_sizes=[6], decoder_sizes=[6], activation="tanh")
    built = CategoricalVAE(networks, N, K, prior=prior, image_shape=(4, 4))
    torch.nn.init.normal_(built.prior_logits)
    return built


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        sizes = [f"latents={N}", f"categories={K}", "training.steps=10"]
        return compose("train", [*sizes, *overrides])


def objective(seed: int, *overrides: str) -> TrainingObjective:
    config, given = composed(*overrides), {"model": model(seed)}
    if config.get("estimator") is not None:
        if "inner_samples" in config.estimator:
            config.estimator.inner_samples = 2  # in seconds
        given["estimator"] = hydra.utils.instantiate(config.estimator, _convert_="all")
    return hydra.utils.instantiate(config.objective, _convert_="all", **given).double()


def data(redraw: bool = False) -> DataSet:
    pixels = torch.randint(0, 256, (40, 16), dtype=torch.uint8)
    split = Split(pixels, torch.arange(40) % 10)
    return DataSet("noise", split, split, split, redraw, redraw)


class Doubles(Batches):
    """In float64, where rounding that Adam would blow up stays far below every tolerance."""

    def get(self, number: int | torch.Tensor) -> torch.Tensor:
        return super().get(number).to(torch.get_default_dtype())


def batches(images: DataSet, seeds: range, size: int = B) -> Batches:
    built = Doubles(images, size, [torch.Generator().manual_seed(seed) for seed in seeds])
    built.shuffle()
    return built


def state(objective: TrainingObjective) -> dict[str, torch.Tensor]:
    return {name: held.clone() for name, held in objective.state_dict().items()}


def stepped(objectives, optimizers, feed, stream, steps=3, **given):
    """Each objective's losses and state after some steps."""
    step = TrainingStep(objectives, optimizers, feed, **given)
    for number in range(steps):
        stream.rewind()
        assert step(number, number) == []
    norms = [step.gradient_norm(which) for which in range(len(objectives))]
    return step.sums, norms, [state(each) for each in objectives]


def assert_each_is_as_alone(make, optimizers, stream, **given) -> None:
    images = data()
    together = [make(seed) for seed in range(R)]
    sums, norms, states = stepped(together, optimizers, batches(images, range(R)), stream, **given)
    assert len({float(loss) for loss in sums[:, 0]}) == R  # they do differ
    for which in range(R):
        alone, feed = make(which), batches(images, range(which, which + 1))
        own = stepped([alone], [optimizers[which]], feed, stream, **given)
        assert_close(sums[which], own[0][0], rtol=1e-5, atol=1e-5)  # float32, as images are
        assert norms[which] == pytest.approx(own[1][0], rel=1e-5)
        for name, held in own[2][0].items():
            assert_close(states[which][name], held, rtol=1e-6, atol=1e-8, msg=name)


def adam(lr=0.01) -> Adam:
    return Adam(lr=lr, **MOMENTS)


# Each as alone


@pytest.mark.parametrize("name", NAMES)
def test_a_replica_equals_a_run_alone_for_every_estimator(name, stream):
    make = lambda seed: objective(seed, f"estimator={name}")
    assert_each_is_as_alone(make, [adam()] * R, stream, clip=0.5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_replica_equals_a_run_alone_for_every_objective(name, stream):
    make = lambda seed: objective(seed, f"objective={name}")
    assert_each_is_as_alone(make, [adam()] * R, stream)


@pytest.mark.parametrize("kind", [Adam, AdamW, RAdam])
def test_a_replica_has_its_own_optimizer_and_rate(kind, stream):
    rates = [0.01, 0.05, Linear(start=0.1, end=0.0, steps=3)]
    optimizers = [kind(lr=lr, **MOMENTS) for lr in rates]
    assert_each_is_as_alone(lambda seed: objective(seed), optimizers, stream)


def test_a_replica_has_its_own_temperature_and_beta(stream):
    schedules = [Constant(0.5), Constant(1.5), Linear(start=2.0, end=0.1, steps=3)]

    def make(seed: int) -> TrainingObjective:
        estimator = StraightThroughGumbel(temperature=schedules[seed])
        return NegativeELBO(model(seed), estimator, beta=schedules[-seed - 1]).double()

    assert_each_is_as_alone(make, [adam()] * R, stream)


def test_clipping_is_of_each_replica_alone(stream):
    """One with a gradient a thousand times as long does not shorten the others' steps."""

    def make(seed: int) -> TrainingObjective:
        beta = 1000.0 if seed == 0 else 1.0
        return NegativeELBO(model(seed), StraightThrough(temperature=1.0), beta=beta).double()

    assert_each_is_as_alone(make, [adam()] * R, stream, clip=1.0)


def test_networks_may_be_convolutions(stream):
    def make(seed: int) -> TrainingObjective:
        torch.manual_seed(seed)
        networks = Conv(channels=2, hidden=6, activation="relu")
        built = CategoricalVAE(networks, N, K, image_shape=(4, 4))
        return NegativeELBO(built, StraightThrough(temperature=1.0)).double()

    assert_each_is_as_alone(make, [adam()] * R, stream)


def test_under_bf16_a_replica_is_as_alone_to_its_rounding(stream):
    torch.set_default_dtype(torch.float32)
    images, optimizers = data(), [adam()] * R
    make = lambda seed: NegativeELBO(model(seed), StraightThrough(temperature=1.0))
    given = {"precision": torch.bfloat16, "steps": 1}
    together = [make(seed) for seed in range(R)]
    sums, _, _ = stepped(together, optimizers, batches(images, range(R)), stream, **given)
    for which in range(R):
        feed = batches(images, range(which, which + 1))
        own = stepped([make(which)], optimizers[:1], feed, stream, **given)
        assert_close(sums[which], own[0][0], rtol=0.01, atol=0.05)
    assert all(each.model.precision is None for each in together)


# Replicas are independent


def test_every_replica_has_noise_of_its_own():
    same = [NegativeELBO(model(0), StraightThrough(temperature=1.0)) for _ in range(R)]
    x = torch.rand(1, 200, 16).expand(R, -1, -1)
    distortions = Replicas(same)(x, 0).distortion.detach()
    assert not torch.equal(distortions[0], distortions[1])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        error = (distortions[a] - distortions[b]).std() / math.sqrt(200)
        assert abs((distortions[a] - distortions[b]).mean()) < 5 * error


def test_one_that_is_no_number_harms_no_other(stream):
    images = data()

    def losses(poisoned: bool) -> torch.Tensor:
        objectives = [objective(seed) for seed in range(R)]
        if poisoned:
            objectives[1].model.encoder[0].weight.data.fill_(math.nan)
        step = TrainingStep(objectives, [adam()] * R, batches(images, range(R)), look="loss")
        for number in range(3):
            stream.rewind()
            assert step(number, number) == ([1] if poisoned else [])
        return step.sums

    bad, good = losses(True), losses(False)
    assert torch.equal(bad[[0, 2]], good[[0, 2]])
    assert bad[1].tolist() == [0, 0, 0]


def test_what_is_done_to_a_replica_is_done_to_the_stack():
    objectives = [NegativeELBO(model(seed), Exact(limit=9)) for seed in range(R)]
    replicas, x = Replicas(objectives), torch.rand(R, B, 16)
    before = replicas(x, 0).loss.detach()
    with torch.no_grad():
        objectives[1].model.encoder[0].weight.add_(1.0)
        objectives[2].load_state_dict(objectives[0].state_dict())
    after = replicas(x, 0).loss.detach()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    alone = objectives[0](x[2], 0).loss
    assert_close(after[2], alone.detach())


@pytest.mark.parametrize("prior", ["learned", "uniform"])
def test_what_is_not_of_one_shape_is_refused(prior):
    wider = MLP(encoder_sizes=[7], decoder_sizes=[6], activation="tanh")
    other = CategoricalVAE(wider, N, K, prior=prior, image_shape=(4, 4))
    objectives = [NegativeELBO(each, Exact(limit=9)) for each in (model(0), other)]
    with pytest.raises(ValueError, match="not of one shape"):
        Replicas(objectives)


def test_a_schedule_of_its_own_is_told_apart():
    schedules = [Constant(1.0), Linear(start=0.0, end=1.0, steps=4)]
    one_of = OneOf(schedules)
    for which, step in ((0, 2), (1, 2), (1, torch.tensor(1))):
        one_of.which.fill_(which)
        assert one_of(step).item() == pytest.approx(float(schedules[which](step)))


# Batches


@pytest.mark.parametrize("redraw", [False, True])
def test_a_replica_sees_the_batches_of_a_run_alone(redraw):
    images = data(redraw)
    together = batches(images, range(R))
    alone = [batches(images, range(seed, seed + 1)) for seed in range(R)]
    for _epoch in range(2):
        for number in range(len(together)):
            x = together.get(number)
            assert x.shape == (R, B, 16)
            assert torch.equal(x, torch.cat([each.get(number) for each in alone]))
        for each in (together, *alone):
            each.shuffle()


def test_a_batch_is_chosen_by_a_tensor_too():
    feed = batches(data(), range(R))
    for number in range(len(feed)):
        assert torch.equal(feed.get(number), feed.get(torch.tensor(number)))


# The clock on the device


@pytest.mark.parametrize("kind", [Adam, AdamW, RAdam, SGD])
@pytest.mark.parametrize("replicas", [1, R])
def test_a_step_that_reads_its_clock_from_the_device_is_the_same(kind, replicas, stream):
    """Steps, rates and temperatures as tensors: what is captured on a GPU, here without one."""
    lr = Linear(start=0.05, end=0.01, steps=4)
    ramp = Linear(start=2.0, end=0.5, steps=4)

    def run(clock: str):
        make = lambda seed: NegativeELBO(model(seed), StraightThroughGumbel(temperature=ramp))
        objectives = [make(seed).double() for seed in range(replicas)]
        moments = {"momentum": 0.9, "weight_decay": 0.01} if kind is SGD else MOMENTS
        optimizers = [kind(lr=lr, **moments)] * replicas
        feed = batches(images, range(replicas))
        step = TrainingStep(objectives, optimizers, feed, clip=1.0, clock=clock)
        step.begin(2, 1)
        for number, at in ((2, 1), (3, 2), (4, 3)):
            stream.rewind()
            step(number, at)
        return step.sums, [state(each) for each in objectives]

    images = data()
    host, device = run("host"), run("device")
    assert_close(host[0], device[0], rtol=1e-6, atol=1e-6)
    for a, b in zip(host[1], device[1], strict=True):
        for name in a:
            assert_close(a[name], b[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("given", [{"look": "loss", "clock": "device"}, {"clock": "host"}])
def test_a_step_that_waits_is_not_captured(given):
    objectives = [NegativeELBO(model(0), Exact(limit=9))]
    with pytest.raises(ValueError, match="not captured"):
        TrainingStep(objectives, [adam()], batches(data(), range(1)), capture=True, **given)
