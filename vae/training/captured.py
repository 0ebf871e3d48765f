"""A training step that is recorded once as a CUDA graph and then replayed.

It is experimental: it has not run on a GPU yet.
"""

import torch

from vae.data import Batches
from vae.training.stacked import StackedObjectives
from vae.training.step import Optimize
from vae.utils.errors import UserError

_WARM_UP_STEPS = 3  # before the recording: kernels are chosen and workspaces are allocated


class CapturedStep:
    """Takes training steps by replaying a CUDA graph, after a few eager steps.

    Everything that changes from step to step (the batch, the learning rates, the temperatures) is
    computed from two counters on the device, so that no step waits for the host. The whole step,
    from the choice of the images to the sums, is recorded once. A step can neither be checked for
    finite values nor be skipped, because that would wait for the device.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, optimize: Optimize, replicas: StackedObjectives, batches: Batches) -> None:
        """Take what a step does, what it trains, and on which batches; see EagerStep."""
        self._optimize, self._replicas, self._batches = optimize, replicas, batches
        replicas.move_learning_rates_to_device()
        device = replicas.sums.device
        self._batch_index, self._step = torch.zeros(2, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm_up_steps = 0

    def __call__(self, batch_index: int, step: int) -> list[int]:
        """Train on a batch of the epoch at a global step; no replica ever skips it.

        Raises:
            UserError: The step cannot be recorded.
        """
        self.set_counters(batch_index, step)
        if self._warm_up_steps < _WARM_UP_STEPS:
            self._warm_up_steps += 1
            side_stream, stream = torch.cuda.Stream(), torch.cuda.current_stream()
            side_stream.wait_stream(stream)
            with torch.cuda.stream(side_stream):
                self.run_from_counters()
            stream.wait_stream(side_stream)
        else:
            if self._graph is None:
                self._graph = self._record()
            self._graph.replay()
        return []

    def set_counters(self, batch_index: int, step: int) -> None:
        """Write the counters on the device. Nothing waits for that."""
        self._batch_index.fill_(batch_index)
        self._step.fill_(step)

    def run_from_counters(self) -> None:
        """Run the operations of the step at the counters on the device."""
        self._optimize(self._replicas, self._batches, self._batch_index, self._step)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if self._batches.redraw:  # the graph draws pixels; torch >= 2.13 registers by itself
            for generator in self._batches.generators:
                graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph):  # records, and runs nothing
                self.run_from_counters()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # for example, an estimator that waits for the device
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            raise UserError(
                f"the step cannot be recorded as a CUDA graph ({reason}); set training.capture=off"
            ) from error
        return graph
