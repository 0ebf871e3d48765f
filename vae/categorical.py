"""N independent K-way categoricals, as functions of their logits (..., N, K).

Codes are one-hot, (..., N, K). Leading dimensions are samples S and batch B, in this order.
Logarithms are natural and every sum runs over the latents: nats per image.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_of(x: Tensor) -> Tensor:
    """Zero forward, x backward: `z + gradient_of(s)` *is* z, and differentiates as s."""
    return x - x.detach()


def fine_uniform(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform in [0, 1), in float64 where the device has it.

    Float32's, multiples of 2^-24, would give rare categories too often or never.
    """
    fine = torch.float32 if device.type == "mps" else torch.float64
    return torch.rand(shape, dtype=fine, device=device, generator=generator)


def gumbel_noise(logits: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise (samples, *logits.shape), in float32 or better.

    -log(-log U), always finite. (`exponential_`, one number after the other, takes three times as
    long on a CPU.)
    """
    uniform = fine_uniform((samples, *logits.shape), logits.device, generator)
    info = torch.finfo(uniform.dtype)
    exponential = uniform.clamp(info.tiny, 1 - info.eps / 2).log_().neg_()
    return exponential.to(torch.promote_types(logits.dtype, torch.float32)).log_().neg_()


def one_hot(index: Tensor, categories: int) -> Tensor:
    """Codes (..., K) of category indices (...), in the default dtype."""
    zeros = torch.zeros(*index.shape, categories, device=index.device)
    return zeros.scatter(-1, index.unsqueeze(-1), 1.0)


def one_hot_argmax(scores: Tensor) -> Tensor:
    """The one-hot code of the largest score along K; exactly one entry is 1, ties included."""
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def conditional_gumbel(logits: Tensor, z: Tensor) -> Tensor:
    """logits + G given that their argmax is z: (B, N, K) logits, (S, B, N, K) codes -> like z.

    With E standard exponential and x the category of z, the winner is log Z - log E_x, Z the sum
    of exp(logits), and the others are -log(E_j / exp(logits_j) + E_x / Z). Differentiable in the
    logits at fixed z and E.
    Paulus, Maddison & Krause (2021), https://arxiv.org/abs/2010.04838.
    """
    log_e = gumbel_noise(z, 1).squeeze(0).neg()  # log of an exponential is minus a Gumbel
    winner = logits.logsumexp(-1, keepdim=True) - (z * log_e).sum(-1, keepdim=True)
    others = -torch.logaddexp(log_e - logits, -winner)
    return torch.where(z > 0, winner, others)


def sample(logits: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Exact samples (samples, *logits.shape) of Cat(logits), by the Gumbel-max trick.

    No gradient passes. Gumbel (1954); Maddison, Tarlow & Minka (2014),
    https://arxiv.org/abs/1411.0030
    """
    with torch.no_grad():
        return one_hot_argmax(logits + gumbel_noise(logits, samples, generator))


def log_prob(logits: Tensor, z: Tensor) -> Tensor:
    """log Cat(z; logits) summed over the latents: (B, N, K) logits, (S, B, N, K) codes -> (S, B).

    A batch axis of size 1 in z stands for the same codes for every image; then it is one matrix
    product, and no (S, B, N, K) tensor is made.
    """
    log_p = logits.log_softmax(-1)
    if logits.dim() == 3 and z.shape[1] == 1:
        return z.flatten(1).to(log_p.dtype) @ log_p.flatten(1).T
    return (z * log_p).sum((-2, -1))


def exp_concrete_log_prob(logits: Tensor, temperature: float | Tensor, log_y: Tensor) -> Tensor:
    """Log-density of log y, y Concrete, summed over the latents: logits (..., N, K) -> (...).

    log y (..., N, K) is a log_softmax of (logits + Gumbel) / temperature. On the simplex itself
    the density would overflow where y does.

    Maddison, Mnih & Teh (2017), https://arxiv.org/abs/1611.00712.
    """
    k = logits.shape[-1]
    scores = logits - temperature * log_y
    normaliser = math.lgamma(k) + (k - 1) * torch.as_tensor(temperature).log()
    return (normaliser + scores.sum(-1) - k * scores.logsumexp(-1)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy summed over the latents: (..., N, K) -> (...)."""
    log_q = logits.log_softmax(-1)
    return -(log_q.exp() * log_q).sum((-2, -1))


def kl_divergence(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL(Cat(logits) || Cat(prior_logits)) in closed form, summed over the latents: (...)."""
    log_q, log_p = logits.log_softmax(-1), prior_logits.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum((-2, -1))


def codes(latents: int, categories: int, device: torch.device | str | None = None) -> Tensor:
    """All K**N one-hot codes, (K**N, N, K), the last latent changing fastest."""
    digits = torch.arange(categories**latents, device=device)[:, None]
    powers = categories ** torch.arange(latents - 1, -1, -1, device=device)
    return one_hot(digits // powers % categories, categories)  # (K**N, N, K)


def index_of(z: Tensor) -> Tensor:
    """Where one-hot codes (..., N, K) stand among `codes`: (...)."""
    latents, categories = z.shape[-2:]
    powers = categories ** torch.arange(latents - 1, -1, -1, device=z.device)
    return (z.argmax(-1) * powers).sum(-1)
