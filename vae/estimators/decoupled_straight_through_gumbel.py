"""Straight-through Gumbel with a temperature for each direction."""

from torch import Tensor

from ..categorical import gradient_of, gumbel_noise, one_hot_argmax
from ..schedules import PositiveSchedule, Step
from ..validation import Count, validated
from .base import Pathwise


class DecoupledStraightThroughGumbel(Pathwise):
    """One-hot argmax(theta / tau_f + G) forward, softmax(theta / tau_b + G) backward.

    The codes follow softmax(theta / tau_f), so this is what q is: `logits` are theta / tau_f, and
    whatever else is computed from them (the KL, every bound) is that of the codes that are drawn.
    The backward pass sees theta / tau_b = logits * tau_f / tau_b. At equal temperatures it is
    straight-through Gumbel at temperature 1. The value is an unbiased estimate of L; the gradient
    is biased. One evaluation of f per sample.

    Shah et al. (2024), https://arxiv.org/abs/2410.13331; there the encoder gives theta.
    """

    @validated
    def __init__(
        self,
        forward_temperature: PositiveSchedule,
        backward_temperature: PositiveSchedule,
        samples: Count = 1,
    ) -> None:
        super().__init__()
        self.forward_temperature = forward_temperature
        self.backward_temperature = backward_temperature
        self.samples = samples

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        noise = gumbel_noise(logits, self.samples)  # (S, B, N, K)
        ratio = self.forward_temperature(step) / self.backward_temperature(step)
        relaxed = (logits * ratio + noise).softmax(-1)
        return one_hot_argmax(logits.detach() + noise) + gradient_of(relaxed)
