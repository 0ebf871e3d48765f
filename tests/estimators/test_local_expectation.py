"""Local expectation gradients: unbiased by enumeration, and how often f is evaluated."""

import pytest
import torch
from torch.testing import assert_close

from tests.helpers import gradient_estimates
from vae.categorical import codes, log_prob
from vae.estimators import CodeFunction, Exact, LocalExpectation, local_expectation

N, K = 3, 4


def exponential() -> CodeFunction:
    """Return an f with products of all latents and categories."""
    matrix = torch.randn(N * K, 5)
    return lambda z: (z.flatten(-2) @ matrix).exp().sum(-1)


def additive() -> CodeFunction:
    """Return an f that is a sum of functions of one latent each."""
    table = torch.randn(N, K)
    return lambda z: (z * table).sum((-2, -1))


def estimate_at_every_code(
    f: CodeFunction, logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """Return the gradient estimate (K**N, N, K) that follows from each code."""
    monkeypatch.setattr(local_expectation, "sample", lambda *_: codes(N, K).unsqueeze(0))
    return gradient_estimates(LocalExpectation(), f, logits.expand(K**N, N, K))


def test_expectation_over_all_codes_is_the_exact_gradient(monkeypatch):
    f, logits = exponential(), torch.randn(N, K)
    q = log_prob(logits.unsqueeze(0), codes(N, K).unsqueeze(1)).exp().squeeze(1)
    mean = torch.einsum("c, cnk -> nk", q, estimate_at_every_code(f, logits, monkeypatch))
    exact = gradient_estimates(Exact(limit=K**N), f, logits.unsqueeze(0)).squeeze(0)
    assert_close(mean, exact, rtol=1e-12, atol=1e-12)


def test_estimate_has_no_variance_if_f_is_a_sum_over_the_latents(monkeypatch):
    f, logits = additive(), torch.randn(N, K)
    estimates = estimate_at_every_code(f, logits, monkeypatch)
    exact = gradient_estimates(Exact(limit=K**N), f, logits.unsqueeze(0)).squeeze(0)
    assert_close(estimates, exact.expand_as(estimates), rtol=1e-12, atol=1e-12)


def test_each_code_that_differs_in_at_most_one_latent_is_evaluated_once(monkeypatch):
    monkeypatch.setattr(local_expectation, "_CHUNK", 2)
    f, logits, batches = exponential(), torch.randn(5, N, K), []

    def recording_f(z: torch.Tensor) -> torch.Tensor:
        batches.append(z.detach())
        return f(z)

    LocalExpectation()(logits, recording_f, 0)
    assert [len(batch) for batch in batches] == [1] + [2, K - 3] * N
    evaluated = torch.cat(batches)  # (N (K - 1) + 1, 5, N, K)
    changed = (evaluated != evaluated[0]).any(-1).sum(-1)  # latents, for each code and image
    assert (changed[0] == 0).all() and (changed[1:] == 1).all()
    for image in evaluated.unbind(1):
        assert len(image.unique(dim=0)) == N * (K - 1) + 1
