"""The expectation itself."""

import torch
from torch import Tensor

from ..categorical import codes, gradient_of, log_prob
from ..schedules import Step
from ..validation import Count, validated
from .base import Estimator, Objective


class Exact(Estimator):
    """sum_z q(z) f(z) over all K**N codes: no bias, no variance.

    What every other estimator is measured against. f is called once, with the codes as samples
    and a batch axis of size 1, so a decoder decodes each code once for the whole batch. Refused
    where there are more than `limit` codes.

    On a CPU, codes that are next to impossible for every image are left out: at most eps / K**N
    each, eps of an image's mass together, eps the rounding error of the logits' dtype. The
    gradient in the logits is that of f less its mean: the same, and as little is missing.
    """

    @validated
    def __init__(self, limit: Count) -> None:
        super().__init__()
        self.limit = limit

    def check(self, latents: int, categories: int) -> None:
        if categories**latents > self.limit:
            raise ValueError(
                f"Exact enumerates all categories**latents codes, and {categories}**{latents} is "
                f"more than its limit of {self.limit}"
            )

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        self.check(*logits.shape[-2:])
        z = codes(*logits.shape[-2:], device=logits.device).to(logits.dtype).unsqueeze(1)
        q = log_prob(logits, z).exp()  # (K**N, B)
        kept = _that_count(q.detach())
        q, loss = q[kept], f(z[kept])  # (S, B)
        value = (q * loss).sum(0)
        return value - gradient_of(q.sum(0) * value.detach())


def _that_count(q: Tensor) -> Tensor | slice:
    """Which of the codes are no rounding error for some image: (K**N, B) -> (S,), or all of them.

    All where how many there are cannot be asked: a device would have to be waited for, and vmap
    has an answer for each replica.
    """
    if not q.is_cpu:
        return slice(None)
    negligible = q.amax(1) <= torch.finfo(q.dtype).eps / len(q)  # false where q is no number
    try:
        return negligible.logical_not().nonzero().squeeze(1)
    except RuntimeError:  # vmap's: a shape that depends on the values
        return slice(None)
