"""Exact enumeration of the codes."""

import torch
from torch import Tensor

from vae.categorical import codes, gradient_of, log_prob
from vae.estimators.base import CodeFunction, Estimator
from vae.schedules import Step
from vae.utils.validation import Count, validated


class Exact(Estimator):
    """Sum q(z) f(z) over all K**N codes; every other estimator is measured against this one.

    Bias: none, and no variance. On a CPU a code is left out if its probability is at most
        eps / K**N for every image, with eps the rounding error of the logits' dtype. Together
        these codes have at most eps of an image's probability.
    Value: L.
    Cost: one call of f with the K**N codes as samples and a batch axis of size 1, so that a
        decoder decodes each code once for the whole batch.

    Args:
        limit: The largest number of codes; with more of them, `check` raises ValueError.
    """

    @validated
    def __init__(self, limit: Count) -> None:
        super().__init__()
        self.limit = limit

    def check(self, latents: int, categories: int) -> None:
        if categories**latents > self.limit:
            raise ValueError(
                f"Exact enumerates all categories**latents codes, and {categories}**{latents} is "
                f"more than its limit of {self.limit}; use fewer latents or categories, "
                "or another estimator"
            )

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        latents, categories = logits.shape[-2:]
        self.check(latents, categories)
        z = codes(latents, categories, logits.device).to(logits.dtype).unsqueeze(1)
        q = log_prob(logits, z).exp()  # (K**N, B)
        kept = _probable_codes(q.detach())
        q, loss = q[kept], f(z[kept])  # (S, B)
        value = (q * loss).sum(0)
        # The gradient in the logits is that of sum q (f - L). It is the same as that of
        # sum q f, and the codes that are left out cost it as little precision as the value.
        return value - gradient_of(q.sum(0) * value.detach())


def _probable_codes(q: Tensor) -> Tensor | slice:
    """Select the codes that are more than a rounding error for some image.

    Args:
        q: Probabilities (K**N, B).

    Returns:
        Indices (S,). Or a slice of all codes, if the number of codes cannot be read without
        synchronising a device, or if it differs between vmapped replicas.
    """
    if not q.is_cpu:
        return slice(None)
    negligible = q.amax(1) <= torch.finfo(q.dtype).eps / len(q)  # NaN is not negligible
    try:
        return negligible.logical_not().nonzero().squeeze(1)
    except RuntimeError:  # vmap refuses shapes that depend on values
        return slice(None)
