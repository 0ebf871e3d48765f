"""A training step that runs eagerly, operation by operation."""

from collections.abc import Callable

from vae.data import Batches
from vae.training.stacked import FiniteCheck, StackedObjectives

Optimize = Callable[..., list[int]]
"""`vae.training.loop.optimize`: what a step does. The step classes say how it is run."""


class EagerStep:
    """Takes a training step by running each of its operations when it is called."""

    def __init__(
        self,
        optimize: Optimize,
        replicas: StackedObjectives,
        batches: Batches,
        finite_check: FiniteCheck | None = None,
    ) -> None:
        """Take what a step does, what it trains, and on which batches.

        Args:
            optimize: What a step does: `vae.training.loop.optimize`.
            replicas: The replicas to train.
            batches: The batches that they are trained on.
            finite_check: With "loss", skip the update of a replica whose loss is not finite. With
                "gradient", skip it also if the gradient is not finite. A check forces a device
                synchronisation at every step.
        """
        self._optimize, self._replicas, self._batches = optimize, replicas, batches
        self._finite_check = finite_check

    def __call__(self, batch_index: int, step: int) -> list[int]:
        """Train on a batch of the epoch at a global step; return the replicas that skipped it."""
        return self._optimize(self._replicas, self._batches, batch_index, step, self._finite_check)
