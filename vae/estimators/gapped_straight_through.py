"""Gapped straight-through: the gap of a Gumbel-softmax sample without its noise."""

from typing import Literal

import torch
from torch import Tensor

from vae.estimators.base import Surrogate
from vae.schedules import PositiveSchedule, Value
from vae.utils.validation import Count, Positive, validated


class GappedStraightThrough(Surrogate):
    """Draw z, move the logits until z wins by a gap, and use the gradient of their softmax.

    Gradient in the logits: the gradient of softmax((logits + m) / tau) at constant m. The change m
    raises the sampled logit to the largest one, and lowers every other logit to `gap` below the
    largest if it is higher than that. No noise is drawn besides z.

    Bias: yes.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample.
    Reference: Fan et al. (2022), https://arxiv.org/abs/2206.07235.

    Args:
        temperature: tau, a number or a schedule, greater than 0.
        gap: The gap, or "probability" for -log(1 - p_x) / p_x, with p_x the probability of the
            sampled category.
        samples: S, the number of codes drawn for each image.
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
            gap: float | Tensor
            if self.gap == "probability":
                p = (z * logits.softmax(-1)).sum(-1, keepdim=True)
                p = p * (1 - 1e-5)  # the authors' guard: the gap is infinite at p = 1
                gap = -torch.log1p(-p) / p.clamp_min(torch.finfo(p.dtype).tiny)
            else:
                gap = self.gap
            raised = z * (largest - logits)
            lowered = (1 - z) * (logits - largest + gap).relu()
        return ((logits + raised - lowered) / temperature).softmax(-1)
