"""The expectation itself."""

from torch import Tensor

from ..categorical import codes, log_prob
from ..schedules import Step
from ..validation import Count, validated
from .base import Estimator, Objective


class Exact(Estimator):
    """sum_z q(z) f(z) over all K**N codes: no bias, no variance.

    What every other estimator is measured against. f is called once, with the codes as samples
    and a batch axis of size 1, so a decoder decodes each code once for the whole batch. Refused
    where there are more than `limit` codes.
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
        return (log_prob(logits, z).exp() * f(z)).sum(0)  # (K**N, B) -> (B,)
