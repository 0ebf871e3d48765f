"""The contract of an estimator. Every yaml file of configs/estimator is tested against it."""

import inspect
import itertools
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from pydantic import ValidationError
from scipy.stats import chisquare, norm
from torch.testing import assert_close

from tests.helpers import compose_config, option_names, resolve_config
from vae.categorical import one_hot_argmax
from vae.estimators import CodeFunction, Estimator, Pathwise, StraightThroughArgmax
from vae.schedules import AtLeastOneSchedule, schedules_of

B, N, K = 6, 2, 3
DRAWS = 20_000
FIVE_SIGMA = 2 * norm.sf(5)  # the p-value at five standard errors


@cache
def estimator_config(name: str, *overrides: str) -> dict[str, Any]:
    """Return the configuration of an estimator; schedules last for 1,000 steps by default."""
    config = compose_config(f"estimator={name}", f"latents={N}", f"categories={K}", *overrides)
    return resolve_config(config, total_steps=1000)["estimator"]


def build(name: str, *overrides: str) -> Estimator:
    """Build the estimator of an option file; few inner samples, so that it takes no minutes."""
    few = ["estimator.inner_samples=2"] if "inner_samples" in estimator_config(name) else []
    config = estimator_config(name, *few, *overrides)
    return hydra.utils.instantiate(config, _convert_="all")


def squared_error(weight: torch.Tensor, target: torch.Tensor) -> CodeFunction:
    """Return the f that maps z to (<z, weight> - target)^2, with one target per image (B,)."""
    return lambda z: ((z * weight).sum((-2, -1)) - target).square()


def problem(
    batch: int = B, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, CodeFunction]:
    """Return random logits (B, N, K) and an f that differs between images."""
    weight, target = torch.randn(N, K, dtype=dtype), torch.randn(batch, dtype=dtype)
    return torch.randn(batch, N, K, dtype=dtype), squared_error(weight, target)


class Estimate(NamedTuple):
    """The value (B,) and the gradient (B, N, K) that an estimator returns."""

    value: torch.Tensor
    gradient: torch.Tensor


def estimate(
    estimator: Estimator, logits: torch.Tensor, f: CodeFunction, step: int | torch.Tensor = 0
) -> Estimate:
    """Return the estimate under a seed that is the same in every call."""
    torch.manual_seed(1)
    leaf = logits.detach().requires_grad_()
    value = estimator.to(logits.dtype)(leaf, f, step)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return Estimate(value.detach(), gradient)


def points_of_f(estimator: Estimator, logits: torch.Tensor) -> list[torch.Tensor]:
    """Return the points z (S, B, N, K) of each evaluation of f."""
    points = []

    def f(z: torch.Tensor) -> torch.Tensor:
        points.append(z.detach())
        return z.square().sum((-2, -1))

    estimator.to(logits.dtype)(logits.detach().requires_grad_(), f, 0)
    return points


