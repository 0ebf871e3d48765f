"""DisARM and CARMS: how the codes are coupled, and no bias by enumeration of all tuples."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare, norm
from torch.testing import assert_close

from tests.helpers import gradient_estimates
from vae.categorical import fine_uniform, gradient_of, one_hot
from vae.estimators import CodeFunction, Disarm, Exact, disarm

DRAWS = 20_000
FIVE_SIGMA = 2 * norm.sf(5)  # the p-value at five standard errors

every_count = pytest.mark.parametrize("samples", [2, 3, 4])


def exponential(weight: torch.Tensor) -> CodeFunction:
    return lambda z: (z * weight).sum((-2, -1)).exp()


def shares(logits: torch.Tensor) -> torch.Tensor:
    """Return the share of the rest of the stick that each position takes: (K,) -> (K,)."""
    p = logits.softmax(-1).sort().values
    return torch.stack([p[k] / p[k:].sum() for k in range(len(p))])


def tuple_probability(first: tuple[int, ...], h: torch.Tensor) -> float:
    """Return the probability that S codes break their sticks at these positions.

    The d of any j + i codes are all above c with probability (1 - (j + i) c)^(S - 1) if d has the
    flat Dirichlet distribution. Inclusion and exclusion over i gives the probability that exactly
    j of the codes that are left break.
    """
    power, probability = len(first) - 1, 1.0
    for position in range(max(first) + 1):
        left = sum(other >= position for other in first)
        j = first.count(position)
        c = 1 - h[position].item() ** (1 / power)
        probability *= sum(
            (-1) ** i * math.comb(left - j, i) * max(1 - (j + i) * c, 0) ** power
            for i in range(left - j + 1)
        )
    return probability


def all_tuples(logits: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions (S, K**S) of all tuples for one latent, and their probabilities."""
    h, tuples = shares(logits), list(itertools.product(range(len(logits)), repeat=samples))
    probabilities = [tuple_probability(first, h) for first in tuples]
    return torch.tensor(tuples).T, torch.tensor(probabilities)


@every_count
@pytest.mark.parametrize("n, k", [(2, 2), (2, 3), (1, 8)])
def test_expected_gradient_is_exact(samples, n, k, monkeypatch):
    logits, f = torch.randn(n, k), exponential(torch.randn(n, k))
    latents = [all_tuples(row, samples) for row in logits]
    choices = torch.cartesian_prod(*[torch.arange(k**samples)] * n).view(-1, n)
    first = torch.stack([latents[i][0][:, choices[:, i]] for i in range(n)], -1)  # (S, tuples, N)
    probabilities = torch.stack([latents[i][1][choices[:, i]] for i in range(n)]).prod(0)
    monkeypatch.setattr(disarm, "_first_breaks", lambda h, samples: first)
    estimates = gradient_estimates(Disarm(samples=samples), f, logits.expand(len(choices), n, k))
    expected = torch.einsum("t, tnk -> nk", probabilities, estimates)
    exact = gradient_estimates(Exact(limit=k**n), f, logits.unsqueeze(0)).squeeze(0)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert_close(expected, exact, rtol=0, atol=1e-12)


@every_count
def test_positions_of_the_breaks_have_the_enumerated_probabilities(samples):
    logits = torch.tensor([0.0, 0.4, 0.7])
    tuples, probabilities = all_tuples(logits, samples)
    first = disarm._first_breaks(shares(logits).expand(DRAWS, 1, 3), samples).squeeze(-1)
    powers = 3 ** torch.arange(samples - 1, -1, -1).unsqueeze(1)
    assert torch.equal((tuples * powers).sum(0), torch.arange(3**samples))
    counts = torch.bincount((first * powers).sum(0), minlength=3**samples)
    possible = probabilities > 1e-12
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * DRAWS
    assert chisquare(counts[possible], expected).pvalue > FIVE_SIGMA


