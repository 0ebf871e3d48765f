"""N independent K-way categoricals, as functions of their logits (..., N, K).

Codes are one-hot tensors (..., N, K). The leading axes are samples S and batch B, in this order.
Logarithms are natural and every log-probability is summed over the latents, so densities,
entropies and divergences are in nats per image.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_of(x: Tensor) -> Tensor:
    """Return a tensor that is zero in the forward pass and differentiates like x.

    `z + gradient_of(s)` therefore has exactly the value of z and the gradient of s.
    """
    return x - x.detach()


def fine_uniform(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw uniform numbers in [0, 1), in float64.

    In float32 the numbers are multiples of 2^-24, which is too coarse for rare categories: some
    would be drawn too often, others never.
    """
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


def gumbel_noise(logits: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard Gumbel noise -log(-log U), always finite.

    The argmax of logits plus noise is an exact sample of Cat(logits) (the Gumbel-max trick).

    Returns:
        Noise (samples, *logits.shape), in float32 or the dtype of the logits if that is finer.

    References:
        Gumbel (1954); Maddison, Tarlow & Minka (2014), https://arxiv.org/abs/1411.0030.
    """
    # The exponential is -log U and not `exponential_`, which is sequential on a CPU and takes
    # three times as long.
    uniform = fine_uniform((samples, *logits.shape), logits.device, generator)
    info = torch.finfo(uniform.dtype)
    exponential = uniform.clamp(info.tiny, 1 - info.eps / 2).log_().neg_()
    return exponential.to(torch.promote_types(logits.dtype, torch.float32)).log_().neg_()


def one_hot(index: Tensor, categories: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the one-hot codes (..., K) of category indices (...), by default in torch's dtype."""
    zeros = torch.zeros(*index.shape, categories, dtype=dtype, device=index.device)
    return zeros.scatter(-1, index.unsqueeze(-1), 1.0)


def one_hot_argmax(scores: Tensor) -> Tensor:
    """Return the one-hot code of the largest score along K; a tie has exactly one winner."""
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def conditional_gumbel(logits: Tensor, z: Tensor) -> Tensor:
    """Draw perturbed logits, logits + G, from their distribution given that their argmax is z.

    With E a vector of standard exponentials, x the category of z and Z the sum of exp(logits),
    the winner is log Z - log E_x and every other entry j is -log(E_j / exp(logits_j) + E_x / Z).
    The result is differentiable in the logits at fixed z and E.

    Args:
        logits: (B, N, K).
        z: One-hot codes (S, B, N, K).

    Returns:
        Perturbed logits (S, B, N, K).

    References:
        Paulus, Maddison & Krause (2021), https://arxiv.org/abs/2010.04838.
    """
    log_e = gumbel_noise(z, 1).squeeze(0).neg()  # log of an exponential is minus a Gumbel
    winner = logits.logsumexp(-1, keepdim=True) - (z * log_e).sum(-1, keepdim=True)
    losers = -torch.logaddexp(log_e - logits, -winner)
    return torch.where(z > 0, winner, losers)


def catnat(scores: Tensor) -> Tensor:
    """Return the log-probabilities of K = 2^H categories from scores at the nodes of a tree.

    The categories are the leaves of a complete binary tree with K - 1 inner nodes. The nodes come
    level by level, and each level from left to right. At a node with score s the left branch has
    the probability (1 + sin(s / 2)) / 2 for |s| <= pi, and 0 or 1 beyond. The probability of a
    category is the product along its path from the root. The Fisher information of the scores is
    diagonal: that of a node is 1/4 of the probability that the node is reached.

    The logarithms are finite, because every branch keeps a probability of at least 1e-8. Like the
    function of the paper, the result has no gradient in a score beyond the ends.

    Args:
        scores: (..., K - 1).

    Returns:
        Normalised logits (..., K).

    References:
        Manenti & Alippi (2026), https://arxiv.org/abs/2509.24728, with A = 2 pi and C = 0.
    """
    # (1 + sin(s / 2)) / 2 is the squared sine of pi / 4 + s / 4, which is accurate near 0.
    quarter = (scores / 4).clamp(1e-4 - math.pi / 4, math.pi / 4 - 1e-4)
    left = 2 * (math.pi / 4 + quarter).sin().log()  # (..., K - 1)
    right = 2 * (math.pi / 4 - quarter).sin().log()
    log_p, first = torch.zeros_like(scores[..., :1]), 0  # (..., nodes of a level)
    while first < scores.shape[-1]:
        nodes = slice(first, 2 * first + 1)
        branches = torch.stack([left[..., nodes], right[..., nodes]], -1)
        log_p, first = (log_p.unsqueeze(-1) + branches).flatten(-2), 2 * first + 1
    return log_p


def cumulative_probabilities(logits: Tensor) -> Tensor:
    """Return the cumulative probabilities of the categories, from which `draw` draws.

    Returns:
        Sums (..., K) without a gradient, in float64.
    """
    return logits.detach().double().softmax(-1).cumsum(-1)


def draw(cumulative: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw category indices by inverting the cumulative probabilities at uniform numbers.

    The category of u is the first one whose cumulative probability is greater than u. A category
    of probability 0 has the same cumulative probability as the category before it and is
    therefore never drawn. (Tests show this on the CPU. A GPU may add the probabilities in another
    order.)

    Args:
        cumulative: The result of `cumulative_probabilities`, (..., K).
        samples: The number S of indices to draw for each distribution.
        generator: The source of the uniform numbers; None for the default generator.

    Returns:
        Indices (S, ...). They lie in memory in the order (..., S).
    """
    uniform = fine_uniform((*cumulative.shape[:-1], samples), cumulative.device, generator)
    # The total is 1 but for rounding. As the uniform numbers are at most 1 - eps / 2, their
    # products with the total are less than the total, also after rounding.
    uniform = uniform * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, uniform, right=True)
    # For logits that are NaN, searchsorted returns K. The code is made valid here, and the check
    # of the loss reports that it is not finite.
    return index.clamp_max(cumulative.shape[-1] - 1).movedim(-1, 0)


def sample(logits: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw exact one-hot samples of Cat(logits), without a gradient.

    One uniform number for each sample selects the category. Estimators that also use the noise of
    a sample add `gumbel_noise` to the logits instead; the argmax has the same distribution.

    Returns:
        Codes (samples, *logits.shape), in float32 or the dtype of the logits if that is finer.
    """
    index = draw(cumulative_probabilities(logits), samples, generator)
    return one_hot(index, logits.shape[-1], torch.promote_types(logits.dtype, torch.float32))


def log_prob(logits: Tensor, z: Tensor) -> Tensor:
    """Return log Cat(z; logits), summed over the latents.

    Args:
        logits: (B, N, K).
        z: Codes (S, B, N, K), or (S, 1, N, K) if every image has the same codes. The second form
            is one matrix product and makes no (S, B, N, K) tensor.

    Returns:
        Log-probabilities (S, B).
    """
    log_p = logits.log_softmax(-1)
    if z.shape[1] == 1:
        return z.flatten(1).to(log_p.dtype) @ log_p.flatten(1).T
    return (z * log_p).sum((-2, -1))


def exp_concrete_log_prob(logits: Tensor, temperature: float | Tensor, log_y: Tensor) -> Tensor:
    """Return the log-density of log y, with y from a Concrete distribution.

    The density of log y (ExpConcrete) stays finite if a coordinate of y underflows; the density
    of y itself does not.

    Args:
        logits: (..., N, K).
        temperature: The temperature of the distribution.
        log_y: log_softmax((logits + Gumbel noise) / temperature), (..., N, K).

    Returns:
        Log-densities (...), summed over the latents.

    References:
        Maddison, Mnih & Teh (2017), https://arxiv.org/abs/1611.00712.
    """
    k = logits.shape[-1]
    scores = logits - temperature * log_y
    normaliser = math.lgamma(k) + (k - 1) * torch.as_tensor(temperature).log()
    return (normaliser + scores.sum(-1) - k * scores.logsumexp(-1)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy, summed over the latents: (..., N, K) -> (...)."""
    log_q = logits.log_softmax(-1)
    return -(log_q.exp() * log_q).sum((-2, -1))


def kl_divergence(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """Return KL(Cat(logits) || Cat(prior_logits)) in closed form: (..., N, K) -> (...)."""
    log_q, log_p = logits.log_softmax(-1), prior_logits.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum((-2, -1))


def codes(latents: int, categories: int, device: torch.device | str | None = None) -> Tensor:
    """Return all K**N one-hot codes, (K**N, N, K); the last latent changes fastest."""
    digits = torch.arange(categories**latents, device=device)[:, None]
    powers = categories ** torch.arange(latents - 1, -1, -1, device=device)
    return one_hot(digits // powers % categories, categories)  # (K**N, N, K)


def position(index: Tensor, categories: int) -> Tensor:
    """Return the positions (...) in `codes` of codes with the category indices (..., N)."""
    powers = categories ** torch.arange(index.shape[-1] - 1, -1, -1, device=index.device)
    return (index * powers).sum(-1)
