"""Training steps that run eagerly, operation by operation."""

from collections.abc import Callable

import torch

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


class DeviceStep(EagerStep):
    """Takes a training step whose counters and learning rates are tensors on the device.

    Everything that changes from step to step (the batch, the learning rates, the temperatures) is
    computed on the device, so that no step waits for the host. A `CapturedStep` records these
    operations. On CUDA, a run that is captured therefore equals a run that is not.
    """

    def __init__(
        self,
        optimize: Optimize,
        replicas: StackedObjectives,
        batches: Batches,
        finite_check: FiniteCheck | None = None,
    ) -> None:
        """Take what a step does, what it trains, and on which batches; see EagerStep."""
        super().__init__(optimize, replicas, batches, finite_check)
        replicas.move_learning_rates_to_device()
        device = replicas.sums.device
        self._batch_index, self._step = torch.zeros(2, dtype=torch.long, device=device)

    def __call__(self, batch_index: int, step: int) -> list[int]:
        """Train on a batch of the epoch at a global step; return the replicas that skipped it."""
        self.set_counters(batch_index, step)
        return self.run_from_counters()

    def set_counters(self, batch_index: int, step: int) -> None:
        """Write the counters on the device. Nothing waits for that."""
        self._batch_index.fill_(batch_index)
        self._step.fill_(step)

    def run_from_counters(self) -> list[int]:
        """Run the operations of the step at the counters on the device."""
        return self._optimize(
            self._replicas, self._batches, self._batch_index, self._step, self._finite_check
        )
