"""The relaxed sample, and the hard sample that borrows its gradient."""

from torch import Tensor

from ..categorical import gradient_of, gumbel_noise, one_hot_argmax
from ..schedules import Step
from .base import Tempered


class GumbelSoftmax(Tempered):
    """softmax((logits + G) / tau), G standard Gumbel noise: dense samples, differentiated as such.

    Unbiased for the relaxed objective, which is not L and whose value is no bound; it approaches L
    as tau falls to 0, while the variance of the gradient grows. One evaluation of f per sample.

    Jang, Gu & Poole (2017), https://arxiv.org/abs/1611.01144, equation 2;
    Maddison, Mnih & Teh (2017), https://arxiv.org/abs/1611.00712.
    """

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        return self._scores(logits, step).softmax(-1)

    def log_sample(self, logits: Tensor, step: Step) -> Tensor:
        """The logarithm of `sample`, where no coordinate underflows."""
        return self._scores(logits, step).log_softmax(-1)

    def _scores(self, logits: Tensor, step: Step) -> Tensor:
        perturbed = logits + gumbel_noise(logits, self.samples)  # (S, B, N, K)
        return perturbed / self.temperature(step)


class StraightThroughGumbel(Tempered):
    """One-hot argmax(logits + G) forward, the gradient of softmax((logits + G) / tau) backward.

    The forward value is an exact sample at every tau, so the value is an unbiased estimate of L;
    the gradient is biased, with a variance that grows as tau falls. One evaluation of f per
    sample.

    Jang, Gu & Poole (2017), https://arxiv.org/abs/1611.01144, section 2.2.
    """

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        perturbed = logits + gumbel_noise(logits, self.samples)  # (S, B, N, K)
        relaxed = (perturbed / self.temperature(step)).softmax(-1)
        return one_hot_argmax(perturbed.detach()) + gradient_of(relaxed)
