"""The contract of an estimator, held to every yaml under configs/estimator."""

import itertools
import math
from copy import deepcopy
from functools import cache
from pathlib import Path

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from pydantic import ValidationError
from scipy.stats import chisquare, norm
from torch.testing import assert_close

from vae.categorical import codes, log_prob, one_hot_argmax
from vae.estimators import (
    Estimator,
    Exact,
    Objective,
    Pathwise,
    ReinforceMovingAverage,
    StraightThroughArgmax,
)
from vae.estimators.disarm import antithetic_pair
from vae.schedules import schedules_of

CONFIGS = Path(__file__).parents[1] / "configs"
B, N, K = 6, 2, 3
SIZES = [f"latents={N}", f"categories={K}", "training.steps=1000"]
DRAWS = 20_000
FIVE_SIGMA = 2 * norm.sf(5)


@cache
def composed(name: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [f"estimator={name}", *SIZES, *overrides]).estimator


def build(name: str, *overrides: str) -> Estimator:
    few = ["estimator.inner_samples=2"] if "inner_samples" in composed(name) else []  # in seconds
    return hydra.utils.instantiate(composed(name, *few, *overrides), _convert_="all")


def square(weight: torch.Tensor, target: torch.Tensor) -> Objective:
    """A cost of its own for each image."""
    return lambda z: ((z * weight).sum((-2, -1)) - target).square()


def problem(batch: int = B, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Objective]:
    weight, target = torch.randn(N, K, dtype=dtype), torch.randn(batch, dtype=dtype)
    return torch.randn(batch, N, K, dtype=dtype), square(weight, target)


