"""The score-function estimators have no bias: five standard errors against enumeration."""

import math

import pytest
import torch
from scipy.stats import norm
from torch.testing import assert_close

from tests.helpers import gradient_estimates
from vae.categorical import conditional_gumbel, gumbel_noise, sample
from vae.estimators import (
    Disarm,
    Exact,
    Rebar,
    Reinforce,
    ReinforceLearnedBaseline,
    ReinforceMovingAverage,
    Relax,
)

DRAWS = 20_000
FIVE_SIGMA = 2 * norm.sf(5)  # the p-value at five standard errors

ESTIMATORS = {
    "reinforce": lambda n, k: Reinforce(samples=3),
    "moving average": lambda n, k: ReinforceMovingAverage(decay=0.8),
    "learned baseline": lambda n, k: ReinforceLearnedBaseline(
        latents=n, categories=k, hidden=8, decay=0.8
    ),
    "disarm": lambda n, k: Disarm(),
    "disarm with 4 samples": lambda n, k: Disarm(samples=4),
    "rebar": lambda n, k: Rebar(temperature=0.5, scale=0.7),
    "relax": lambda n, k: Relax(latents=n, categories=k, hidden=8, temperature=0.5, scale=0.7),
}
FAMILIES = {
    "linear": lambda z, w: (z * w).sum((-2, -1)),
    "quadratic": lambda z, w: (z * w).sum((-2, -1)).square(),
    "exp": lambda z, w: (z * w).sum((-2, -1)).exp(),
    "tanh": lambda z, w: (z * w).sum(-1).tanh().sum(-1),
}


@pytest.mark.parametrize("seed, n, k", [(0, 2, 4), (1, 3, 3), (2, 2, 2)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_is_unbiased_for_every_f(name, family, seed, n, k):
    torch.manual_seed(seed)
    logits, weight = torch.randn(n, k), torch.randn(n, k)
    f = lambda z: FAMILIES[family](z, weight)
    truth = gradient_estimates(Exact(limit=100), f, logits.unsqueeze(0)).squeeze(0)
    estimator = ESTIMATORS[name](n, k)
    estimator(logits.unsqueeze(0).requires_grad_(), f, 0)  # so that a moving average is not 0
    estimates = gradient_estimates(estimator, f, logits.expand(DRAWS, n, k))
    error = estimates.std(0) / DRAWS**0.5
    assert ((estimates.mean(0) - truth).abs() < 5 * error).all()


def test_reinforce_has_less_variance_with_more_samples():
    logits, weight = torch.randn(2, 4), torch.randn(2, 4)
    f = lambda z: FAMILIES["exp"](z, weight)
    few, many = (
        gradient_estimates(Reinforce(samples=s), f, logits.expand(DRAWS, 2, 4)).var(0).sum()
        for s in (2, 8)
    )
    assert many < few / 3


def test_conditional_gumbels_have_the_given_argmax_and_the_moments_of_free_ones():
    logits = torch.randn(4)
    z = sample(logits.expand(DRAWS, 1, 4), 1)
    conditional = conditional_gumbel(logits.expand(DRAWS, 1, 4), z).flatten(0, -2)
    assert torch.equal(conditional.argmax(-1), z.argmax(-1).flatten())
    free = logits + gumbel_noise(logits, DRAWS)
    for moment in (lambda x: x, lambda x: x.square()):
        a, b = moment(conditional), moment(free)
        error = ((a.var(0) + b.var(0)) / DRAWS).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("name", ["rebar", "relax"])
def test_fit_of_the_control_variate_does_not_reach_the_parameters_of_f(name):
    """The parameters of f get the gradient of f at the sampled code, and nothing else."""
    estimator, logits = ESTIMATORS[name](2, 3), torch.randn(5, 2, 3)
    weight, codes = torch.randn(2, 3, requires_grad=True), []

    def f(z):
        codes.append(z.detach())
        return FAMILIES["exp"](z, weight)

    value = estimator(logits.requires_grad_(), f, 0).sum()
    (gradient,) = torch.autograd.grad(value, weight, retain_graph=True)
    (at_code,) = torch.autograd.grad(f(codes[0]).sum(), weight)
    assert_close(gradient, at_code)
    fit = torch.autograd.grad(value, list(estimator.parameters()))
    assert all(slope.abs().sum() > 0 for slope in fit)


@pytest.mark.parametrize("name", ["rebar", "relax", "learned baseline"])
def test_fit_lowers_the_variance_and_adds_no_bias(name):
    logits, weight = torch.randn(2, 3), torch.randn(2, 3)
    f = lambda z: 5 + FAMILIES["exp"](z, weight)
    estimator = ESTIMATORS[name](2, 3)
    before = gradient_estimates(estimator, f, logits.expand(DRAWS, 2, 3))
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        estimator(logits.expand(100, 2, 3).clone().requires_grad_(), f, 0).mean().backward()
        optimizer.step()
    after = gradient_estimates(estimator, f, logits.expand(DRAWS, 2, 3))
    assert after.var(0).sum() < 0.7 * before.var(0).sum()
    truth = gradient_estimates(Exact(limit=9), f, logits.unsqueeze(0)).squeeze(0)
    error = after.std(0) / DRAWS**0.5
    assert ((after.mean(0) - truth).abs() < 5 * error).all()


def test_moving_average_ignores_a_loss_that_is_not_finite():
    estimator = ReinforceMovingAverage(decay=0.9)
    logits = torch.randn(5, 2, 3)
    estimator(logits, lambda z: z.sum((-2, -1)) + 3, 0)
    state = {name: value.clone() for name, value in estimator.state_dict().items()}
    estimator(logits, lambda z: z.sum((-2, -1)) * math.nan, 1)
    assert estimator.state_dict() == state
    estimator(logits, lambda z: z.sum((-2, -1)) + 3, 2)
    baseline = estimator.average / estimator.seen
    assert baseline.item() == pytest.approx(2 + 3)  # the entries of 2 one-hot codes sum to 2
