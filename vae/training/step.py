"""A training step that runs eagerly, operation by operation."""

from collections.abc import Callable, Sequence

import torch

from vae.data import Batches
from vae.objective import TrainingObjective
from vae.optimizers import OptimizerConfig
from vae.training.stacked import FiniteCheck, StackedObjectives

Optimize = Callable[..., list[int]]
"""`vae.training.loop.optimize`: what a step does. The step classes say how it is run."""


class EagerStep:
    """Takes a training step by running each of its operations when it is called.

    Attributes:
        replicas: The replicas that are trained.
    """

    def __init__(
        self,
        optimize: Optimize,
        objectives: Sequence[TrainingObjective],
        optimizers: Sequence[OptimizerConfig],
        batches: Batches,
        clip: float | None = None,
        precision: torch.dtype | None = None,
        finite_check: FiniteCheck | None = None,
    ) -> None:
        """Stack the objectives and build their optimizers; see StackedObjectives.

        Args:
            optimize: What a step does: `vae.training.loop.optimize`.
            objectives: The objectives of the replicas.
            optimizers: The settings of their optimizers.
            batches: The batches that they are trained on.
            clip: The largest norm of the gradient; None for no clipping.
            precision: The autocast dtype of the networks; None for float32.
            finite_check: With "loss", skip the update of a replica whose loss is not finite. With
                "gradient", skip it also if the gradient is not finite. A check forces a device
                synchronisation at every step.
        """
        self.replicas = StackedObjectives(objectives, optimizers, clip, precision)
        self._optimize, self._batches, self._finite_check = optimize, batches, finite_check

    def __call__(self, batch_index: int, step: int) -> list[int]:
        """Train on a batch of the epoch at a global step; return the replicas that skipped it."""
        return self._optimize(self.replicas, self._batches, batch_index, step, self._finite_check)