def evaluated(
    estimator: Estimator, logits: torch.Tensor, f: Objective, step: int | torch.Tensor = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The value and the gradient of the logits, always under the same seed."""
    torch.manual_seed(1)
    leaf = logits.detach().requires_grad_()
    value = estimator.to(logits.dtype)(leaf, f, step)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def points(estimator: Estimator, logits: torch.Tensor) -> list[torch.Tensor]:
    """Every z at which f is evaluated."""
    seen = []

    def f(z: torch.Tensor) -> torch.Tensor:
        seen.append(z.detach())
        return z.square().sum((-2, -1))

    estimator.to(logits.dtype)(logits.detach().requires_grad_(), f, 0)
    return seen


def one_hot(z: torch.Tensor) -> bool:
    return bool(((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all())


def assert_mean(draws: torch.Tensor, expected: torch.Tensor) -> None:
    """The mean over the first axis is the expected one, to five standard errors."""
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


def with_key(key: str) -> list[str]:
    return [name for name in NAMES if key in composed(name)]


NAMES = sorted(file.stem for file in (CONFIGS / "estimator").glob("*.yaml"))
TEMPERED = [name for name in NAMES if "temperature" in schedules_of(build(name))]
SAMPLING = with_key("samples")
PATHWISE = [name for name in NAMES if isinstance(build(name), Pathwise)]
HARD = [name for name in NAMES if all(map(one_hot, points(build(name), torch.randn(50, N, K))))]
KNOWN_HARD = [
    "decoupled_straight_through_gumbel",
    "disarm",
    "exact",
    "gapped_straight_through",
    "gumbel_rao",
    "minimum_variance",
    "reinforce",
    "reinforce_learned_baseline",
    "reinforce_moving_average",
    "reinmax",
    "reinmax_rao",
    "straight_through",
    "straight_through_argmax",
    "straight_through_gumbel",
]
MODE = ["straight_through_argmax"]  # of the hard ones, those whose code is no sample
HOT = ["reinmax"]  # those whose temperature is at least 1
ANNEALED = [
    "estimator/temperature=linear",
    "estimator.temperature.start=2.0",
    "estimator.temperature.end=1.0",
    "training.steps=10",
]

every_estimator = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


# What is called with what, and what comes back


@every_estimator
@every_dtype
def test_a_value_for_each_image_in_the_logits_dtype(name, dtype):
    value, gradient = evaluated(build(name), *problem(dtype=dtype))
    assert value.shape == (B,)
    assert value.dtype == gradient.dtype == dtype


@every_estimator
@every_dtype
def test_f_is_given_samples_of_codes_in_the_logits_dtype(name, dtype):
    seen = points(build(name), torch.randn(B, N, K, dtype=dtype))
    assert seen
    for z in seen:
        assert z.dtype == dtype
        assert z.dim() == 4
        assert z.shape[1] in (1, B)
        assert z.shape[2:] == (N, K)
        assert_close(z.sum(-1), torch.ones_like(z[..., 0]))


@every_estimator
def test_f_may_depend_on_the_code_alone(name):
    logits, weight = torch.randn(B, N, K), torch.randn(N, K)
    alone, _ = evaluated(build(name), logits, lambda z: (z * weight).sum((-2, -1)).square())
    for_each, _ = evaluated(build(name), logits, square(weight, torch.zeros(B)))
    assert_close(alone, for_each)


@pytest.mark.parametrize("name", KNOWN_HARD)
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
@every_dtype
def test_f_is_evaluated_at_exactly_one_hot_codes(name, scale, dtype):
    for z in points(build(name), scale * torch.randn(500, N, K, dtype=dtype)):
        assert one_hot(z)


@pytest.mark.parametrize("name", SAMPLING)
def test_the_value_is_the_mean_over_the_samples(name):
    (logits, f), seen = problem(), []

    def recorded(z: torch.Tensor) -> torch.Tensor:
        seen.append(z.detach())
        return f(z)

    value, _ = evaluated(build(name, "estimator.samples=5"), logits, recorded)
    assert seen[0].shape == (5, B, N, K)
    assert (seen[0][1:] != seen[0][0]).any()
    assert_close(value, f(seen[0]).mean(0))


@pytest.mark.parametrize("name", SAMPLING)
def test_four_times_the_samples_have_a_quarter_of_the_variance(name):
    logits = torch.randn(1, N, K).expand(DRAWS, N, K)
    f = square(torch.randn(N, K), torch.zeros(DRAWS))
    few, many = (
        evaluated(build(name, f"estimator.samples={samples}"), logits, f)[0].var()
        for samples in (2, 8)
    )
    assert few / many > 3.3  # 4, less five standard errors


# The gradient


@every_estimator
def test_the_gradient_reaches_the_logits_and_what_f_closes_over(name):
    logits, weight = torch.randn(B, N, K, requires_grad=True), torch.randn(N, K).requires_grad_()
    value = build(name)(logits, square(weight, torch.randn(B)), 0)
    for gradient in torch.autograd.grad(value.sum(), (logits, weight)):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@every_estimator
def test_the_gradient_of_an_image_depends_on_its_own_value_alone(name):
    logits, f = problem()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(build(name)(logits, f, 0)[0], logits)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MODE])
def test_the_gradient_of_the_logits_sums_to_zero(name):
    _, gradient = evaluated(build(name), *problem())
    assert gradient.abs().max() > 1e-3
    assert_close(gradient.sum(-1), torch.zeros(B, N), rtol=0, atol=1e-12)


@every_estimator
@pytest.mark.parametrize("computed_in", [torch.float32, torch.bfloat16])
def test_value_and_gradients_are_finite_at_extreme_logits(name, computed_in):
    logits = (300 * torch.randn(500, N, K)).to(computed_in).float().requires_grad_()
    weight = torch.randn(N, K, dtype=torch.float32, requires_grad=True)
    f = square(weight, torch.randn(500, dtype=torch.float32))
    value = build(name).to(torch.float32)(logits, f, 0)
    for number in (value, *torch.autograd.grad(value.sum(), (logits, weight))):
        assert number.isfinite().all()


@every_estimator
def test_a_constant_has_no_gradient(name):
    logits = torch.randn(1, N, K).expand(DRAWS, N, K)
    value, gradient = evaluated(build(name), logits, lambda z: 3.0 + 0.0 * z.sum((-2, -1)))
    assert_mean(value, torch.tensor(3.0))
    assert_mean(gradient, torch.zeros(N, K))


# The expectation, of those that evaluate f at samples


def enumerated(
    logits: torch.Tensor, f: Objective, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: E[f(z)] under one image's (N, K) logits, and its gradient in the weight."""
    p = logits.softmax(-1)
    value = sum(
        torch.stack([p[n, k] for n, k in enumerate(digits)]).prod()
        * f(torch.eye(K)[list(digits)][None, None]).squeeze()
        for digits in itertools.product(range(K), repeat=N)
    )
    return value.detach(), torch.autograd.grad(value, weight)[0]


@pytest.mark.parametrize("name", [name for name in HARD if name not in MODE])
def test_the_value_and_the_gradient_of_f_are_unbiased(name):
    logits, weight, target = torch.randn(N, K), torch.randn(N, K), torch.randn(1)
    weight.requires_grad_()
    expected, expected_gradient = enumerated(logits, square(weight, target), weight)
    weights = weight.detach().expand(DRAWS, N, K).clone().requires_grad_()
    value = build(name)(logits.expand(DRAWS, N, K), square(weights, target), 0)
    assert_mean(value.detach(), expected)
    assert_mean(torch.autograd.grad(value.sum(), weights)[0], expected_gradient)


def test_exact_is_exact():
    logits, weight, target = torch.randn(B, N, K), torch.randn(N, K), torch.randn(1)
    weight.requires_grad_()
    value = build("exact")(logits, square(weight, target), 0)
    expected = [enumerated(each, square(weight, target), weight)[0] for each in logits]
    assert_close(value, torch.stack(expected), rtol=0, atol=1e-12)


@every_dtype
def test_exact_leaves_out_what_rounding_would_lose(dtype):
    confident = 12 * torch.randn(B, N, K, dtype=dtype)
    confident[:, 0, 0] = -80.0  # no image has a use for the codes that begin with 0
    logits, (weight, target) = confident.requires_grad_(), torch.randn(2, N, K, dtype=dtype)
    seen = []

    def f(z: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return square(weight, target[0, 0])(z)

    value = build("exact").to(dtype)(logits, f, 0)
    z = codes(N, K).to(dtype).unsqueeze(1)
    every = (log_prob(logits, z).exp() * f(z)).sum(0)
    assert len(seen[0]) <= K ** (N - 1) * (K - 1) < len(seen[1])
    assert_close(value, every)
    assert_close(*(torch.autograd.grad(each.sum(), logits)[0] for each in (value, every)))


def test_exact_has_a_gradient_of_no_bias_where_a_category_is_left_out():
    """Whatever constant f has: the gradient there is below rounding, and so is the error."""
    logits = torch.tensor([[[20.0, 0.0]]], dtype=torch.float32, requires_grad=True)
    value = Exact(limit=2)(logits, lambda z: 1e4 + 5 * z[..., 0, 1], 0)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.abs().max() < 1e-7  # 1e-8 in truth, 2e-5 without the mean


def test_exact_leaves_out_nothing_where_a_logit_is_no_number():
    logits = torch.full((B, N, K), torch.nan)
    assert build("exact")(logits, square(torch.randn(N, K), torch.zeros(1)), 0).isnan().all()


def test_exact_under_vmap():
    logits, weight = 30 * torch.randn(3, B, N, K), torch.randn(N, K)
    estimator, f = build("exact"), square(weight, torch.zeros(1))
    stacked = torch.func.vmap(lambda each: estimator(each, f, 0))(logits)
    assert_close(stacked, torch.stack([estimator(each, f, 0) for each in logits]))


@pytest.mark.parametrize(
    "name, temperature",
    [
        (name, temperature)
        for name in HARD
        for temperature in (0.1, 1.0, 5.0)
        if name in TEMPERED and (temperature >= 1 or name not in HOT)
    ],
)
def test_samples_follow_the_softmax_at_every_temperature(name, temperature):
    logits = torch.randn(N, K)
    estimator = build(name, f"estimator.temperature={temperature}")
    z = points(estimator, logits.expand(DRAWS, N, K))[0]  # (S, DRAWS, N, K)
    code = z.argmax(-1).flatten(0, 1) @ K ** torch.arange(N)
    p = logits.softmax(-1)
    law = torch.stack([p[0, code % K] * p[1, code // K] for code in range(K**N)])
    counts = torch.bincount(code, minlength=K**N)
    assert chisquare(counts.numpy(), (law * len(code)).numpy()).pvalue > FIVE_SIGMA


# Time


@every_estimator
@pytest.mark.parametrize("step", [0, 7, 10_000])
def test_a_step_is_a_number_or_a_tensor(name, step):
    estimator = build(name, *(ANNEALED if name in TEMPERED else []))
    logits, f = problem(dtype=torch.float32)
    for of_number, of_tensor in zip(
        evaluated(deepcopy(estimator), logits, f, step),
        evaluated(deepcopy(estimator), logits, f, torch.tensor(step)),
        strict=True,
    ):
        assert_close(of_tensor, of_number)  # dtype included


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("step, temperature", [(0, 2.0), (5, 1.5), (10, 1.0), (11, 1.0)])
def test_the_schedule_is_followed(name, step, temperature):
    logits, f = problem()
    _, annealed = evaluated(build(name, *ANNEALED), logits, f, step)
    _, constant = evaluated(build(name, f"estimator.temperature={temperature}"), logits, f)
    assert_close(annealed, constant, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TEMPERED)
def test_the_temperature_changes_the_gradient(name):
    estimator, (logits, f) = build(name, *ANNEALED), problem()
    gradients = [evaluated(estimator, logits, f, step)[1] for step in (0, 5, 10)]
    for one, other in itertools.pairwise(gradients):
        assert (one - other).abs().max() > 1e-3


# State


@every_estimator
def test_a_state_dict_restores_an_estimator(name):
    used, fresh, (logits, f) = build(name), build(name), problem()
    used(logits.requires_grad_(), f, 0).sum().backward()
    fresh.load_state_dict(used.state_dict())
    for restored, original in zip(
        evaluated(fresh, logits, f, 3), evaluated(used, logits, f, 3), strict=True
    ):
        assert torch.equal(restored, original)


def test_a_moving_average_forgets_a_loss_that_is_no_number():
    estimator = ReinforceMovingAverage(decay=0.9)
    logits = torch.randn(5, N, K)
    estimator(logits, lambda z: z.sum((-2, -1)) + 3, 0)
    before = estimator.average.clone(), estimator.seen.clone()
    estimator(logits, lambda z: z.sum((-2, -1)) * math.nan, 1)
    assert (estimator.average, estimator.seen) == before
    estimator(logits, lambda z: z.sum((-2, -1)) + 3, 2)
    assert (estimator.average / estimator.seen).item() == pytest.approx(N + 3)


def test_antithetic_codes_are_drawn_in_float64(monkeypatch):
    """Float32's uniforms are multiples of 2^-24, and would draw a category of 1e-13 that often."""
    drawn, rand = [], torch.rand

    def noted(*size, **given):
        drawn.append(rand(*size, **given))
        return drawn[-1]

    monkeypatch.setattr(torch, "rand", noted)
    antithetic_pair(torch.randn(5, N, K, dtype=torch.float32))
    assert [each.dtype for each in drawn] == [torch.float64]


@every_estimator
def test_a_state_holds_no_schedule(name):
    estimator = build(name)
    assert not set(estimator.state_dict()) & set(schedules_of(estimator))


# What is refused


@pytest.mark.parametrize(
    "name, overrides",
    [
        *((name, [f"estimator.temperature={x}"]) for name in TEMPERED for x in (0.0, -1.0, "nan")),
        *((name, [*ANNEALED, "estimator.temperature.end=0.0"]) for name in TEMPERED),
        *((name, [f"estimator.samples={x}"]) for name in SAMPLING for x in (0, -1, 1.5, "true")),
        *((name, ["+estimator.unknown=1"]) for name in NAMES),
    ],
    ids=lambda given: given if isinstance(given, str) else given[-1],
)
def test_invalid_arguments_are_refused(name, overrides):
    with pytest.raises(InstantiationException) as raised:
        build(name, *overrides)
    assert isinstance(raised.value.__cause__, ValidationError)


@every_estimator
def test_a_small_code_space_is_no_trouble(name):
    build(name).check(N, K)


def test_exact_refuses_more_codes_than_its_limit():
    logits, f = problem()
    evaluated(Exact(limit=K**N), logits, f)
    refused = Exact(limit=K**N - 1)
    message = rf"{K}\*\*{N} .* {K**N - 1}$"
    with pytest.raises(ValueError, match=message):
        refused.check(N, K)
    with pytest.raises(ValueError, match=message):
        refused(logits, f, 0)


# The sample with its gradient attached


@pytest.mark.parametrize("name", PATHWISE)
def test_f_of_the_sample_is_the_estimate(name):
    estimator, (logits, f) = build(name), problem()
    value, gradient = evaluated(estimator, logits, f)
    torch.manual_seed(1)
    z = estimator.sample(logits.requires_grad_(), 0)
    assert z.shape[1:] == (B, N, K)
    by_hand = f(z).mean(0)
    assert torch.equal(by_hand, value)
    assert torch.equal(torch.autograd.grad(by_hand.sum(), logits)[0], gradient)


def test_argmax_can_be_mapped_over_stacked_logits():
    estimator, weight = StraightThroughArgmax(), torch.randn(B, N, K)
    stacked = torch.randn(4, B, N, K)

    def cost(logits: torch.Tensor) -> torch.Tensor:
        return (estimator.sample(logits, 0) * weight).sum().square()

    codes = torch.func.vmap(lambda logits: estimator.sample(logits, 0))(stacked)
    assert torch.equal(codes, one_hot_argmax(stacked).unsqueeze(1))
    mapped = torch.func.vmap(torch.func.grad(cost))(stacked)
    one_by_one = torch.stack([torch.func.grad(cost)(logits) for logits in stacked])
    assert mapped.abs().max() > 0
    assert_close(mapped, one_by_one)
