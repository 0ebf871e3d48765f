"""No sample at all."""

from torch import Tensor

from ..schedules import PositiveSchedule, Step
from ..validation import validated
from .base import Pathwise


class Softmax(Pathwise):
    """softmax(logits / tau): the deterministic differentiable stand-in for argmax, without noise.

    A continuous auto-encoder. Its value estimates neither L nor a bound, and nothing keeps the
    decoder able to read one-hot codes: expect a large gap between the training objective and the
    evaluated bounds. A baseline for what sampling brings. One evaluation of f; no noise.
    """

    @validated
    def __init__(self, temperature: PositiveSchedule) -> None:
        super().__init__()
        self.temperature = temperature

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        """(B, N, K) logits -> (1, B, N, K), inside the simplex."""
        return (logits / self.temperature(step)).softmax(-1).unsqueeze(0)
