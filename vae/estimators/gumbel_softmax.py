"""Gumbel-softmax: the relaxed sample, and the one-hot sample that uses its gradient."""

from torch import Tensor

from vae.categorical import gradient_of, gumbel_noise, one_hot_argmax
from vae.estimators.base import Pathwise
from vae.schedules import PositiveSchedule, Step
from vae.utils.validation import Count, validated


class _GumbelPerturbed(Pathwise):
    """Add Gumbel noise to the logits, which is where both estimators of this file begin."""

    @validated
    def __init__(self, temperature: PositiveSchedule, samples: Count = 1) -> None:
        super().__init__()
        self.temperature = temperature
        self.samples = samples

    def perturb(self, logits: Tensor) -> Tensor:
        """Return logits + G, with fresh noise: (B, N, K) -> (S, B, N, K)."""
        return logits + gumbel_noise(logits, self.samples)


class GumbelSoftmax(_GumbelPerturbed):
    """Evaluate f at the relaxed sample softmax((logits + G) / tau), and differentiate through it.

    The samples are dense: points inside the simplex, which tend to one-hot codes as tau falls.

    Bias: the gradient is unbiased for the relaxed objective, which is not L. The objective tends
        to L as tau falls to 0, while the variance of the gradient grows.
    Value: an unbiased estimate of the relaxed objective, which is not a bound.
    Cost: one evaluation of f per sample.
    Reference: Jang, Gu & Poole (2017), https://arxiv.org/abs/1611.01144, equation 2;
        Maddison, Mnih & Teh (2017), https://arxiv.org/abs/1611.00712.

    Args:
        temperature: tau, a number or a schedule, greater than 0.
        samples: S, the number of points drawn for each image.
    """

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        return self._scores(logits, step).softmax(-1)

    def log_sample(self, logits: Tensor, step: Step) -> Tensor:
        """Return the logarithm of a `sample`; no coordinate underflows: -> (S, B, N, K)."""
        return self._scores(logits, step).log_softmax(-1)

    def _scores(self, logits: Tensor, step: Step) -> Tensor:
        return self.perturb(logits) / self.temperature(step)


class StraightThroughGumbel(_GumbelPerturbed):
    """Draw one-hot argmax(logits + G), with the gradient of softmax((logits + G) / tau).

    Bias: yes. The variance of the gradient grows as tau falls.
    Value: an unbiased estimate of L, because argmax(logits + G) is an exact sample at every tau.
    Cost: one evaluation of f per sample.
    Reference: Jang, Gu & Poole (2017), https://arxiv.org/abs/1611.01144, section 2.2.

    Args:
        temperature: tau, a number or a schedule, greater than 0.
        samples: S, the number of codes drawn for each image.
    """

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        perturbed = self.perturb(logits)
        relaxed = (perturbed / self.temperature(step)).softmax(-1)
        return one_hot_argmax(perturbed.detach()) + gradient_of(relaxed)
