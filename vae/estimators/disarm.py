"""Antithetic pairs of codes."""

import torch
from torch import Tensor

from ..categorical import fine_uniform, gradient_of, one_hot
from ..schedules import Step
from .base import Estimator, Objective


class Disarm(Estimator):
    """The score function at two antithetic codes, each latent weighted to undo their coupling.

    Both codes z, z' have the law of q, and the gradient of latent n, where its pair is (a, b), is

        (f(z) - f(z')) w (grad log q_n(a) - grad log q_n(b)) / 2,    w = q_n(a) q_n(b) / Q_n(a, b),

    Q_n the joint law of the pair. It is unbiased for every f as long as Q_n(a, b) > 0 for all
    a != b; where a = b the pair says nothing of that latent. A code breaks a stick, the least
    probable category first, and each break of a pair's two sticks shares an antithetic uniform.
    In this order every break but the last two takes at most a third of what is left, so that w
    stays below 2 without clipping. At K = 2, DisARM itself. Two evaluations of f; no temperature.

    Dong, Mnih & Tucker (2020), https://arxiv.org/abs/2006.10680;
    Dong, Mnih & Tucker (2021), https://arxiv.org/abs/2106.08056, for the stick.
    """

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        with torch.no_grad():
            z, weight = antithetic_pair(logits)  # (2, B, N, K), (B, N)
        loss = f(z)  # (2, B)
        difference = (loss[0] - loss[1]).detach()  # (B,)
        log_q = (z * logits.log_softmax(-1)).sum(-1)  # (2, B, N)
        score = (weight * (log_q[0] - log_q[1])).sum(-1) / 2
        return loss.mean(0) + gradient_of(difference * score)


def antithetic_pair(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (2, B, N, K), each with the law of Cat(logits), and the weights (B, N) of their pairs.

    A pair's weight is q(a) q(b) / Q(a, b); 0 where a = b.
    """
    log_p, order = logits.log_softmax(-1).sort(-1)  # ascending
    rest = log_p.flip(-1).logcumsumexp(-1).flip(-1)  # log of what is left of the stick
    h = (log_p - rest).exp()  # (B, N, K); the share that each break takes, 1 at the last
    h = torch.cat([h[..., :-1].clamp_max(0.5), torch.ones_like(h[..., :1])], -1)
    u = fine_uniform(h.shape, h.device)
    breaks = torch.stack([u < h, 1 - u <= h])  # (2, B, N, K)
    breaks[..., -1] = True
    first = breaks.to(torch.uint8).argmax(-1)  # (2, B, N): the first break is the code
    a, b = first.amin(0), first.amax(0)
    # Before a, neither stick breaks: (1 - h)^2 / (1 - 2 h) for each; at a, one does: 1 - h.
    # From a on, the later stick is on its own, and its factors are the same in both laws.
    both = (1 - h).square() / (1 - 2 * h).clamp_min(torch.finfo(h.dtype).tiny)
    position = torch.arange(h.shape[-1], device=h.device)
    before = torch.where(position < a.unsqueeze(-1), both, torch.ones_like(both)).prod(-1)
    weight = before * (1 - h.gather(-1, a.unsqueeze(-1)).squeeze(-1))
    z = one_hot(order.gather(-1, first.movedim(0, -1)).movedim(-1, 0), h.shape[-1]).to(h.dtype)
    return z, torch.where(a == b, torch.zeros_like(weight), weight)
