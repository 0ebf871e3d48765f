"""The bias that each estimator's docstring states, compared with enumeration of all codes."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from tests.helpers import gradient_estimates
from vae.categorical import codes, gradient_of, log_prob, one_hot_argmax
from vae.estimators import (
    CodeFunction,
    DecoupledStraightThroughGumbel,
    Exact,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    MinimumVariance,
    ReinMax,
    Softmax,
    StraightThrough,
    StraightThroughArgmax,
    StraightThroughGumbel,
    Surrogate,
)

N, K = 3, 4
DRAWS = 20_000

# Families of functions f. Each takes a weight (N, K) and returns an f that maps codes
# (S, B, N, K) to values (S, B).

Family = Callable[[torch.Tensor], CodeFunction]


def linear(weight: torch.Tensor) -> CodeFunction:
    return lambda z: (z * weight).sum((-2, -1))


def multilinear(weight: torch.Tensor) -> CodeFunction:
    """Return an f that is linear in each z_n, with products of up to N different ones."""
    return lambda z: (1 + (z * weight).sum(-1)).prod(-1)


def quadratic(weight: torch.Tensor) -> CodeFunction:
    """Return an f that is quadratic in each z_n, without products of different ones."""
    return lambda z: (z * weight).sum(-1).square().sum(-1)


def exponential(weight: torch.Tensor) -> CodeFunction:
    """Return the f that sums the exponentials of five random linear functions of z."""
    matrix = torch.randn(N * K, 5, generator=torch.Generator().manual_seed(0)) * weight.std()
    return lambda z: (z.flatten(-2) @ matrix).exp().sum(-1)


# Gradients of L = E[f(z)] in the logits (N, K)


def gradient_by_definition(f: CodeFunction, logits: torch.Tensor) -> torch.Tensor:
    """Return dL / dlogits_nk = sum_z q(z) f(z) (z_nk - p_nk), by a loop over all codes."""
    p = logits.softmax(-1)
    gradient = torch.zeros(N, K)
    for digits in itertools.product(range(K), repeat=N):
        z = torch.eye(K)[list(digits)]
        q = torch.stack([p[n, k] for n, k in enumerate(digits)]).prod()
        gradient += q * f(z[None, None]).squeeze() * (z - p)
    return gradient


def exact_gradient(f: CodeFunction, logits: torch.Tensor) -> torch.Tensor:
    return gradient_estimates(Exact(limit=K**N), f, logits.unsqueeze(0)).squeeze(0)


def expected_gradient(
    estimator: Surrogate | MinimumVariance,
    f: CodeFunction,
    logits: torch.Tensor,
    temperature: float | None,
) -> torch.Tensor:
    """Return the expectation of the gradient estimate, summed over all codes z."""
    z = codes(N, K)
    leaf = logits.expand_as(z).clone().requires_grad_()
    surrogate = estimator.surrogate(z.unsqueeze(0), leaf, temperature)
    value = f(z.unsqueeze(0) + gradient_of(surrogate)).sum()
    (gradient,) = torch.autograd.grad(value, leaf)  # (K**N, N, K)
    q = log_prob(logits.unsqueeze(0), z.unsqueeze(1)).exp().squeeze(1)
    return torch.einsum("c, cnk -> nk", q, gradient)


def relative_error(gradient: torch.Tensor, truth: torch.Tensor) -> float:
    return ((gradient - truth).norm() / truth.norm()).item()


def z_scores(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return by how many standard errors the means of two independent samples differ."""
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    return (first.mean(0) - second.mean(0)).abs() / error


# Exact


@pytest.mark.parametrize("family", [linear, multilinear, quadratic, exponential])
def test_exact_has_no_bias(family):
    f, logits = family(torch.randn(N, K)), torch.randn(N, K)
    assert relative_error(exact_gradient(f, logits), gradient_by_definition(f, logits)) < 1e-12


def test_exact_has_no_variance():
    f, logits = exponential(torch.randn(N, K)), torch.randn(N, K)
    assert torch.equal(exact_gradient(f, logits), exact_gradient(f, logits))


# Straight-through