def is_one_hot(z: torch.Tensor) -> bool:
    return bool(((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all())


def assert_mean(draws: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that the mean over the first axis is `expected`, to five standard errors."""
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


def enumerate_codes(
    logits: torch.Tensor, f: CodeFunction, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E[f(z)] for the logits (N, K) of one image, and its gradient in the weight of f."""
    p = logits.softmax(-1)
    value = sum(
        torch.stack([p[n, k] for n, k in enumerate(digits)]).prod()
        * f(torch.eye(K)[list(digits)][None, None]).squeeze()
        for digits in itertools.product(range(K), repeat=N)
    )
    return value.detach(), torch.autograd.grad(value, weight)[0]


NAMES = option_names("estimator")

# Which estimators a test is for follows from their option files and constructors, so that a new
# estimator is tested without a change here. There are two exceptions, because a docstring claims
# something that cannot be read from the code.

RELAXED = ["gumbel_softmax", "muprop", "rebar", "relax", "softmax"]
"""Estimators that evaluate f inside the simplex. Every other one must use one-hot codes alone."""

NO_SAMPLE = ["redge", "reindge", "straight_through_argmax"]
"""Estimators whose one-hot code is not a sample of q. Their value does not estimate E[f(z)]."""

HARD = [name for name in NAMES if name not in RELAXED]
SAMPLING = [name for name in NAMES if "samples" in estimator_config(name)]
PATHWISE = [name for name in NAMES if isinstance(build(name), Pathwise)]
TEMPERED = [name for name in NAMES if "temperature" in schedules_of(build(name))]


def is_allowed(name: str, temperature: float) -> bool:
    """Return whether the constructor of an estimator takes this temperature."""
    parameter = inspect.signature(type(build(name))).parameters["temperature"]
    return temperature >= 1 or parameter.annotation != AtLeastOneSchedule


ANNEALED = [
    "estimator/temperature=linear",
    "estimator.temperature.start=2.0",
    "estimator.temperature.end=1.0",
    "estimator.temperature.steps=10",
]
"""Overrides that lower the temperature from 2 to 1 within ten steps."""

every_estimator = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


# Arguments of f, and the shape of the result


@every_estimator
@every_dtype
def test_value_has_one_entry_per_image_and_the_dtype_of_the_logits(name, dtype):
    value, gradient = estimate(build(name), *problem(dtype=dtype))
    assert value.shape == (B,)
    assert value.dtype == gradient.dtype == dtype


@every_estimator
@every_dtype
def test_f_receives_samples_of_codes_in_the_dtype_of_the_logits(name, dtype):
    points = points_of_f(build(name), torch.randn(B, N, K, dtype=dtype))
    assert points
    for z in points:
        assert z.dtype == dtype
        assert z.dim() == 4
        assert z.shape[1] in (1, B)
        assert z.shape[2:] == (N, K)
        assert_close(z.sum(-1), torch.ones_like(z[..., 0]))


@every_estimator
def test_f_may_ignore_the_image(name):
    logits, weight = torch.randn(B, N, K), torch.randn(N, K)
    without_target = lambda z: (z * weight).sum((-2, -1)).square()
    same_target = squared_error(weight, torch.zeros(B))
    assert_close(
        estimate(build(name), logits, without_target).value,
        estimate(build(name), logits, same_target).value,
    )


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
@every_dtype
def test_f_is_evaluated_at_exactly_one_hot_codes(name, scale, dtype):
    for z in points_of_f(build(name), scale * torch.randn(500, N, K, dtype=dtype)):
        assert is_one_hot(z)


@pytest.mark.parametrize("name", RELAXED)
def test_relaxed_estimators_evaluate_f_inside_the_simplex(name):
    points = points_of_f(build(name), torch.randn(50, N, K))
    assert not all(map(is_one_hot, points))


@pytest.mark.parametrize("name", SAMPLING)
def test_value_is_the_mean_of_f_over_the_samples(name):
    (logits, f), points = problem(), []

    def recording_f(z: torch.Tensor) -> torch.Tensor:
        points.append(z.detach())
        return f(z)

    value, _ = estimate(build(name, "estimator.samples=5"), logits, recording_f)
    assert points[0].shape == (5, B, N, K)
    assert (points[0][1:] != points[0][0]).any()
    assert_close(value, f(points[0]).mean(0))


@pytest.mark.parametrize("name", SAMPLING)
def test_four_times_the_samples_have_a_quarter_of_the_variance(name):
    logits = torch.randn(1, N, K).expand(DRAWS, N, K)
    f = squared_error(torch.randn(N, K), torch.zeros(DRAWS))
    few, many = (
        estimate(build(name, f"estimator.samples={samples}"), logits, f).value.var()
        for samples in (2, 8)
    )
    assert few / many > 3.3  # 4, less five standard errors


# The gradient


@every_estimator
def test_gradient_reaches_the_logits_and_the_parameters_of_f(name):
    logits, weight = torch.randn(B, N, K, requires_grad=True), torch.randn(N, K).requires_grad_()
    value = build(name)(logits, squared_error(weight, torch.randn(B)), 0)
    for gradient in torch.autograd.grad(value.sum(), (logits, weight)):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@every_estimator
def test_value_of_an_image_has_no_gradient_in_the_logits_of_other_images(name):
    logits, f = problem()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(build(name)(logits, f, 0)[0], logits)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "straight_through_argmax"])
def test_gradient_sums_to_zero_over_the_categories(name):
    _, gradient = estimate(build(name), *problem())
    assert gradient.abs().max() > 1e-3
    assert_close(gradient.sum(-1), torch.zeros(B, N), rtol=0, atol=1e-12)


@every_estimator
@pytest.mark.parametrize("computed_in", [torch.float32, torch.bfloat16])
def test_value_and_gradients_are_finite_at_extreme_logits(name, computed_in):
    logits = (300 * torch.randn(500, N, K)).to(computed_in).float().requires_grad_()
    weight = torch.randn(N, K, dtype=torch.float32, requires_grad=True)
    f = squared_error(weight, torch.randn(500, dtype=torch.float32))
    value = build(name).to(torch.float32)(logits, f, 0)
    for result in (value, *torch.autograd.grad(value.sum(), (logits, weight))):
        assert result.isfinite().all()


@every_estimator
def test_constant_f_has_its_value_and_no_gradient_on_average(name):
    logits = torch.randn(1, N, K).expand(DRAWS, N, K)
    value, gradient = estimate(build(name), logits, lambda z: 3.0 + 0.0 * z.sum((-2, -1)))
    assert_mean(value, torch.tensor(3.0))
    assert_mean(gradient, torch.zeros(N, K))


# The expectation, of estimators that evaluate f at samples of q


@pytest.mark.parametrize("name", [name for name in HARD if name not in NO_SAMPLE])
def test_value_and_gradient_of_the_parameters_of_f_are_unbiased(name):
    logits, weight, target = torch.randn(N, K), torch.randn(N, K), torch.randn(1)
    weight.requires_grad_()
    expected = enumerate_codes(logits, squared_error(weight, target), weight)
    weights = weight.detach().expand(DRAWS, N, K).clone().requires_grad_()
    value = build(name)(logits.expand(DRAWS, N, K), squared_error(weights, target), 0)
    assert_mean(value.detach(), expected[0])
    assert_mean(torch.autograd.grad(value.sum(), weights)[0], expected[1])


@pytest.mark.parametrize(
    "name, temperature",
    [
        (name, temperature)
        for name in HARD
        for temperature in (0.1, 1.0, 5.0)
        if name in TEMPERED and is_allowed(name, temperature)
    ],
)
def test_samples_follow_the_softmax_of_the_logits_at_every_temperature(name, temperature):
    logits = torch.randn(N, K)
    estimator = build(name, f"estimator.temperature={temperature}")
    z = points_of_f(estimator, logits.expand(DRAWS, N, K))[0]  # (S, DRAWS, N, K)
    code = z.argmax(-1).flatten(0, 1) @ K ** torch.arange(N)
    p = logits.softmax(-1)
    probabilities = torch.stack([p[0, code % K] * p[1, code // K] for code in range(K**N)])
    counts = torch.bincount(code, minlength=K**N)
    expected = probabilities * len(code)
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > FIVE_SIGMA


# The step


@every_estimator
@pytest.mark.parametrize("step", [0, 7, 10_000])
def test_step_may_be_a_number_or_a_tensor(name, step):
    estimator = build(name, *(ANNEALED if name in TEMPERED else []))
    logits, f = problem(dtype=torch.float32)
    for with_number, with_tensor in zip(
        estimate(deepcopy(estimator), logits, f, step),
        estimate(deepcopy(estimator), logits, f, torch.tensor(step)),
        strict=True,
    ):
        assert_close(with_tensor, with_number)  # dtype included


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("step, temperature", [(0, 2.0), (5, 1.5), (10, 1.0), (11, 1.0)])
def test_temperature_is_that_of_the_schedule_at_the_step(name, step, temperature):
    logits, f = problem()
    annealed = estimate(build(name, *ANNEALED), logits, f, step)
    constant = estimate(build(name, f"estimator.temperature={temperature}"), logits, f)
    assert_close(annealed.gradient, constant.gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TEMPERED)
def test_gradient_depends_on_the_temperature(name):
    estimator, (logits, f) = build(name, *ANNEALED), problem()
    gradients = [estimate(estimator, logits, f, step).gradient for step in (0, 5, 10)]
    for earlier, later in itertools.pairwise(gradients):
        assert (earlier - later).abs().max() > 1e-3


# State


@every_estimator
def test_state_dict_restores_an_estimator(name):
    used, fresh, (logits, f) = build(name), build(name), problem()
    used(logits.requires_grad_(), f, 0).sum().backward()
    fresh.load_state_dict(used.state_dict())
    for restored, original in zip(
        estimate(fresh, logits, f, 3), estimate(used, logits, f, 3), strict=True
    ):
        assert torch.equal(restored, original)


@every_estimator
def test_state_dict_holds_no_schedule(name):
    estimator = build(name)
    assert not set(estimator.state_dict()) & set(schedules_of(estimator))


# Checks


@pytest.mark.parametrize(
    "name, overrides",
    [
        *((name, [f"estimator.temperature={x}"]) for name in TEMPERED for x in (0.0, -1.0, "nan")),
        *((name, [*ANNEALED, "estimator.temperature.end=0.0"]) for name in TEMPERED),
        *((name, [f"estimator.samples={x}"]) for name in SAMPLING for x in (0, -1, 1.5, "true")),
        *((name, ["+estimator.unknown=1"]) for name in NAMES),
    ],
    ids=lambda argument: argument if isinstance(argument, str) else argument[-1],
)
def test_invalid_settings_are_refused(name, overrides):
    with pytest.raises(InstantiationException) as raised:
        build(name, *overrides)
    assert isinstance(raised.value.__cause__, ValidationError)


@every_estimator
def test_every_estimator_can_handle_small_codes(name):
    build(name).check(N, K)


# Samples of pathwise estimators


@pytest.mark.parametrize("name", PATHWISE)
def test_mean_of_f_at_the_sample_is_the_estimate(name):
    estimator, (logits, f) = build(name), problem()
    value, gradient = estimate(estimator, logits, f)
    torch.manual_seed(1)
    z = estimator.sample(logits.requires_grad_(), 0)
    assert z.shape[1:] == (B, N, K)
    mean = f(z).mean(0)
    assert torch.equal(mean, value)
    assert torch.equal(torch.autograd.grad(mean.sum(), logits)[0], gradient)


def test_argmax_under_vmap_is_argmax_of_each():
    estimator, weight = StraightThroughArgmax(), torch.randn(B, N, K)
    stacked = torch.randn(4, B, N, K)

    def cost(logits: torch.Tensor) -> torch.Tensor:
        return (estimator.sample(logits, 0) * weight).sum().square()

    modes = torch.func.vmap(lambda logits: estimator.sample(logits, 0))(stacked)
    assert torch.equal(modes, one_hot_argmax(stacked).unsqueeze(1))
    mapped = torch.func.vmap(torch.func.grad(cost))(stacked)
    one_by_one = torch.stack([torch.func.grad(cost)(logits) for logits in stacked])
    assert mapped.abs().max() > 0
    assert_close(mapped, one_by_one)
