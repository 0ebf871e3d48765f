"""Straight-through on a sample."""

from torch import Tensor

from vae.estimators.base import Surrogate
from vae.schedules import Value


class StraightThrough(Surrogate):
    """Draw z from q, and use the gradient of softmax(logits / tau) as the gradient of z.

    Gradient in the logits: J(p_tau) g / tau with p_tau = softmax(logits / tau).

    Bias: none at tau = 1 if f is linear in each z_n, so the method is of first order. At any other
        tau there is a bias even for linear f.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample.
    Reference: Bengio, Leonard & Courville (2013), https://arxiv.org/abs/1308.3432, here with the
        Jacobian of the softmax in place of the identity.
    """

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        return (logits / temperature).softmax(-1)
