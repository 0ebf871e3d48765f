"""DisARM for categoricals: the score function at antithetic codes."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vae.categorical import fine_uniform, gradient_of, one_hot
from vae.estimators.base import CodeFunction, Estimator
from vae.schedules import Step
from vae.utils.validation import validated


class Disarm(Estimator):
    """Compare f at every two of S antithetic codes, and weight each latent to undo the coupling.

    All codes follow q, and every two of them have the same joint distribution. If the categories
    of latent n are a in z_s and b in z_t, the gradient in the logits of that latent is the mean
    over all pairs s < t of

        (f(z_s) - f(z_t)) w (grad log q_n(a) - grad log q_n(b)) / 2,
        w = q_n(a) q_n(b) / Q_n(a, b),

    with Q_n the joint distribution of (a, b). In pairs with a = b, the latent contributes nothing.

    Bias: none for every f, because Q_n(a, b) > 0 for all a != b.
    Value: an unbiased estimate of L.
    Cost: S evaluations of f; no temperature.
    Reference: for two samples, Dong, Mnih & Tucker (2020), https://arxiv.org/abs/2006.10680, for
        K = 2, where this is DisARM itself, and Dong, Mnih & Tucker (2021),
        https://arxiv.org/abs/2106.08056, for the stick breaking. For more samples, Dimitriev &
        Zhou (2021), https://arxiv.org/abs/2105.14141 (ARMS, K = 2) and
        https://arxiv.org/abs/2110.14002 (CARMS). This is the stick-breaking form of CARMS with a
        Dirichlet copula. The weights are not clipped.

    Args:
        samples: S, at least 2.
    """

    @validated
    def __init__(self, samples: Annotated[int, Field(ge=2)] = 2) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        with torch.no_grad():
            z, weight = antithetic_codes(logits, self.samples)  # (S, B, N, K), (S, S, B, N)
        loss = f(z)  # (S, B)
        difference = (loss.unsqueeze(1) - loss).detach()  # (S, S, B)
        pairs = self.samples * (self.samples - 1)
        advantage = (weight * difference.unsqueeze(-1)).sum(1) / pairs  # (S, B, N)
        log_q = (z * logits.log_softmax(-1)).sum(-1)  # (S, B, N)
        return loss.mean(0) + gradient_of((advantage * log_q).sum((0, -1)))


def antithetic_codes(logits: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Draw S coupled codes that all follow Cat(logits), and the weights of their pairs.

    All codes are drawn by stick breaking, least probable category first. Code s breaks its stick
    at a position if u_s is below the position's share h of the rest of the stick. The numbers u_s
    of a position are uniform and antithetic: for two codes u and 1 - u, and in general
    u_s = (1 - d_s)^(S - 1) with d from the flat Dirichlet distribution. The last position always
    breaks. In this order the share of the last position but one is at most a half, and all other
    shares are at most a third, so that the weights stay below 2 without clipping.

    Args:
        logits: (B, N, K).
        samples: S, at least 2.

    Returns:
        Codes (S, B, N, K), and for each two of them the weights q(a) q(b) / Q(a, b) of the
        latents, (S, S, B, N), with 0 for a = b.
    """
    h, order = _shares(logits)  # (B, N, K), (B, N, K)
    first = _first_breaks(h, samples)  # (S, B, N)
    z = one_hot(order.gather(-1, first.movedim(0, -1)).movedim(-1, 0), h.shape[-1], h.dtype)
    return z, _pair_weights(h, first)


def _shares(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share h of the rest of the stick that each position takes, and its category.

    Args:
        logits: (B, N, K).

    Returns:
        Shares (B, N, K), at most a half and 1 at the end, and categories (B, N, K). The least
        probable category is first.
    """
    log_p, order = logits.log_softmax(-1).sort(-1)  # ascending
    rest = log_p.flip(-1).logcumsumexp(-1).flip(-1)  # log of the length of the rest of the stick
    h = (log_p - rest).exp()[..., :-1].clamp_max(0.5)  # rounding can exceed a half
    return torch.cat([h, torch.ones_like(log_p[..., :1])], -1), order


def _first_breaks(h: Tensor, samples: int) -> Tensor:
    """Draw the position at which each of S coupled codes breaks its stick.

    Args:
        h: Shares (B, N, K).
        samples: S.

    Returns:
        Positions (S, B, N).
    """
    uniform = fine_uniform((samples - 1, *h.shape), h.device).sort(0).values
    ends = torch.zeros_like(uniform[:1]), torch.ones_like(uniform[:1])
    d = torch.cat([ends[0], uniform, ends[1]]).diff(dim=0).flip(0)  # (S, B, N, K), flat Dirichlet
    u = (1 - d).pow(samples - 1)
    # The first u is in [0, 1), and the later ones are in (0, 1]. With < for the first and <= for
    # the later ones, each breaks with probability h.
    breaks = torch.cat([u[:1] < h, u[1:] <= h])  # true at the end, where h = 1
    return breaks.to(torch.uint8).argmax(-1)


def _pair_weights(h: Tensor, first: Tensor) -> Tensor:
    """Return the weights q(a) q(b) / Q(a, b) of every two codes.

    Two codes both break their sticks at a position with probability
    phi = max(2 h^(1 / (S - 1)) - 1, 0)^(S - 1), which is 0 for S = 2. Each position at which
    neither of them breaks contributes (1 - h)^2 / (1 - 2 h + phi) to the weight. The position at
    which the first of them breaks contributes h (1 - h) / (h - phi). Afterwards only one stick is
    left, whose factors in q(b) and Q(a, b) are the same.

    Args:
        h: Shares (B, N, K).
        first: Positions (S, B, N).

    Returns:
        Weights (S, S, B, N), with 0 for a = b.
    """
    power = len(first) - 1
    phi_over_h = (2 - h.pow(-1 / power)).clamp_min(0).pow(power)  # also right for h = 0
    neither = (1 - 2 * h + h * phi_over_h).clamp_min(torch.finfo(h.dtype).tiny)
    both_left = (1 - h).square() / neither
    one_left = (1 - h) / (
        1 - phi_over_h
    )  # NaN at the last position, which is used for a = b alone
    position = torch.arange(h.shape[-1], device=h.device)
    before = torch.where(position < first.unsqueeze(-1), both_left, torch.ones_like(both_left))
    at_break = one_left.gather(-1, first.movedim(0, -1)).movedim(-1, 0)
    weight = before.prod(-1) * at_break  # (S, B, N), of a code with all that break later
    one, other = first.unsqueeze(1), first
    weight = torch.where(one < other, weight.unsqueeze(1), weight)
    return torch.where(one == other, torch.zeros_like(weight), weight)
