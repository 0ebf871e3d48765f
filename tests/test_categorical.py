"""Categorical distributions: densities against enumeration, samples, and gradients."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from vae import categorical

B, N, K = 4, 3, 4


def random_logits(*shape: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*(shape or (B, N, K)))


def enumerate_codes(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities (K**N, B) of all codes, and the codes (K**N, N, K)."""
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    latents, categories = logits.shape[-2:]
    digits = list(itertools.product(range(categories), repeat=latents))
    log_p = [sum(p[:, n, k].log() for n, k in enumerate(code)) for code in digits]
    return torch.stack(log_p), torch.eye(categories)[torch.tensor(digits)]


# Codes


def test_codes_are_in_an_order_in_which_the_last_latent_changes_fastest():
    digits = torch.tensor(list(itertools.product(range(K), repeat=N)))
    assert torch.equal(categorical.codes(N, K), torch.eye(K)[digits])


@pytest.mark.parametrize("latents, categories", [(1, 2), (1, 7), (5, 2), (2, 3)])
def test_codes_are_k_to_the_n_different_one_hot_codes(latents, categories):
    codes = categorical.codes(latents, categories)
    assert codes.shape == (categories**latents, latents, categories)
    assert len(codes.unique(dim=0)) == categories**latents
    assert torch.equal(codes.sum(-1), torch.ones(categories**latents, latents))


def test_position_of_a_code_is_its_place_in_codes():
    index = categorical.codes(3, 4).argmax(-1)  # (K**N, N)
    assert categorical.position(index, 4).tolist() == list(range(4**3))


# Densities


@pytest.mark.parametrize("scale", [0.0, 2.0, 50.0])
def test_log_prob_sums_to_one_over_all_codes(scale):
    log_p = categorical.log_prob(random_logits(scale=scale), categorical.codes(N, K)[:, None])
    assert_close(log_p.exp().sum(0), torch.ones(B), rtol=0, atol=1e-12)


def test_log_prob_is_the_sum_over_the_latents():
    logits = random_logits()
    expected, codes = enumerate_codes(logits)
    everywhere = codes[:, None].expand(-1, B, -1, -1)
    assert_close(categorical.log_prob(logits, everywhere), expected, rtol=0, atol=1e-12)


def test_log_prob_with_a_batch_axis_of_one_uses_the_codes_for_every_image():
    logits, codes = random_logits(), categorical.codes(N, K)[:, None]
    expected = categorical.log_prob(logits, codes.expand(-1, B, -1, -1))
    assert_close(categorical.log_prob(logits, codes), expected, rtol=0, atol=1e-12)


def test_gradient_of_log_prob_with_a_batch_axis_of_one_is_that_of_expanded_codes():
    logits, codes = random_logits().requires_grad_(), categorical.codes(N, K)[:, None]
    weights = torch.randn(len(codes), B)

    def gradient(z):
        return torch.autograd.grad((weights * categorical.log_prob(logits, z)).sum(), logits)[0]

    assert_close(gradient(codes), gradient(codes.expand(-1, B, -1, -1)), rtol=0, atol=1e-12)


def test_kl_is_the_enumerated_sum_over_all_codes():
    q, p = random_logits(), random_logits(1, N, K)
    (log_q, _), (log_p, _) = enumerate_codes(q), enumerate_codes(p)
    expected = (log_q.exp() * (log_q - log_p)).sum(0)
    assert_close(categorical.kl_divergence(q, p), expected, rtol=0, atol=1e-12)


