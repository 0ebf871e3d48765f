"""A training step that is recorded once as a CUDA graph and then replayed.

docs/performance.md says on which GPUs it has run.
"""

import logging

import torch

from vae.data import Batches
from vae.training.stacked import StackedObjectives
from vae.training.step import DeviceStep, Optimize

log = logging.getLogger(__name__)

_WARM_UP_STEPS = 3  # before the recording: kernels are chosen and workspaces are allocated


class CapturedStep(DeviceStep):
    """Takes training steps by replaying a CUDA graph, after a few eager steps.

    The whole step, from the choice of the images to the sums, is recorded once. A step can neither
    be checked for finite values nor be skipped, because that would wait for the device. If the
    step cannot be recorded, a warning is logged, and each operation is run by itself.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, optimize: Optimize, replicas: StackedObjectives, batches: Batches) -> None:
        """Take what a step does, what it trains, and on which batches; see EagerStep."""
        super().__init__(optimize, replicas, batches)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm_up_steps = 0
        self._can_be_recorded = True

    def __call__(self, batch_index: int, step: int) -> list[int]:
        """Train on a batch of the epoch at a global step; no replica ever skips it."""
        self.set_counters(batch_index, step)
        if self._warm_up_steps < _WARM_UP_STEPS:
            self._warm_up_steps += 1
            side_stream, stream = torch.cuda.Stream(), torch.cuda.current_stream()
            side_stream.wait_stream(stream)
            with torch.cuda.stream(side_stream):
                self.run_from_counters()
            stream.wait_stream(side_stream)
            return []
        if self._graph is None and self._can_be_recorded:
            self._graph = self._record()
            self._can_be_recorded = self._graph is not None
        if self._graph is None:
            return self.run_from_counters()
        self._graph.replay()
        return []

    def _record(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        if self._batches.redraw:  # the graph draws pixels; torch >= 2.13 registers by itself
            for generator in self._batches.generators:
                graph.register_generator_state(generator)
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):  # records, and runs nothing
                self.run_from_counters()
        except RuntimeError as error:  # for example, an estimator that waits for the device
            torch.cuda.set_stream(stream)  # torch 2.11 leaves the stream of the recording current
            self._reset_generators()
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            log.warning("training is slower, because a step cannot be recorded: %s", reason)
            return None
        return graph

    def _reset_generators(self) -> None:
        """Let the random generators draw again, which a failed recording leaves in its mode."""
        device = self._replicas.sums.device
        for generator in (torch.cuda.default_generators[device.index], *self._batches.generators):
            generator.graphsafe_set_state(generator.clone_state())