def straight_through_error(family: Family, temperature: float) -> float:
    f, logits = family(torch.randn(N, K)), torch.randn(N, K)
    gradient = expected_gradient(StraightThrough(temperature=1.0), f, logits, temperature)
    return relative_error(gradient, exact_gradient(f, logits))


@pytest.mark.parametrize("family", [linear, multilinear])
def test_straight_through_is_unbiased_if_f_is_linear_in_each_latent(family):
    assert straight_through_error(family, 1.0) < 1e-12


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_straight_through_has_the_jacobian_of_the_tempered_softmax(temperature):
    weight, logits = torch.randn(N, K), torch.randn(5, N, K)  # f is linear with slope weight
    p = (logits / temperature).softmax(-1)
    by_formula = p * (weight - (p * weight).sum(-1, keepdim=True)) / temperature
    gradient = gradient_estimates(StraightThrough(temperature=temperature), linear(weight), logits)
    assert_close(gradient, by_formula, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", [linear, multilinear])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_straight_through_is_biased_at_temperatures_other_than_one(family, temperature):
    assert straight_through_error(family, temperature) > 0.1


@pytest.mark.parametrize("family", [quadratic, exponential])
def test_straight_through_is_biased_if_f_is_curved(family):
    assert straight_through_error(family, 1.0) > 0.1


ORDERS = {
    "straight-through": (StraightThrough(temperature=1.0), 1.0, 2),
    "ReinMax": (ReinMax(temperature=1.0), 1.0, 3),
    "minimum variance": (MinimumVariance(temperature=None), None, 3),
}


@pytest.mark.parametrize("name", ORDERS)
def test_bias_for_f_of_eps_z_falls_like_a_power_of_eps(name):
    """The bias of a first-order estimator falls like eps**2, of a second-order one like eps**3."""
    estimator, temperature, power = ORDERS[name]
    f, logits = exponential(torch.randn(N, K)), torch.randn(N, K)

    def bias(eps: float) -> torch.Tensor:
        scaled = lambda z: f(eps * z)
        gradient = expected_gradient(estimator, scaled, logits, temperature)
        return (gradient - exact_gradient(scaled, logits)).norm()

    for eps in (2**-5, 2**-6, 2**-7):
        assert (bias(eps) / bias(eps / 2)).log2().item() == pytest.approx(power, abs=0.1)


def test_mean_of_straight_through_estimates_is_the_enumerated_expectation():
    f, logits = exponential(torch.randn(N, K)), torch.randn(N, K)
    estimator = StraightThrough(temperature=1.3)
    estimates = gradient_estimates(estimator, f, logits.expand(DRAWS, N, K))
    error = estimates.std(0) / DRAWS**0.5
    enumerated = expected_gradient(estimator, f, logits, 1.3)
    assert ((estimates.mean(0) - enumerated).abs() < 5 * error).all()


# Gumbel-softmax


def finite_differences(f: CodeFunction, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return central differences of f(softmax((logits + G) / tau)), (DRAWS, N, K).

    Both sides of a difference use the same noise G.
    """
    perturbed = logits - (-torch.rand(1, DRAWS, N, K).log()).log()
    slopes = [
        f(((perturbed + step) / temperature).softmax(-1))
        - f(((perturbed - step) / temperature).softmax(-1))
        for step in 1e-4 * torch.eye(N * K).reshape(N * K, N, K)
    ]
    return torch.cat(slopes).T.reshape(DRAWS, N, K) / 2e-4


@pytest.mark.parametrize("family, temperature", [(quadratic, 0.5), (exponential, 1.0)])
def test_gumbel_softmax_is_unbiased_for_the_relaxed_objective(family, temperature):
    f, logits = family(torch.randn(N, K)), torch.randn(N, K)
    estimator = GumbelSoftmax(temperature=temperature)
    estimates = gradient_estimates(estimator, f, logits.expand(DRAWS, N, K))
    assert z_scores(estimates, finite_differences(f, logits, temperature)).max() < 5


def test_relaxed_objective_approaches_the_expectation_as_the_temperature_falls():
    f, logits = quadratic(torch.randn(N, K)), torch.randn(N, K)
    truth = Exact(limit=K**N)(logits.unsqueeze(0), f, 0)

    def distance(temperature: float) -> tuple[float, float]:
        value = GumbelSoftmax(temperature=temperature)(logits.expand(DRAWS, N, K), f, 0)
        return abs(value.mean() - truth).item(), (value.std() / DRAWS**0.5).item()

    (far, far_error), (near, near_error), (nearest, _) = map(distance, (1.0, 0.3, 0.05))
    assert far - near > 5 * far_error
    assert near - nearest > 5 * near_error


@pytest.mark.parametrize("estimator", [GumbelSoftmax, StraightThroughGumbel])
def test_gradient_variance_grows_as_the_temperature_falls(estimator):
    f, logits = linear(torch.randn(N, K)), torch.randn(N, K).expand(DRAWS, N, K)
    variances = [
        gradient_estimates(estimator(temperature=temperature), f, logits).var(0).sum()
        for temperature in (1.0, 0.3, 0.1)
    ]
    assert variances[0] < variances[1] / 1.5 < variances[2] / 1.5**2


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_straight_through_gumbel_is_biased_even_if_f_is_linear(temperature):
    f, logits = linear(torch.randn(N, K)), torch.randn(N, K)
    estimator = StraightThroughGumbel(temperature=temperature)
    estimates = gradient_estimates(estimator, f, logits.expand(DRAWS, N, K))
    error = estimates.std(0) / DRAWS**0.5
    assert ((estimates.mean(0) - exact_gradient(f, logits)).abs() / error).max() > 5


def test_straight_through_gumbel_has_the_gradient_of_the_relaxed_sample():
    f, logits = linear(torch.randn(N, K)), torch.randn(100, N, K)  # f has one slope everywhere
    torch.manual_seed(1)
    hard = gradient_estimates(StraightThroughGumbel(temperature=0.5), f, logits)
    torch.manual_seed(1)
    relaxed = gradient_estimates(GumbelSoftmax(temperature=0.5), f, logits)
    assert_close(hard, relaxed, rtol=0, atol=1e-12)


# Estimators without noise: argmax and softmax


@pytest.mark.parametrize("family", [linear, multilinear, quadratic, exponential])
def test_argmax_returns_the_gradient_of_f_at_the_mode_unchanged(family):
    f, logits = family(torch.randn(N, K)), torch.randn(5, N, K)
    mode = one_hot_argmax(logits).requires_grad_()
    (at_mode,) = torch.autograd.grad(f(mode.unsqueeze(0)).sum(), mode)
    assert torch.equal(gradient_estimates(StraightThroughArgmax(), f, logits), at_mode)


def test_argmax_gradient_neither_sums_to_zero_nor_shrinks_with_certainty():
    f, logits = linear(torch.randn(N, K)), torch.randn(5, N, K)
    gradient = gradient_estimates(StraightThroughArgmax(), f, logits)
    assert gradient.sum(-1).abs().min() > 1e-3
    certain = gradient_estimates(StraightThroughArgmax(), f, 1000 * logits)
    assert torch.equal(certain, gradient)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("family", [multilinear, exponential])
def test_softmax_gradient_is_that_of_f_at_the_probabilities(family, temperature):
    f, logits = family(torch.randn(N, K)), torch.randn(5, N, K)
    leaf = logits.clone().requires_grad_()
    odds = (leaf / temperature).exp()
    value = f((odds / odds.sum(-1, keepdim=True)).unsqueeze(0)).sum()
    (by_formula,) = torch.autograd.grad(value, leaf)
    estimator = Softmax(temperature=temperature)
    assert_close(gradient_estimates(estimator, f, logits), by_formula, rtol=1e-12, atol=1e-12)


def test_softmax_value_is_not_the_expectation():
    f, logits = quadratic(torch.randn(N, K)), torch.randn(5, N, K)
    gap = Softmax(temperature=1.0)(logits, f, 0) - Exact(limit=K**N)(logits, f, 0)
    assert gap.abs().min() > 0.01


# Second-order estimators (ReinMax and MVE), and Gumbel-Rao


@pytest.mark.parametrize("family", [linear, multilinear, quadratic])
@pytest.mark.parametrize("name", ["ReinMax", "minimum variance"])
def test_second_order_is_unbiased_if_f_is_quadratic_in_each_latent(name, family):
    estimator, temperature, _ = ORDERS[name]
    f, logits = family(torch.randn(N, K)), torch.randn(N, K)
    gradient = expected_gradient(estimator, f, logits, temperature)
    assert relative_error(gradient, exact_gradient(f, logits)) < 1e-12


@pytest.mark.parametrize("tau", [1e-3, 1.0, 30.0, 1e6])
def test_minimum_variance_is_unbiased_at_every_tau_if_f_is_linear(tau):
    f, logits = linear(torch.randn(N, K)), torch.randn(N, K)
    gradient = expected_gradient(MinimumVariance(temperature=1.0), f, logits, tau)
    assert relative_error(gradient, exact_gradient(f, logits)) < 1e-12


def test_minimum_variance_tends_to_straight_through_and_to_its_limit():
    """The limits are tau = 0 and tau = infinity."""
    logits = torch.randn(1, N, K)
    z = codes(N, K).unsqueeze(1)
    estimator = MinimumVariance(temperature=1.0)

    def jacobian(surrogate: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.autograd.functional.jacobian(surrogate, logits)

    small = jacobian(lambda leaf: estimator.surrogate(z, leaf, 1e-9))
    straight = jacobian(lambda leaf: leaf.softmax(-1).expand_as(z))
    assert_close(small, straight, rtol=0, atol=1e-8)
    large = jacobian(lambda leaf: estimator.surrogate(z, leaf, 1e7))
    limit = jacobian(lambda leaf: estimator.surrogate(z, leaf, None))
    assert_close(large, limit, rtol=0, atol=1e-5)


def published_jacobian(p: torch.Tensor, x: int, tau: float | None) -> torch.Tensor:
    """Return the published matrix S_x of MVE(tau), (K, K), for the sampled category x."""
    j, pairs = torch.diag(p) - p.outer(p), p.unsqueeze(1) + p
    if tau is None:
        weights = (p.outer(p) / pairs).fill_diagonal_(0)
        c = torch.linalg.pinv(torch.diag(weights.sum(1)) - weights) @ j / 2
        rows = (p / (p[x] + p)).unsqueeze(1) * (c - c[x])
        rows[x] = (torch.eye(len(p))[x] - p) / 2
        return rows
    up, a = 1 + tau * p, -tau * p.outer(p) / (1 + tau * pairs)
    a.diagonal().copy_(up * (p / (1 + tau * pairs)).sum(1) - tau * p**2 / (1 + 2 * tau * p))
    v = torch.linalg.solve(a, (up / (1 + 2 * tau * p)).unsqueeze(1) * j)
    rows = up.unsqueeze(1) * v - tau * p.unsqueeze(1) * v[x]
    rows[x] += tau * j[x]
    return rows / (1 + tau * (p + p[x])).unsqueeze(1)


@pytest.mark.parametrize("tau", [1e-3, 1.0, 30.0, 1e4, None])
@pytest.mark.parametrize("categories", [2, 5, 16])
def test_minimum_variance_matches_the_published_formula(categories, tau):
    logits = torch.randn(3, N, categories, requires_grad=True)
    z = one_hot_argmax(torch.randn(2, 3, N, categories))
    g = torch.randn(2, 3, N, categories)
    surrogate = MinimumVariance(temperature=1.0).surrogate(z, logits, tau)
    (gradient,) = torch.autograd.grad((surrogate * g).sum(), logits)
    p = logits.detach().softmax(-1)
    formula = torch.zeros_like(p)
    for s, b, n in itertools.product(range(2), range(3), range(N)):
        x = int(z[s, b, n].argmax())
        formula[b, n] += published_jacobian(p[b, n], x, tau).T @ g[s, b, n]
    assert_close(gradient, formula, rtol=0, atol=1e-11)


def softmax_jacobian_times(q: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Return (diag(q) - q q^T) g."""
    return q * g - q * (q * g).sum(-1, keepdim=True)


def reinmax_gradient(
    z: torch.Tensor, logits: torch.Tensor, g: torch.Tensor, temperature: float
) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    surrogate = ReinMax(temperature=1.0).surrogate(z, leaf, temperature)
    return torch.autograd.grad((surrogate * g).sum(), leaf)[0]


@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0])
def test_reinmax_matches_its_formula(temperature):
    logits, g = torch.randn(2, 5, N, K)
    z = one_hot_argmax(torch.randn(5, N, K))
    m = (z + (logits / temperature).softmax(-1)) / 2
    j_p = softmax_jacobian_times(logits.softmax(-1), g)
    formula = 2 * softmax_jacobian_times(m, g) - j_p / 2
    assert_close(reinmax_gradient(z, logits, g, temperature), formula, rtol=0, atol=1e-14)


