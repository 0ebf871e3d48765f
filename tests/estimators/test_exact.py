"""Exact enumeration: its value, the codes that it leaves out, vmap and its limit."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from vae.categorical import codes, log_prob
from vae.estimators import CodeFunction, Exact

B, N, K = 6, 2, 3
EXACT = Exact(limit=K**N)


def squared_error(weight: torch.Tensor, target: torch.Tensor) -> CodeFunction:
    return lambda z: ((z * weight).sum((-2, -1)) - target).square()


def enumerated_value(logits: torch.Tensor, f: CodeFunction) -> torch.Tensor:
    """Return E[f(z)] for the logits (N, K) of one image, by a loop over all codes."""
    p = logits.softmax(-1)
    return sum(
        torch.stack([p[n, k] for n, k in enumerate(digits)]).prod()
        * f(torch.eye(K)[list(digits)][None, None]).squeeze()
        for digits in itertools.product(range(K), repeat=N)
    )


def test_value_is_the_enumerated_expectation():
    logits, f = torch.randn(B, N, K), squared_error(torch.randn(N, K), torch.randn(1))
    expected = torch.stack([enumerated_value(image, f) for image in logits])
    assert_close(EXACT(logits, f, 0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_below_rounding_are_left_out_without_changing_value_or_gradient(dtype):
    confident = 12 * torch.randn(B, N, K, dtype=dtype)
    confident[:, 0, 0] = -80.0  # codes that begin with category 0 are negligible for every image
    logits, (weight, target) = confident.requires_grad_(), torch.randn(2, N, K, dtype=dtype)
    f, points = squared_error(weight, target[0, 0]), []

    def recording_f(z: torch.Tensor) -> torch.Tensor:
        points.append(z)
        return f(z)

    value = EXACT(logits, recording_f, 0)
    z = codes(N, K).to(dtype).unsqueeze(1)
    value_of_all_codes = (log_prob(logits, z).exp() * f(z)).sum(0)
    (evaluated,) = points
    assert len(evaluated) <= K ** (N - 1) * (K - 1) < len(z)
    assert_close(value, value_of_all_codes)
    gradient, gradient_of_all_codes = (
        torch.autograd.grad(total.sum(), logits)[0] for total in (value, value_of_all_codes)
    )
    assert_close(gradient, gradient_of_all_codes)


def test_codes_that_are_left_out_do_not_bias_the_gradient():
    """The error stays below rounding even if f has a large constant."""
    logits = torch.tensor([[[20.0, 0.0]]], dtype=torch.float32, requires_grad=True)
    value = Exact(limit=2)(logits, lambda z: 1e4 + 5 * z[..., 0, 1], 0)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    # The true gradient is 1e-8. Without subtracting the mean of f, it would be 2e-5.
    assert gradient.abs().max() < 1e-7


def test_no_code_is_left_out_if_the_logits_are_not_finite():
    logits = torch.full((B, N, K), torch.nan)
    assert EXACT(logits, squared_error(torch.randn(N, K), torch.zeros(1)), 0).isnan().all()


def test_values_under_vmap_are_those_of_each_batch():
    logits, f = 30 * torch.randn(3, B, N, K), squared_error(torch.randn(N, K), torch.zeros(1))
    mapped = torch.func.vmap(lambda batch: EXACT(batch, f, 0))(logits)
    assert_close(mapped, torch.stack([EXACT(batch, f, 0) for batch in logits]))


def test_more_codes_than_the_limit_are_refused():
    logits, f = torch.randn(B, N, K), squared_error(torch.randn(N, K), torch.zeros(1))
    Exact(limit=K**N)(logits, f, 0)
    too_small = Exact(limit=K**N - 1)
    message = rf"{K}\*\*{N} .* {K**N - 1}; use fewer latents"
    with pytest.raises(ValueError, match=message):
        too_small.check(N, K)
    with pytest.raises(ValueError, match=message):
        too_small(logits, f, 0)
