"""Straight-through on a sample."""

from torch import Tensor

from ..schedules import Value
from .base import Surrogate


class StraightThrough(Surrogate):
    """The gradient of softmax(logits / tau) in place of the sample's.

    Exact in expectation at tau = 1 when f is linear in each z_n; of first order otherwise, and
    biased even for linear f at any other tau. The value is an unbiased estimate of L. One
    evaluation of f per sample.

    Bengio, Leonard & Courville (2013), https://arxiv.org/abs/1308.3432, with the
    softmax's Jacobian in place of the identity.
    """

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        return (logits / temperature).softmax(-1)