def test_kl_to_a_prior_without_a_batch_axis_is_that_of_an_expanded_prior():
    q, p = random_logits(), random_logits(N, K)
    expected = categorical.kl_divergence(q, p.expand_as(q))
    assert torch.equal(categorical.kl_divergence(q, p), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_kl_is_zero_at_the_prior(scale, dtype):
    prior = random_logits(scale=scale).to(dtype)
    assert torch.equal(categorical.kl_divergence(prior, prior), torch.zeros(B, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0, 300.0])
def test_kl_to_the_uniform_prior_is_between_zero_and_n_log_k(scale, dtype):
    latents, categories = 20, 10
    q = random_logits(1000, latents, categories, scale=scale).to(dtype)
    kl = categorical.kl_divergence(q, torch.zeros(latents, categories, dtype=dtype))
    largest = latents * math.log(categories)
    rounding = 10 * torch.finfo(dtype).eps * largest
    assert kl.min() >= -rounding
    assert kl.max() <= largest + rounding


def test_kl_of_a_point_mass_to_the_uniform_prior_is_n_log_k():
    q = 300 * categorical.codes(N, K).to(torch.float32)
    kl = categorical.kl_divergence(q, torch.zeros(N, K))
    assert_close(kl, torch.full((K**N,), N * math.log(K)), check_dtype=False)


def test_entropy_is_the_enumerated_sum_over_all_codes():
    q = random_logits()
    log_q, _ = enumerate_codes(q)
    expected = -(log_q.exp() * log_q).sum(0)
    assert_close(categorical.entropy(q), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale, expected", [(0.0, N * math.log(K)), (1e4, 0.0)])
def test_entropy_is_n_log_k_if_uniform_and_zero_if_certain(scale, expected):
    q = scale * categorical.codes(N, K).to(torch.float32)
    entropy = categorical.entropy(q)
    assert_close(entropy, torch.full_like(entropy, expected))


def test_kl_and_entropy_have_finite_gradients_at_extreme_logits():
    q = random_logits(scale=300.0).to(torch.float32).requires_grad_()
    (categorical.kl_divergence(q, torch.zeros(N, K)) + categorical.entropy(q)).sum().backward()
    assert q.grad.isfinite().all()


# Sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_follow_the_softmax(dtype):
    draws, logits = 200_000, random_logits(2, 2, 3, scale=1.5).to(dtype)
    z = categorical.sample(logits, draws)  # (S, 2, 2, 3)
    codes = categorical.codes(2, 3)
    index = (z.flatten(2).to(codes.dtype) @ codes.flatten(1).T).argmax(-1)  # of the joint code
    for image in range(2):
        p = categorical.log_prob(logits[[image]].to(codes.dtype), codes[:, None]).exp().flatten()
        counts = torch.bincount(index[:, image], minlength=9)
        z_scores = (counts - draws * p) / (draws * p * (1 - p)).sqrt()
        assert z_scores.abs().max() < 5


def test_samples_of_different_images_are_independent():
    draws = 100_000
    z = categorical.sample(torch.zeros(2, 1, 2), draws)[..., 0, 0]  # (S, 2) of fair coins
    agreements = (z[:, 0] == z[:, 1]).sum()
    assert abs(agreements - draws / 2) < 5 * math.sqrt(draws / 4)


def assert_one_hot(z: torch.Tensor) -> None:
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 2.0, 300.0])
def test_samples_are_exactly_one_hot(scale, dtype):
    z = categorical.sample(random_logits(scale=scale).to(dtype), 500)
    assert z.shape == (500, B, N, K)
    assert_one_hot(z)


def test_rare_categories_are_drawn_as_often_as_their_probabilities_say():
    draws, log_p = 10_000_000, torch.tensor([-15.0, -1.0, -13.0, -14.0, -11.0])
    logits = (log_p - log_p.logsumexp(0)).float()
    index = categorical.draw(categorical.cumulative_probabilities(logits), draws)
    counts, expected = torch.bincount(index, minlength=5), draws * logits.double().exp()
    assert counts.sum() == draws
    rare = torch.tensor([0, 2, 3, 4])
    assert ((counts - expected)[rare].abs() < 5 * expected[rare].sqrt()).all()


@pytest.mark.parametrize("rare", [[0, 1], [1, 2]], ids=["first", "last"])
def test_categories_rarer_than_a_step_of_float32_have_their_share_of_uniform_numbers(
    monkeypatch, rare
):
    """The uniform numbers are those of a grid in the first or the last part of [0, 1)."""
    part = 2**-30
    grid = (torch.arange(1000) + 0.5) / 1000 * part
    grid = grid if rare == [0, 1] else 1 - part + grid
    monkeypatch.setattr(torch, "rand", lambda shape, *, dtype, **_: grid.to(dtype).expand(shape))
    p = torch.zeros(3)
    p[rare] = torch.tensor([0.3, 0.7]) * part
    p[p == 0] = 1 - part
    index = categorical.draw(categorical.cumulative_probabilities(p.log()), 1000)
    expected = torch.zeros(3, dtype=torch.long)
    expected[rare] = torch.tensor([300, 700])
    assert torch.equal(torch.bincount(index, minlength=3), expected)


def end_uniform(monkeypatch, end: float) -> None:
    """Let every uniform number be the smallest or the largest one that torch draws."""
    value = 0.0 if end == 0 else 1 - 2**-53
    monkeypatch.setattr(
        torch, "rand", lambda shape, *, dtype, **_: torch.full(shape, value, dtype=dtype)
    )


