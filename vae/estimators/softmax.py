"""The softmax of the logits in place of a sample."""

from torch import Tensor

from vae.estimators.base import Pathwise
from vae.schedules import PositiveSchedule, Step
from vae.utils.validation import validated


class Softmax(Pathwise):
    """Evaluate f at softmax(logits / tau), without any noise: a continuous auto-encoder.

    It shows what sampling brings. Nothing teaches the decoder to read one-hot codes, so expect a
    large gap between the training objective and the evaluated bounds.

    Bias: the gradient is exact for f(softmax(logits / tau)), which is not L.
    Value: neither an estimate of L nor a bound.
    Cost: one evaluation of f.

    Args:
        temperature: tau, a number or a schedule, greater than 0.
    """

    @validated
    def __init__(self, temperature: PositiveSchedule) -> None:
        super().__init__()
        self.temperature = temperature

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        """Return points inside the simplex: (B, N, K) logits -> (1, B, N, K)."""
        return (logits / self.temperature(step)).softmax(-1).unsqueeze(0)
