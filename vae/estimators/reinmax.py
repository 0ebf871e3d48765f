"""The second-order member of the straight-through family."""

from torch import Tensor

from ..schedules import AtLeastOneSchedule, Value
from ..validation import Count, validated
from .base import Surrogate


class ReinMax(Surrogate):
    """Heun's rule where straight-through has Euler's: 2 J(m) g - J(p) g / 2 for the gradient.

    J(q) = diag(q) - q q^T, p = softmax(logits), m = (z + softmax(logits / tau)) / 2. Exact in
    expectation at tau = 1 when f is quadratic in each z_n, and of second order otherwise; at any
    other tau biased even for linear f. At tau = 1 it is the ZGR estimator of Shekhovtsov (2023).
    The value is an unbiased estimate of L. One evaluation of f per sample.

    Liu et al. (2023), https://arxiv.org/abs/2304.08612, Algorithm 2; tau is at least 1 there.
    """

    @validated
    def __init__(self, temperature: AtLeastOneSchedule, samples: Count = 1) -> None:
        super().__init__(temperature, samples)

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        p = logits.softmax(-1)
        m = (z + (logits / temperature).softmax(-1)) / 2
        m = (logits + (m.log() - logits).detach()).softmax(-1)  # the same value; its Jacobian J(m)
        return 2 * m - p / 2