@pytest.mark.parametrize("end, expected", [(0, 1), (1, 3)])
@pytest.mark.parametrize("impossible", [-math.inf, -1000.0])
def test_categories_of_probability_zero_are_not_drawn_at_the_ends(
    monkeypatch, end, expected, impossible
):
    """They are the first, the middle one and the last two of six categories."""
    end_uniform(monkeypatch, end)
    possible = torch.tensor([False, True, False, True, False, False])
    scores = random_logits(2000, 1, 6).masked_fill(~possible, impossible)  # sums that are not 1
    totals = categorical.cumulative_probabilities(scores)[..., -1]
    assert (totals < 1).any() and (totals > 1).any()
    assert (categorical.sample(scores, 2).argmax(-1) == expected).all()


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_samples_at_the_ends_are_one_hot_and_possible(monkeypatch, dtype, end):
    end_uniform(monkeypatch, end)
    logits = random_logits(500, N, 64, scale=300.0).to(dtype)
    z = categorical.sample(logits, 1)
    assert_one_hot(z)
    assert ((z * logits.double().softmax(-1)).sum(-1) > 0).all()


@pytest.mark.parametrize("scale", [300.0, 1e30])
def test_samples_at_extreme_logits_are_the_mode(scale):
    modes = torch.randint(K, (500, N))
    logits = scale * (2 * categorical.one_hot(modes, K) - 1)
    assert (categorical.sample(logits.float(), 20).argmax(-1) == modes).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_of_invalid_logits_are_one_hot(value):
    """The loss is not finite. Training reports it, because sampling does not fail before."""
    assert_one_hot(categorical.sample(torch.full((B, N, K), value), 3))


def test_samples_of_logits_of_a_prior_have_no_batch_axis():
    assert_one_hot(categorical.sample(random_logits(N, K), 7))
    assert categorical.sample(random_logits(N, K), 7).shape == (7, N, K)