def test_reinmax_at_temperature_one_is_zgr():
    logits, g = torch.randn(2, 5, N, K)
    z = one_hot_argmax(torch.randn(5, N, K))
    leaf = logits.clone().requires_grad_()
    log_p = leaf.log_softmax(-1)
    sampled = (log_p * z).sum(-1, keepdim=True)
    surrogate = (log_p.exp() + (z - log_p.exp().detach()) * sampled) / 2
    (zgr,) = torch.autograd.grad((surrogate * g).sum(), leaf)
    assert_close(reinmax_gradient(z, logits, g, 1.0), zgr, rtol=0, atol=1e-14)


def test_gumbel_rao_with_one_inner_sample_has_the_moments_of_straight_through_gumbel():
    f, logits = exponential(torch.randn(N, K)), torch.randn(N, K).expand(DRAWS, N, K)
    rao = gradient_estimates(GumbelRao(temperature=0.5, inner_samples=1), f, logits)
    gumbel = gradient_estimates(StraightThroughGumbel(temperature=0.5), f, logits)
    assert z_scores(rao, gumbel).max() < 5
    assert z_scores(rao.square(), gumbel.square()).max() < 5


def test_more_inner_samples_lower_the_variance_and_keep_the_mean():
    f, logits = exponential(torch.randn(N, K)), torch.randn(N, K).expand(DRAWS, N, K)
    one = gradient_estimates(GumbelRao(temperature=0.3, inner_samples=1), f, logits)
    many = gradient_estimates(GumbelRao(temperature=0.3, inner_samples=10), f, logits)
    assert z_scores(one, many).max() < 5
    assert many.var(0).sum() < 0.9 * one.var(0).sum()


