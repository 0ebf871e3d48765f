"""What a gradient estimator is."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from .. import categorical
from ..schedules import PositiveSchedule, Step, Value
from ..validation import Count, validated

Objective = Callable[[Tensor], Tensor]  # (S, B, N, K) -> (S, B)


class Estimator(nn.Module, ABC):
    """Estimates L = E[f(z)], z ~ Cat(logits), so that it can be differentiated.

    The value of the returned tensor estimates L; its backward pass estimates the gradient of L, in
    the logits and in whatever f closes over. How often f is evaluated, and where, is the
    estimator's business. f treats the leading axis as samples, and broadcasts a batch axis of
    size 1.
    """

    @validated
    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        """(B, N, K) logits, f: (S, B, N, K) -> (S, B), the global step. Returns (B,)."""

    def check(self, latents: int, categories: int) -> None:
        """Raises ValueError where N latents of K categories are more than the estimator can do."""


class Pathwise(Estimator):
    """Evaluates f at samples that carry their own gradient."""

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        return f(self.sample(logits, step)).mean(0)

    @abstractmethod
    def sample(self, logits: Tensor, step: Step) -> Tensor:
        """(B, N, K) logits -> (S, B, N, K) samples with their gradient attached."""


class Tempered(Pathwise):
    """A pathwise estimator with a temperature, owning its schedule, and S samples of noise."""

    @validated
    def __init__(self, temperature: PositiveSchedule, samples: Count = 1) -> None:
        super().__init__()
        self.temperature = temperature
        self.samples = samples


def linear_surrogate(jacobian: Tensor, logits: Tensor) -> Tensor:
    """What has this (..., K, K) Jacobian in the logits; its value means nothing."""
    return (jacobian @ logits.unsqueeze(-1)).squeeze(-1)


class Surrogate(Tempered):
    """Evaluates f at exact one-hot samples, and differentiates a surrogate in their place."""

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        z = categorical.sample(logits, self.samples)  # (S, B, N, K)
        surrogate = self.surrogate(z, logits, self.temperature(step))
        return z + categorical.gradient_of(surrogate)

    @abstractmethod
    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        """(S, B, N, K) samples, (B, N, K) logits -> (S, B, N, K), or broadcasts to it."""