def test_samples_of_replicas_follow_the_softmax_of_each_replica_and_are_independent():
    draws, logits = 50_000, random_logits(3, 1, 1, K)  # three replicas
    logits[1] = logits[0]
    sample = torch.vmap(lambda logits: categorical.sample(logits, draws), randomness="different")
    z = sample(logits).squeeze((2, 3))  # (3, draws, K)
    p = logits.softmax(-1).squeeze((1, 2))
    assert ((z.mean(1) - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()
    agreement, expected = (z[0] * z[1]).sum(-1).mean(), p[0].square().sum()
    assert abs(agreement - expected) < 5 * (expected * (1 - expected) / draws).sqrt()


@pytest.mark.parametrize("value", [0.0, -3.5, math.inf, -math.inf])
def test_argmax_of_a_tie_has_one_winner(value):
    assert_one_hot(categorical.one_hot_argmax(torch.full((B, N, K), value)))


def test_argmax_picks_the_largest_score():
    scores = random_logits()
    winners = (categorical.one_hot_argmax(scores) * scores).sum(-1)
    assert torch.equal(winners, scores.amax(-1))


def test_samples_carry_no_gradient():
    assert not categorical.sample(random_logits().requires_grad_(), 1).requires_grad


def test_noise_has_the_mean_of_a_standard_gumbel_and_its_probability_below_zero():
    draws = 200_000
    noise = categorical.gumbel_noise(torch.zeros(1, 1), draws).flatten()
    error = noise.mean() - 0.57721566490153286
    assert abs(error) < 5 * math.pi / math.sqrt(6 * draws)
    below = (noise < 0).sum()
    p = math.exp(-1)
    assert abs(below - draws * p) < 5 * math.sqrt(draws * p * (1 - p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_is_float32_or_finer(dtype):
    noise = categorical.gumbel_noise(torch.zeros(B, N, K, dtype=dtype), 7)
    assert noise.shape == (7, B, N, K)
    assert noise.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_is_finite_if_the_uniform_is_0_or_1(monkeypatch, dtype, end):
    monkeypatch.setattr(
        torch, "rand", lambda shape, *, dtype, **_: torch.full(shape, end, dtype=dtype)
    )
    noise = categorical.gumbel_noise(torch.zeros(B, N, K, dtype=dtype), 2)
    assert noise.isfinite().all()
    assert noise.max() < -6 if end == 0 else noise.min() > 36  # -log(-log U) at the clamps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tail_of_the_noise_has_its_probability_and_many_different_values(dtype):
    """The tail decides how often rare categories are drawn; in float32 it would be too coarse."""
    noise = categorical.gumbel_noise(torch.zeros(1, 1, dtype=dtype), 20_000_000)
    exceedances = int((noise > 15).sum())
    expected = 20_000_000 * -math.expm1(-math.exp(-15))
    assert abs(exceedances - expected) < 5 * math.sqrt(expected)
    tail = noise[noise > 14]
    assert len(tail.unique()) > 0.9 * len(tail)


def test_samples_from_a_generator_are_reproducible_and_leave_the_global_one_alone():
    logits, before = random_logits(), torch.get_rng_state()

    def draw(seed):
        return categorical.sample(logits, 50, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_without_a_generator_come_from_the_global_one():
    logits = random_logits()

    def draw():
        return categorical.sample(logits, 50)

    before = draw()
    assert not torch.equal(draw(), before)
    torch.manual_seed(1)
    first = draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)


# gradient_of


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gradient_of_has_the_value_zero(dtype):
    x = random_logits(scale=300.0).to(dtype)
    assert torch.equal(categorical.gradient_of(x), torch.zeros_like(x))


def test_gradient_of_has_the_gradient_of_its_argument():
    x, weights = random_logits().requires_grad_(), torch.randn(B, N, K)

    def gradient(y):
        return torch.autograd.grad((weights * y).sum(), x)[0]

    assert torch.equal(gradient(categorical.gradient_of(x.softmax(-1))), gradient(x.softmax(-1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_adding_gradient_of_to_a_code_leaves_it_exactly_one_hot(dtype):
    s = random_logits(5, B, N, K).to(dtype).softmax(-1)
    z = categorical.one_hot_argmax(random_logits(5, B, N, K).to(dtype))
    assert torch.equal(z + categorical.gradient_of(s), z)


# The catnat map from scores to logits


def probabilities_by_paths(scores: torch.Tensor) -> torch.Tensor:
    """Return the probability of each leaf, from K - 1 scores, by a walk from the root."""
    categories, leaves = len(scores) + 1, []
    levels = categories.bit_length() - 1
    for turns in itertools.product((0, 1), repeat=levels):
        probability, position = torch.tensor(1.0), 0
        for level, turn in enumerate(turns):
            left = (1 + (scores[2**level - 1 + position] / 2).sin()) / 2
            probability = probability * (1 - left if turn else left)
            position = 2 * position + turn
        leaves.append(probability)
    return torch.stack(leaves)


every_size = pytest.mark.parametrize("categories", [2, 4, 8])


@every_size
def test_catnat_multiplies_the_branches_of_each_path(categories):
    scores = 6 * torch.rand(B, N, categories - 1) - 3  # within (-pi, pi)
    paths = [probabilities_by_paths(row) for row in scores.flatten(0, 1)]
    p = categorical.catnat(scores).exp()
    assert_close(p, torch.stack(paths).reshape(B, N, categories), rtol=0, atol=1e-12)
    assert_close(p.sum(-1), torch.ones(B, N), rtol=0, atol=1e-12)


def test_catnat_of_replicas_is_that_of_each_replica():
    scores = torch.randn(5, B, N, 7)
    expected = torch.stack([categorical.catnat(replica) for replica in scores])
    assert torch.equal(torch.vmap(categorical.catnat)(scores), expected)


@every_size
def test_scores_of_zero_give_equal_categories(categories):
    p = categorical.catnat(torch.zeros(categories - 1)).exp()
    assert_close(p, torch.full((categories,), 1 / categories), rtol=0, atol=1e-12)


@every_size
def test_fisher_information_of_catnat_is_diagonal(categories):
    """It is a quarter of the probability that a node is reached, as the docstring says."""
    scores = 4 * torch.rand(categories - 1) - 2
    p = categorical.catnat(scores).exp()
    jacobian = torch.autograd.functional.jacobian(categorical.catnat, scores)  # (K, K - 1)
    fisher = jacobian.T @ (p[:, None] * jacobian)
    reached, level = [], p
    while len(level) > 1:
        level = level.unflatten(0, (-1, 2)).sum(-1)
        reached = [level, *reached]
    assert_close(fisher, torch.cat(reached).diag() / 4, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [math.pi, 4.0, 1e6])
def test_catnat_is_finite_at_and_beyond_the_ends(size, dtype):
    scores = torch.tensor([size, -size, size], dtype=dtype).requires_grad_()
    log_p = categorical.catnat(scores)
    assert log_p.isfinite().all() and log_p.argmax() == 1  # left, then right
    assert_close(log_p.exp().sum().item(), 1.0)
    assert log_p.min().item() == pytest.approx(2 * math.log(1e-8), rel=1e-3)
    (gradient,) = torch.autograd.grad((log_p.exp() * log_p).sum(), scores)
    assert torch.equal(gradient, torch.zeros_like(scores))
