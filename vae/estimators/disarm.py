"""DisARM for categoricals: the score function at an antithetic pair of codes."""

import torch
from torch import Tensor

from vae.categorical import fine_uniform, gradient_of, one_hot
from vae.estimators.base import CodeFunction, Estimator
from vae.schedules import Step


class Disarm(Estimator):
    """Compare f at two antithetic codes, and weight each latent to undo their coupling.

    Both codes z and z' follow q. If the categories of latent n are a in z and b in z', the
    gradient in the logits of that latent is

        (f(z) - f(z')) w (grad log q_n(a) - grad log q_n(b)) / 2,    w = q_n(a) q_n(b) / Q_n(a, b),

    with Q_n the joint distribution of the pair (a, b). A latent with a = b contributes nothing.

    Bias: none for every f, because Q_n(a, b) > 0 for all a != b.
    Value: an unbiased estimate of L.
    Cost: two evaluations of f; no temperature.
    Reference: Dong, Mnih & Tucker (2020), https://arxiv.org/abs/2006.10680, for K = 2, where this
        is DisARM itself; Dong, Mnih & Tucker (2021), https://arxiv.org/abs/2106.08056, for the
        stick breaking of `antithetic_pair`.
    """

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        with torch.no_grad():
            z, weight = antithetic_pair(logits)  # (2, B, N, K), (B, N)
        loss = f(z)  # (2, B)
        difference = (loss[0] - loss[1]).detach()  # (B,)
        log_q = (z * logits.log_softmax(-1)).sum(-1)  # (2, B, N)
        score = (weight * (log_q[0] - log_q[1])).sum(-1) / 2
        return loss.mean(0) + gradient_of(difference * score)


def antithetic_pair(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Draw two coupled codes that both follow Cat(logits), and the weights of their latents.

    Both codes are drawn by stick breaking, least probable category first. Each break draws a new
    uniform number u, and uses u for one code and 1 - u for the other. In this order every break
    but the last two takes at most a third of the rest of the stick, so that the weights stay below
    2 without clipping. (The clamps in the code only catch rounding.)

    Args:
        logits: (B, N, K).

    Returns:
        Codes (2, B, N, K), and the weights q(a) q(b) / Q(a, b), (B, N), with 0 for a = b.
    """
    log_p, order = logits.log_softmax(-1).sort(-1)  # ascending
    rest = log_p.flip(-1).logcumsumexp(-1).flip(-1)  # log of the length of the rest of the stick
    h = (log_p - rest).exp()  # (B, N, K): the share of the rest that each break takes
    h = torch.cat([h[..., :-1].clamp_max(0.5), torch.ones_like(h[..., :1])], -1)
    u = fine_uniform(h.shape, h.device)
    breaks = torch.stack([u < h, 1 - u <= h])  # (2, B, N, K), true at the end, where h = 1
    first = breaks.to(torch.uint8).argmax(-1)  # (2, B, N): the first break is the code
    earlier, later = first.amin(0), first.amax(0)
    # The factors of q(a) q(b) / Q(a, b): each position at which neither stick breaks contributes
    # (1 - h)^2 / (1 - 2 h), and the position at which the first stick breaks contributes 1 - h.
    # Afterwards only one stick is left, whose factors in q(b) and Q(a, b) are the same.
    both = (1 - h).square() / (1 - 2 * h).clamp_min(torch.finfo(h.dtype).tiny)
    position = torch.arange(h.shape[-1], device=h.device)
    before = torch.where(position < earlier.unsqueeze(-1), both, torch.ones_like(both)).prod(-1)
    weight = before * (1 - h.gather(-1, earlier.unsqueeze(-1)).squeeze(-1))
    z = one_hot(order.gather(-1, first.movedim(0, -1)).movedim(-1, 0), h.shape[-1]).to(h.dtype)
    return z, torch.where(earlier == later, torch.zeros_like(weight), weight)
