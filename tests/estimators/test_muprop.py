"""MuProp and its leave-one-out form, compared with enumeration of all tuples of samples."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from tests.helpers import gradient_estimates
from vae.categorical import codes, log_prob
from vae.estimators import CodeFunction, Exact, MuProp, Reinforce, muprop

N, K = 2, 3


def curved(weight: torch.Tensor) -> CodeFunction:
    return lambda z: 5 + (z * weight).sum((-2, -1)).exp()


def linear(weight: torch.Tensor) -> CodeFunction:
    return lambda z: 5 + (z * weight).sum((-2, -1))


def exact_gradient(f: CodeFunction, logits: torch.Tensor) -> torch.Tensor:
    return gradient_estimates(Exact(limit=K**N), f, logits.unsqueeze(0)).squeeze(0)


@pytest.fixture
def enumerate_samples(monkeypatch):
    """Return a function that gives the estimate of every tuple of S samples, and its probability.

    The tuples take the places of the images, so the results are (K**N**S, N, K) and (K**N**S,).
    """

    def estimates(estimator, f, logits):
        z = codes(N, K)
        tuples = torch.tensor(list(itertools.product(range(K**N), repeat=estimator.samples))).T
        samples = z[tuples]  # (S, K**N**S, N, K)
        monkeypatch.setattr(muprop, "sample", lambda logits, count: samples)
        q = log_prob(logits.unsqueeze(0), z.unsqueeze(1)).exp().squeeze(1)
        gradients = gradient_estimates(estimator, f, logits.expand(samples.shape[1:]))
        return gradients, q[tuples].prod(0)

    return estimates


def expectation(estimates: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    return torch.einsum("t, tnk -> nk", probabilities, estimates)


def total_variance(estimates: torch.Tensor, probabilities: torch.Tensor) -> float:
    centred = estimates - expectation(estimates, probabilities)
    return (probabilities @ centred.square().sum((-2, -1))).item()


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 0.7, 1.0, "adaptive"])
def test_expected_gradient_is_exact_at_every_coefficient(samples, coefficient, enumerate_samples):
    f, logits = curved(torch.randn(N, K)), torch.randn(N, K)
    estimator = MuProp(samples=samples, coefficient=coefficient)
    if coefficient == "adaptive":
        estimator.covariance.fill_(-2.0)
        estimator.variance.fill_(3.0)
        estimator.eval()
    estimates = enumerate_samples(estimator, f, logits)
    assert total_variance(*estimates) > 0.01
    assert_close(expectation(*estimates), exact_gradient(f, logits), rtol=0, atol=1e-12)


def test_one_sample_has_the_published_formula(enumerate_samples):
    weight, logits = torch.randn(N, K), torch.randn(N, K)
    f, p = curved(weight), logits.softmax(-1)
    estimates, _ = enumerate_samples(MuProp(samples=1, coefficient=1.0), f, logits)
    slope = (f(p) - 5) * weight
    jacobian = torch.func.vmap(lambda row: row.diag() - row.outer(row))(p)
    for z, estimate in zip(codes(N, K), estimates, strict=True):
        residual = f(z) - f(p) - ((z - p) * slope).sum()
        formula = residual * (z - p) + torch.einsum("nij, nj -> ni", jacobian, slope)
        assert_close(estimate, formula)


def test_coefficient_zero_is_reinforce():
    f, logits = curved(torch.randn(N, K)), torch.randn(50, N, K)
    torch.manual_seed(1)
    by_muprop = gradient_estimates(MuProp(samples=3, coefficient=0.0), f, logits)
    torch.manual_seed(1)
    by_reinforce = gradient_estimates(Reinforce(samples=3), f, logits)
    assert_close(by_muprop, by_reinforce)


@pytest.mark.parametrize("samples", [1, 3])
def test_linear_f_leaves_no_variance_at_coefficient_one(samples):
    f, logits = linear(torch.randn(N, K)), torch.randn(N, K)
    estimates = gradient_estimates(
        MuProp(samples=samples, coefficient=1.0), f, logits.expand(50, N, K)
    )
    assert_close(estimates, exact_gradient(f, logits).expand(50, N, K), rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 3])
def test_adaptive_coefficient_learns_the_one_of_least_variance(samples, enumerate_samples):
    f, logits = curved(torch.randn(N, K)), torch.randn(N, K)
    estimator = MuProp(samples=samples, coefficient="adaptive")
    for _ in range(5):
        estimator(logits.expand(10_000, N, K), f, 0)
    learned = -(estimator.covariance / estimator.variance).item()
    variance = {
        alpha: total_variance(
            *enumerate_samples(MuProp(samples=samples, coefficient=alpha), f, logits)
        )
        for alpha in (0.0, 1.0, 2.0, learned)
    }
    # The variance is a parabola in alpha; three of its points give its lowest one.
    second = variance[0.0] - 2 * variance[1.0] + variance[2.0]
    best = 0.5 + (variance[0.0] - variance[1.0]) / second
    lowest = variance[0.0] - second * best**2 / 2
    assert abs(best) > 0.1
    assert lowest > 0.01 * variance[0.0]
    assert variance[learned] == pytest.approx(lowest, rel=0.02)


def test_adaptive_coefficient_does_not_depend_on_the_samples_of_the_step():
    f, logits = curved(torch.randn(N, K)), torch.randn(20, N, K)
    torch.manual_seed(1)
    first_step = gradient_estimates(MuProp(samples=2, coefficient="adaptive"), f, logits)
    torch.manual_seed(1)
    without = gradient_estimates(MuProp(samples=2, coefficient=0.0), f, logits)
    assert torch.equal(first_step, without)


def test_adaptive_coefficient_ignores_past_steps_that_are_not_finite():
    estimator, logits = MuProp(samples=2, coefficient="adaptive"), torch.randn(20, N, K)
    f = curved(torch.randn(N, K))
    estimator(logits, f, 0)
    state = {name: value.clone() for name, value in estimator.state_dict().items()}
    assert all(value != 0 for value in state.values())
    estimator(logits, lambda z: f(z) * math.nan, 1)
    assert estimator.state_dict() == state


def test_parameters_of_f_get_the_gradient_at_the_samples_alone():
    weight, points = torch.randn(N, K, requires_grad=True), []

    def f(z: torch.Tensor) -> torch.Tensor:
        points.append(z.detach())
        return curved(weight)(z)

    value = MuProp(samples=2, coefficient=1.0)(torch.randn(5, N, K), f, 0)
    (gradient,) = torch.autograd.grad(value.sum(), weight)
    (at_samples,) = torch.autograd.grad(curved(weight)(points[0]).mean(0).sum(), weight)
    assert_close(gradient, at_samples)
