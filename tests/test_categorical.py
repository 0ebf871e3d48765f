"""The latent layer, against enumeration."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from vae import categorical

B, N, K = 4, 3, 4


def logits(*shape: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*(shape or (B, N, K)))


def enumerated(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: the K**N log-probabilities (K**N, B) and the codes (K**N, N, K)."""
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    latents, categories = logits.shape[-2:]
    digits = list(itertools.product(range(categories), repeat=latents))
    log_p = [sum(p[:, n, k].log() for n, k in enumerate(code)) for code in digits]
    return torch.stack(log_p), torch.eye(categories)[torch.tensor(digits)]


# Codes


def test_codes_are_all_codes_with_the_last_latent_fastest():
    digits = torch.tensor(list(itertools.product(range(K), repeat=N)))
    assert torch.equal(categorical.codes(N, K), torch.eye(K)[digits])


@pytest.mark.parametrize("latents, categories", [(1, 2), (1, 7), (5, 2), (2, 3)])
def test_there_are_k_to_the_n_different_codes(latents, categories):
    codes = categorical.codes(latents, categories)
    assert codes.shape == (categories**latents, latents, categories)
    assert len(codes.unique(dim=0)) == categories**latents
    assert torch.equal(codes.sum(-1), torch.ones(categories**latents, latents))


# Densities


def test_every_code_stands_where_its_index_says():
    assert categorical.index_of(categorical.codes(3, 4)).tolist() == list(range(4**3))


@pytest.mark.parametrize("scale", [0.0, 2.0, 50.0])
def test_log_prob_sums_to_one_over_all_codes(scale):
    log_p = categorical.log_prob(logits(scale=scale), categorical.codes(N, K)[:, None])
    assert_close(log_p.exp().sum(0), torch.ones(B), rtol=0, atol=1e-12)


def test_log_prob_is_the_product_of_the_latents_probabilities():
    given = logits()
    expected, codes = enumerated(given)
    everywhere = codes[:, None].expand(-1, B, -1, -1)
    assert_close(categorical.log_prob(given, everywhere), expected, rtol=0, atol=1e-12)


def test_a_batch_axis_of_one_stands_for_the_same_codes_for_every_image():
    given, codes = logits(), categorical.codes(N, K)[:, None]
    expected = categorical.log_prob(given, codes.expand(-1, B, -1, -1))
    assert_close(categorical.log_prob(given, codes), expected, rtol=0, atol=1e-12)


def test_a_batch_axis_of_one_has_the_general_gradient():
    given, codes = logits().requires_grad_(), categorical.codes(N, K)[:, None]
    weights = torch.randn(len(codes), B)

    def gradient(z):
        return torch.autograd.grad((weights * categorical.log_prob(given, z)).sum(), given)[0]

    assert_close(gradient(codes), gradient(codes.expand(-1, B, -1, -1)), rtol=0, atol=1e-12)


def test_kl_is_the_sum_over_all_codes():
    q, p = logits(), logits(1, N, K)
    (log_q, _), (log_p, _) = enumerated(q), enumerated(p)
    expected = (log_q.exp() * (log_q - log_p)).sum(0)
    assert_close(categorical.kl_divergence(q, p), expected, rtol=0, atol=1e-12)


def test_kl_to_a_prior_without_a_batch_axis():
    q, p = logits(), logits(N, K)
    expected = categorical.kl_divergence(q, p.expand_as(q))
    assert torch.equal(categorical.kl_divergence(q, p), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_kl_is_zero_at_the_prior(scale, dtype):
    prior = logits(scale=scale).to(dtype)
    assert torch.equal(categorical.kl_divergence(prior, prior), torch.zeros(B, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0, 300.0])
def test_kl_to_the_uniform_prior_is_between_zero_and_n_log_k(scale, dtype):
    latents, categories = 20, 10
    q = logits(1000, latents, categories, scale=scale).to(dtype)
    kl = categorical.kl_divergence(q, torch.zeros(latents, categories, dtype=dtype))
    rounding = 10 * torch.finfo(dtype).eps * latents * math.log(categories)
    assert kl.min() >= -rounding
    assert kl.max() <= latents * math.log(categories) + rounding


def test_kl_of_a_point_mass_is_n_log_k():
    q = 300 * categorical.codes(N, K).to(torch.float32)
    kl = categorical.kl_divergence(q, torch.zeros(N, K))
    assert_close(kl, torch.full((K**N,), N * math.log(K)), check_dtype=False)


def test_entropy_is_the_sum_over_all_codes():
    q = logits()
    log_q, _ = enumerated(q)
    expected = -(log_q.exp() * log_q).sum(0)
    assert_close(categorical.entropy(q), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale, expected", [(0.0, N * math.log(K)), (1e4, 0.0)])
def test_entropy_at_its_ends(scale, expected):
    q = scale * categorical.codes(N, K).to(torch.float32)
    entropy = categorical.entropy(q)
    assert_close(entropy, torch.full_like(entropy, expected))


def test_a_gradient_passes_through_extreme_logits():
    q = logits(scale=300.0).to(torch.float32).requires_grad_()
    (categorical.kl_divergence(q, torch.zeros(N, K)) + categorical.entropy(q)).sum().backward()
    assert q.grad.isfinite().all()


# Sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_follow_the_softmax(dtype):
    draws, given = 200_000, logits(2, 2, 3, scale=1.5).to(dtype)
    z = categorical.sample(given, draws)  # (S, 2, 2, 3)
    codes = categorical.codes(2, 3)
    index = (z.flatten(2).to(codes.dtype) @ codes.flatten(1).T).argmax(-1)  # of the joint code
    for image in range(2):
        p = categorical.log_prob(given[[image]].to(codes.dtype), codes[:, None]).exp().flatten()
        counts = torch.bincount(index[:, image], minlength=9)
        z_scores = (counts - draws * p) / (draws * p * (1 - p)).sqrt()
        assert z_scores.abs().max() < 5


def test_samples_of_different_images_are_independent():
    draws = 100_000
    z = categorical.sample(torch.zeros(2, 1, 2), draws)[..., 0, 0]  # (S, 2) of fair coins
    agree = (z[:, 0] == z[:, 1]).sum()
    assert abs(agree - draws / 2) < 5 * math.sqrt(draws / 4)


def assert_one_hot(z: torch.Tensor) -> None:
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 2.0, 300.0])
def test_samples_are_exactly_one_hot(scale, dtype):
    z = categorical.sample(logits(scale=scale).to(dtype), 500)
    assert z.shape == (500, B, N, K)
    assert_one_hot(z)


