"""Gumbel estimators, averaged over the noise that leaves the sample as it is."""

import torch
from torch import Tensor

from ..categorical import conditional_gumbel
from ..schedules import PositiveSchedule, Value
from ..validation import Count, validated
from .base import Surrogate, linear_surrogate

_DRAWS = 10  # of the noise, at a time


def rao_blackwell_jacobian(
    logits: Tensor, z: Tensor, temperature: Value, inner_samples: int
) -> Tensor:
    """Mean Jacobian of softmax(. / tau) at perturbed logits whose argmax is z: (S, B, N, K, K).

    The mean is over `inner_samples` draws of the noise, a few at a time: memory does not grow with
    them. No gradient passes.
    """
    with torch.no_grad():
        mean = square = 0
        for done in range(0, inner_samples, _DRAWS):
            draws = min(_DRAWS, inner_samples - done)
            perturbed = conditional_gumbel(logits, z.expand(draws, *z.shape))
            s = (perturbed / temperature).softmax(-1)  # (draws, S, B, N, K)
            mean = mean + s.sum(0)
            square = square + s.movedim(0, -1) @ s.movedim(0, -2)
        return (torch.diag_embed(mean) - square) / (inner_samples * temperature)


class RaoBlackwellized(Surrogate):
    """A surrogate averaged over `inner_samples` draws of the noise for each sample."""

    @validated
    def __init__(
        self, temperature: PositiveSchedule, inner_samples: Count, samples: Count = 1
    ) -> None:
        super().__init__(temperature, samples)
        self.inner_samples = inner_samples


class GumbelRao(RaoBlackwellized):
    """Straight-through Gumbel, its gradient averaged over the noise given the sample.

    The same bias as straight-through Gumbel's and never more variance; with one inner sample it is
    straight-through Gumbel, and as tau falls to 0 it tends to ReinMax at tau = 1. The value is an
    unbiased estimate of L. One evaluation of f per sample; an inner sample costs K products for
    each category.

    Paulus, Maddison & Krause (2021), https://arxiv.org/abs/2010.04838.
    """

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        jacobian = rao_blackwell_jacobian(logits, z, temperature, self.inner_samples)
        return linear_surrogate(jacobian, logits)


class ReinMaxRao(RaoBlackwellized):
    """ReinMax, with Gumbel-Rao's Jacobian at m = (z + p) / 2 in place of softmax's.

    2 J_GR(log m) g - J(p) g / 2. Biased. The value is an unbiased estimate of L. One evaluation of
    f per sample.

    Beyond ReinMax (2026), https://arxiv.org/abs/2603.08257.
    """

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        p = logits.softmax(-1)
        m = ((z + p) / 2).log()
        jacobian = rao_blackwell_jacobian(m, z, temperature, self.inner_samples)
        return 2 * linear_surrogate(jacobian, logits) - p / 2
