"""ReDGE and ReinDGE, compared with Bayes' rule, and with the methods that are their first step."""

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chisquare, norm
from torch.distributions import Normal
from torch.testing import assert_close

from vae.estimators import Redge, Reindge, ReinMax, StraightThrough

B, N, K = 5, 2, 3
DRAWS = 20_000
FIVE_SIGMA = 2 * norm.sf(5)  # the p-value at five standard errors


def draw_with_gradient(estimator, logits, g):
    """Return codes (B, N, K) from a fixed seed, and their gradient in the logits given g."""
    torch.manual_seed(1)
    leaf = logits.clone().requires_grad_()
    z = estimator.sample(leaf, 0)
    (gradient,) = torch.autograd.grad((z * g).sum(), leaf)
    return z.detach().squeeze(0), gradient


def denoised_mean(x, logits, t):
    """Return E[z | x] for z ~ Cat(logits) and x = (1 - t) z + t noise, by Bayes' rule."""
    at_each_code = Normal((1 - t) * torch.eye(K), t).log_prob(x.unsqueeze(-2)).sum(-1)
    joint = (logits.log_softmax(-1) + at_each_code).exp()
    return joint / joint.sum(-1, keepdim=True)


def last_point(logits, times):
    """Return the last noisy point, from the same noise as `draw_with_gradient`."""
    torch.manual_seed(1)
    x = torch.randn(1, *logits.shape).squeeze(0)
    for t, s in pairwise(times):
        y = denoised_mean(x, logits, t)
        noise = (x - (1 - t) * y) / t
        x = (1 - s) * y + s * noise
    return x


def gradient(value, logits, g):
    return torch.autograd.grad((value * g).sum(), logits)[0]


@pytest.mark.parametrize(
    "estimator, one_step",
    [(Redge, StraightThrough(temperature=1.0)), (Reindge, ReinMax(temperature=1.0))],
)
def test_one_step_is_straight_through_or_reinmax(estimator, one_step):
    logits, g = torch.randn(2, B, N, K)
    z, slope = draw_with_gradient(estimator(denoising_steps=1, last_time=1.0), logits, g)
    leaf = logits.clone().requires_grad_()
    expected = gradient(one_step.surrogate(z.unsqueeze(0), leaf, 1.0), leaf, g)
    assert_close(slope, expected, rtol=0, atol=1e-12)


TIMES = [1.0, 0.75, 0.5]


def test_redge_has_the_gradient_of_the_last_denoised_mean():
    logits, g = torch.randn(2, B, N, K)
    _, slope = draw_with_gradient(Redge(denoising_steps=3, last_time=0.5), logits, g)
    leaf = logits.clone().requires_grad_()
    expected = gradient(denoised_mean(last_point(leaf, TIMES), leaf, 0.5), leaf, g)
    assert_close(slope, expected, rtol=0, atol=1e-12)


def test_reindge_replaces_the_gradient_at_the_last_noisy_point_by_that_of_reinmax():
    logits, g = torch.randn(2, B, N, K)
    z, slope = draw_with_gradient(Reindge(denoising_steps=3, last_time=0.5), logits, g)
    leaf = logits.clone().requires_grad_()
    x = last_point(leaf, TIMES)
    through_x = gradient(denoised_mean(x, logits, 0.5), leaf, g)
    y = denoised_mean(x, logits, 0.5).detach()
    straight_through = y * (g - (y * g).sum(-1, keepdim=True))
    reinmax = (straight_through + (z - y) * ((z - y) * g).sum(-1, keepdim=True)) / 2
    assert_close(slope, through_x + reinmax, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "steps, last_time, exact", [(1, 1.0, True), (2, 0.3, False), (50, 0.3, True)]
)
def test_code_is_a_sample_of_q_only_with_one_step_or_many(steps, last_time, exact):
    logits = torch.linspace(0.0, 2.0, K)
    z = Redge(steps, last_time).sample(logits.expand(DRAWS, 1, K), 0)
    counts = z.sum((0, 1, 2))
    assert (chisquare(counts, logits.softmax(-1) * DRAWS).pvalue > FIVE_SIGMA) == exact


@pytest.mark.parametrize("steps, last_time", [(1, 0.5), (2, 1.0), (2, 0.0), (0, 1.0)])
def test_times_that_do_not_fit_are_refused(steps, last_time):
    with pytest.raises((ValueError, ValidationError)):
        Redge(denoising_steps=steps, last_time=last_time)