def test_gumbel_rao_tends_to_reinmax_as_the_temperature_falls():
    logits, g = torch.randn(2, 1, N, K)
    z = one_hot_argmax(torch.randn(1, N, K))

    def distance(temperature: float) -> float:
        leaf = logits.clone().requires_grad_()
        estimator = GumbelRao(temperature=1.0, inner_samples=DRAWS)
        surrogate = estimator.surrogate(z.unsqueeze(0), leaf, temperature)
        (gradient,) = torch.autograd.grad((surrogate * g).sum(), leaf)
        return relative_error(gradient, reinmax_gradient(z, logits, g, 1.0))

    far, near = distance(1.0), distance(0.05)
    assert near < 0.1 < far


# Gapped straight-through and decoupled straight-through Gumbel


@pytest.mark.parametrize("gap", [0.5, 1.0, "probability"])
def test_gapped_logits_let_the_sample_win_by_at_least_the_gap(gap):
    logits = 3 * torch.randn(50, N, K)
    z = one_hot_argmax(torch.randn(50, N, K))
    relaxed = GappedStraightThrough(temperature=1.0, gap=gap).surrogate(z, logits, 1.0)
    log_relaxed = relaxed.log()
    winner = (log_relaxed * z).sum(-1)
    rival = log_relaxed.masked_fill(z > 0, -torch.inf).amax(-1)
    p = (logits.softmax(-1) * z).sum(-1) * (1 - 1e-5)
    smallest_gap = -torch.log1p(-p) / p if gap == "probability" else torch.full_like(p, gap)
    assert (winner - rival > smallest_gap - 1e-9).all()


def test_decoupled_at_equal_temperatures_is_straight_through_gumbel_at_one():
    f, logits = exponential(torch.randn(N, K)), torch.randn(5, N, K)
    decoupled = DecoupledStraightThroughGumbel(forward_temperature=0.7, backward_temperature=0.7)
    torch.manual_seed(1)
    gradient = gradient_estimates(decoupled, f, logits)
    torch.manual_seed(1)
    assert_close(gradient, gradient_estimates(StraightThroughGumbel(temperature=1.0), f, logits))
