"""Straight-through on the argmax, the oldest method, kept as a baseline."""

from torch import Tensor

from vae.categorical import gradient_of, one_hot_argmax
from vae.estimators.base import Pathwise
from vae.schedules import Step


class StraightThroughArgmax(Pathwise):
    """Evaluate f at the one-hot argmax of the logits, and pass the gradient on unchanged.

    Gradient in the logits: g. There is no noise and no temperature.

    Bias: yes. g is taken at the mode of q and not at samples. And the identity is not the Jacobian
        of a softmax: the gradient does not sum to zero over the categories, so the logits drift
        in the direction that softmax ignores, and it does not shrink as q becomes certain.
    Value: no estimate of L. The code is the mode of q and not a sample, so "distortion + KL" is
        not a bound; the bound that fits such an encoder is `elbo_map` in vae.evaluation.
    Cost: one evaluation of f.
    Reference: Bengio, Leonard & Courville (2013), https://arxiv.org/abs/1308.3432.
    """

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        """Return the mode of q, one-hot: (B, N, K) logits -> (1, B, N, K)."""
        return (one_hot_argmax(logits) + gradient_of(logits)).unsqueeze(0)
