"""Straight-through on the argmax: the oldest trick, kept as a baseline."""

import torch
from torch import Tensor

from ..categorical import one_hot_argmax
from ..schedules import Step
from .base import Pathwise


class _ArgmaxIdentity(torch.autograd.Function):
    """one_hot(argmax) forward, the identity backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        return one_hot_argmax(logits)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class StraightThroughArgmax(Pathwise):
    """One-hot argmax(logits) forward; the gradient passes to the logits unchanged.

    What is wrong with it: the code is the mode of q and no sample of it, so the value is not an
    estimate of L and "distortion + KL" is not a bound (`elbo_map` in evaluation is the bound that
    fits). The identity is the Jacobian of nothing: the gradient does not sum to zero over the
    categories, so that the logits drift along the direction that softmax ignores, and the size of
    a step does not fall as q becomes certain. Deterministic; one evaluation of f; no temperature.

    Bengio, Leonard & Courville (2013), https://arxiv.org/abs/1308.3432.
    """

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        """(B, N, K) logits -> (1, B, N, K), the mode with the identity for its gradient."""
        return _ArgmaxIdentity.apply(logits).unsqueeze(0)
