"""ReinMax, the second-order straight-through estimator."""

from torch import Tensor

from vae.estimators.base import Surrogate
from vae.schedules import AtLeastOneSchedule, Value
from vae.utils.validation import Count, validated


class ReinMax(Surrogate):
    """Improve straight-through to second order.

    Straight-through approximates the change of f between two codes by its slope at one end, as
    Euler's rule does. ReinMax uses the slopes at both ends, as Heun's rule does.

    Gradient in the logits: 2 J(m) g - J(p) g / 2 with m = (z + softmax(logits / tau)) / 2.

    Bias: none at tau = 1 if f is quadratic in each z_n, which is why the method is called second
        order. At any other tau there is a bias even for linear f.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample.
    Reference: Liu et al. (2023), https://arxiv.org/abs/2304.08612, Algorithm 2. At tau = 1
        it is the ZGR estimator of Shekhovtsov (2023).

    Args:
        temperature: tau, a number or a schedule, at least 1 as in the paper.
        samples: S, the number of codes drawn for each image.
    """

    @validated
    def __init__(self, temperature: AtLeastOneSchedule, samples: Count = 1) -> None:
        super().__init__(temperature, samples)

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        return reinmax_surrogate(z, logits, temperature)


def reinmax_surrogate(z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
    """Return a tensor with the gradient of `ReinMax` in the logits; its value is not used.

    Args:
        z: One-hot samples (S, B, N, K).
        logits: (B, N, K).
        temperature: tau.

    Returns:
        A tensor (S, B, N, K).
    """
    p = logits.softmax(-1)
    m = (z + (logits / temperature).softmax(-1)) / 2
    # Written as the softmax of logits + constant, m keeps its value and has the Jacobian J(m).
    m = (logits + (m.log() - logits).detach()).softmax(-1)
    return 2 * m - p / 2