@pytest.mark.parametrize("value", [0.0, -3.5, math.inf, -math.inf])
def test_ties_have_one_winner(value):
    assert_one_hot(categorical.one_hot_argmax(torch.full((B, N, K), value)))


def test_the_largest_score_wins():
    scores = logits()
    picked = (categorical.one_hot_argmax(scores) * scores).sum(-1)
    assert torch.equal(picked, scores.amax(-1))


def test_no_gradient_passes_a_sample():
    assert not categorical.sample(logits().requires_grad_(), 1).requires_grad


def test_noise_is_standard_gumbel():
    draws = 200_000
    noise = categorical.gumbel_noise(torch.zeros(1, 1), draws).flatten()
    error = noise.mean() - 0.57721566490153286
    assert abs(error) < 5 * math.pi / math.sqrt(6 * draws)
    below = (noise < 0).sum()
    p = math.exp(-1)
    assert abs(below - draws * p) < 5 * math.sqrt(draws * p * (1 - p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_is_float32_or_better(dtype):
    noise = categorical.gumbel_noise(torch.zeros(B, N, K, dtype=dtype), 7)
    assert noise.shape == (7, B, N, K)
    assert noise.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_is_finite_where_the_uniform_is_at_its_end(monkeypatch, dtype, end):
    monkeypatch.setattr(
        torch, "rand", lambda shape, *, dtype, **_: torch.full(shape, end, dtype=dtype)
    )
    noise = categorical.gumbel_noise(torch.zeros(B, N, K, dtype=dtype), 2)
    assert noise.isfinite().all()
    assert noise.max() < -6 if end == 0 else noise.min() > 36  # the ends that there are
    assert_one_hot(categorical.sample(logits().to(dtype), 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rarest_categories_are_drawn(dtype):
    """Of log-odds of 20 against 1 the tail of the noise decides: P(G > 18) is 1.5e-8 each."""
    noise = categorical.gumbel_noise(torch.zeros(1, 1, dtype=dtype), 20_000_000)
    rare = int((noise > 15).sum())
    expected = 20_000_000 * -math.expm1(-math.exp(-15))
    assert abs(rare - expected) < 5 * math.sqrt(expected)
    assert len(noise[noise > 14].unique()) > 0.9 * len(noise[noise > 14])  # and no few values


def test_a_generator_reproduces_and_leaves_the_global_stream_alone():
    given, before = logits(), torch.get_rng_state()

    def draw(seed):
        return categorical.sample(given, 50, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_global_stream_is_drawn_from():
    given = logits()

    def draw():
        return categorical.sample(given, 50)

    first = draw()
    assert not torch.equal(draw(), first)
    torch.manual_seed(1)
    again = draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), again)


# gradient_of


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gradient_of_is_exactly_zero(dtype):
    x = logits(scale=300.0).to(dtype)
    assert torch.equal(categorical.gradient_of(x), torch.zeros_like(x))


def test_gradient_of_has_the_gradient_of_its_argument():
    x, weights = logits().requires_grad_(), torch.randn(B, N, K)

    def gradient(y):
        return torch.autograd.grad((weights * y).sum(), x)[0]

    assert torch.equal(gradient(categorical.gradient_of(x.softmax(-1))), gradient(x.softmax(-1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_code_with_a_gradient_is_still_the_code(dtype):
    s = logits(5, B, N, K).to(dtype).softmax(-1)
    z = categorical.one_hot_argmax(logits(5, B, N, K).to(dtype))
    assert torch.equal(z + categorical.gradient_of(s), z)
