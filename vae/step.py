"""One step of training: forward, backward and update, of one run or of replicas."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .data import Batches
from .objective import TrainingObjective
from .optimizers import Optimizer, Stepper
from .replicas import Replicas
from .schedules import Step
from .validation import UserError

_EAGER = 3  # steps before the capture, on a side stream: kernels are chosen, workspaces allocated


class TrainingStep:
    """Takes R objectives, each with an optimizer of its own, one step further at each call.

    With the clock on the device, everything that changes from step to step (batch, learning rate,
    temperatures) is read from there, and nothing waits for the device. Then the whole step, from
    the choice of the images to the sums, can be recorded once as a CUDA graph and played again:
    `capture`. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    sums: Tensor
    """Loss, distortion and rate (R, 3): means over each batch, summed until the caller resets."""

    seen: Tensor
    """The last batch (R, B, D)."""

    def __init__(
        self,
        objectives: Sequence[TrainingObjective],
        optimizers: Sequence[Optimizer],
        batches: Batches,
        clip: float | None = None,
        precision: torch.dtype | None = None,
        look: Literal["loss", "gradient"] | None = None,
        clock: Literal["host", "device"] = "host",
        capture: bool = False,
    ) -> None:
        """`look` leaves an objective out of a step whose loss, or whose loss or gradient, is no
        number; for that, each step waits for the device.

        Raises ValueError where the objectives are not of one shape, or a step that waits is to be
        captured. A call raises UserError where the step cannot be captured after all.
        """
        if capture and (look or clock == "host"):
            raise ValueError("a step that waits for the device, or for the host, is not captured")
        self._replicas, self._optimizers, self._batches = Replicas(objectives), optimizers, batches
        self._clip, self._precision, self._look = clip, precision, look
        self._clock, self._capture = clock, capture
        device = next(objectives[0].parameters()).device
        self.steppers: list[Stepper] = [
            optimizer.build(objective.parameters(), on_device=clock == "device")
            for optimizer, objective in zip(optimizers, objectives, strict=True)
        ]
        self.sums = torch.zeros(len(objectives), 3, device=device)
        self._norms = torch.zeros(len(objectives), device=device)
        self._number, self._step = torch.zeros(2, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0

    def begin(self, number: int, step: int) -> None:
        """The calls that follow take the batches of an epoch from this one on, and steps likewise.

        That is what the clock on the device is set to; from there on it counts by itself.
        """
        self._number.fill_(number)
        self._step.fill_(step)

    def __call__(self, number: int, step: int) -> list[int]:
        """With batch `number` of the epoch, at the global step. Which objectives were left out."""
        if self._clock == "host":
            return self._take(number, step)
        if not self._capture:
            return self._tick()
        if self._taken < _EAGER:
            side, now = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(now)
            with torch.cuda.stream(side):
                self._tick()
            now.wait_stream(side)
            self._taken += 1
            return []
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            if self._batches.redraw and torch.__version__ < (2, 13):  # later, by itself
                for generator in self._batches.generators:
                    self._graph.register_generator_state(generator)
            try:
                with torch.cuda.graph(self._graph):  # records, and runs nothing
                    self._tick()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # an estimator that waits for the device, say
                why, *_ = str(error).splitlines() or [type(error).__name__]
                way_on = "training.capture=off takes this step, which cannot be captured"
                raise UserError(f"{way_on}: {why}") from error
        self._graph.replay()
        return []

    def gradient_norm(self, which: int) -> float:
        """Of an objective's last step, before clipping. Waits for the device."""
        if self._clip is not None:
            return self._norms[which].item()
        return _norm(self._replicas.objectives[which]).item()

    def _tick(self) -> list[int]:
        left_out = self._take(self._number, self._step)
        self._number += 1
        self._step += 1
        return left_out

    def _take(self, number: Step, step: Step) -> list[int]:
        self._set_rates(step)
        self.seen = self._batches.get(number)
        self._replicas.compute_in(self._precision)
        terms = self._replicas(self.seen, step)
        self._replicas.compute_in(None)  # what is measured is measured in float32
        self._replicas.zero_grad()
        terms.loss.backward(torch.full_like(terms.loss, 1 / terms.loss.shape[1]))  # of the means
        self._replicas.share_out_gradients()
        with torch.no_grad():
            means = torch.stack(terms, -1).mean(1)  # (R, 3)
        losses = means[:, 0].tolist() if self._look else [0.0] * len(means)
        left_out = []
        for which, (stepper, loss) in enumerate(zip(self.steppers, losses, strict=True)):
            objective = self._replicas.objectives[which]
            if self._clip is not None:
                self._norms[which] = torch.nn.utils.clip_grad_norm_(
                    objective.parameters(), self._clip
                )
            if math.isfinite(loss) and (self._look != "gradient" or _norm(objective).isfinite()):
                stepper.step()
            else:
                left_out.append(which)
        if left_out:
            means[left_out] = 0
        self.sums += means
        return left_out

    def _set_rates(self, step: Step) -> None:
        for stepper, optimizer in zip(self.steppers, self._optimizers, strict=True):
            for group in stepper.param_groups:
                if self._clock == "device":
                    group["lr"].copy_(optimizer.lr(step))
                else:
                    group["lr"] = optimizer.lr(step)


def _norm(objective: TrainingObjective) -> Tensor:
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
