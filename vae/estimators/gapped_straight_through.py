"""Straight-through Gumbel's gap between winner and losers, without the noise."""

from typing import Literal

import torch
from torch import Tensor

from ..schedules import PositiveSchedule, Value
from ..validation import Count, Positive, validated
from .base import Surrogate


class GappedStraightThrough(Surrogate):
    """The gradient of softmax((logits + m) / tau), m the least change that makes z win by a gap.

    m raises the sampled logit to the largest, and lowers the others to `gap` below it where they
    are higher; it is held constant. "probability" sets the gap to -log(1 - p_x) / p_x, p_x the
    probability of the sampled category. Deterministic given the sample. Biased. The value is an
    unbiased estimate of L. One evaluation of f per sample.

    Fan et al. (2022), https://arxiv.org/abs/2206.07235.
    """

    @validated
    def __init__(
        self,
        temperature: PositiveSchedule,
        gap: Positive | Literal["probability"],
        samples: Count = 1,
    ) -> None:
        super().__init__(temperature, samples)
        self.gap = gap

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        with torch.no_grad():
            largest = logits.amax(-1, keepdim=True)
            gap = self.gap
            if gap == "probability":
                p = (z * logits.softmax(-1)).sum(-1, keepdim=True)
                p = p * (1 - 1e-5)  # the authors' guard: the gap is infinite at p = 1
                gap = -torch.log1p(-p) / p.clamp_min(torch.finfo(p.dtype).tiny)
            raised = z * (largest - logits)
            lowered = (1 - z) * (logits - largest + gap).relu()
        return ((logits + raised - lowered) / temperature).softmax(-1)
