"""Straight-through Gumbel with one temperature for each direction."""

from torch import Tensor

from vae.categorical import gradient_of, gumbel_noise, one_hot_argmax
from vae.estimators.base import Pathwise
from vae.schedules import PositiveSchedule, Step
from vae.utils.validation import Count, validated


class DecoupledStraightThroughGumbel(Pathwise):
    """Draw one-hot argmax(theta / tau_f + G), with the gradient of softmax(theta / tau_b + G).

    The codes follow softmax(theta / tau_f), and q is the distribution of the codes. Therefore
    `logits` are theta / tau_f, and the KL and every bound that is computed from them belong to the
    codes that are drawn. The backward pass sees theta / tau_b = logits * tau_f / tau_b.

    Bias: yes. At equal temperatures it is straight-through Gumbel at temperature 1.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample.
    Reference: Shah et al. (2024), https://arxiv.org/abs/2410.13331, where the encoder returns
        theta.

    Args:
        forward_temperature: tau_f, a number or a schedule, greater than 0.
        backward_temperature: tau_b, a number or a schedule, greater than 0.
        samples: S, the number of codes drawn for each image.
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