@every_count
@pytest.mark.parametrize("k", [2, 3, 5, 16])
def test_all_antithetic_codes_follow_the_softmax_and_weights_are_below_two(samples, k):
    logits = 2 * torch.randn(k)
    z, weight = disarm.antithetic_codes(logits.expand(DRAWS, 1, k), samples)
    for code in z:
        counts = code.sum((0, 1))
        assert chisquare(counts, logits.softmax(-1) * DRAWS).pvalue > FIVE_SIGMA
    is_same = (z.unsqueeze(1) == z).all(-1)
    assert ((weight == 0) == is_same).all()
    assert weight.max() < 2


@every_count
def test_two_categories_have_the_published_formula(samples):
    """The formula of ARMS; for two samples that of DisARM."""
    logits, f = torch.randn(50, 1, 2), exponential(torch.randn(1, 2))
    torch.manual_seed(4)
    gradient = gradient_estimates(Disarm(samples=samples), f, logits)[:, 0, 1]
    torch.manual_seed(4)
    z, _ = disarm.antithetic_codes(logits, samples)
    bit, p = z[..., 0, 1], logits.softmax(-1)[:, 0, 1]  # (S, B), (B,)
    rare, power = torch.minimum(p, 1 - p), samples - 1
    both = (2 * rare ** (1 / power) - 1).clamp_min(0) ** power
    formula = ((f(z) - f(z).mean(0)) * (bit - p)).sum(0) / power
    assert_close(gradient, formula * p * (1 - p) / (rare - both))


class AntitheticPair:
    """DisARM for two codes, with one uniform number per position instead of a distribution."""

    def __call__(self, logits: torch.Tensor, f: CodeFunction, step: int) -> torch.Tensor:
        log_p, order = logits.detach().log_softmax(-1).sort(-1)
        h = (log_p - log_p.flip(-1).logcumsumexp(-1).flip(-1)).exp()
        h = torch.cat([h[..., :-1].clamp_max(0.5), torch.ones_like(h[..., :1])], -1)
        u = fine_uniform(h.shape, h.device)
        first = torch.stack([u < h, 1 - u <= h]).to(torch.uint8).argmax(-1)
        earlier, later = first.amin(0), first.amax(0)
        both = (1 - h).square() / (1 - 2 * h).clamp_min(torch.finfo(h.dtype).tiny)
        is_before = torch.arange(h.shape[-1]) < earlier.unsqueeze(-1)
        weight = torch.where(is_before, both, torch.ones_like(both)).prod(-1)
        weight = weight * (1 - h.gather(-1, earlier.unsqueeze(-1)).squeeze(-1))
        weight = torch.where(earlier == later, torch.zeros_like(weight), weight)
        category = order.gather(-1, first.movedim(0, -1)).movedim(-1, 0)
        z = one_hot(category, h.shape[-1]).to(h.dtype)
        loss, log_q = f(z), (z * logits.log_softmax(-1)).sum(-1)
        score = (weight * (log_q[0] - log_q[1])).sum(-1) / 2
        return loss.mean(0) + gradient_of((loss[0] - loss[1]).detach() * score)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 3, 8, 64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_two_samples_equal_the_antithetic_pair_to_the_bit(dtype, k, scale):
    logits = scale * torch.randn(20, 3, k, dtype=dtype)
    f = exponential(torch.randn(3, k, dtype=dtype))
    torch.manual_seed(1)
    gradient = gradient_estimates(Disarm(samples=2), f, logits)
    torch.manual_seed(1)
    assert torch.equal(gradient, gradient_estimates(AntitheticPair(), f, logits))


def test_antithetic_codes_are_drawn_in_float64(monkeypatch):
    """In float32, a category of probability 1e-13 would be drawn with probability 2**-24."""
    uniforms, rand = [], torch.rand

    def record(*size, **options):
        uniforms.append(rand(*size, **options))
        return uniforms[-1]

    monkeypatch.setattr(torch, "rand", record)
    disarm.antithetic_codes(torch.randn(5, 2, 3, dtype=torch.float32), 3)
    assert [uniform.dtype for uniform in uniforms] == [torch.float64]


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Disarm(samples=1)
