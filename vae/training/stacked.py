"""Several objectives of one shape as one: a training step of R runs is one vectorised pass."""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from vae.objective import Terms, TrainingObjective
from vae.optimizers import Optimizer, OptimizerConfig
from vae.schedules import Schedule, Step, Value, schedules_of

FiniteCheck = Literal["loss", "gradient"]


class StackedObjectives:
    """R objectives that differ in weights, batches, noise and schedules, and their optimizers.

    Parameters and buffers are stacked, and each objective keeps views of its slices, so changing
    an objective in place changes the stack. All settings other than schedules are those of the
    first objective. The gradient of a replica does not depend on the other replicas. A single
    objective is called without stacking.

    Attributes:
        optimizers: One optimizer per replica.
        sums: Loss, distortion and rate (R, 3), in nats per image: the sums of the batches' means
            since the start of the epoch. The caller sets them to zero.
        images: The last batch (R, B, D).
    """

    images: Tensor

    def __init__(
        self,
        objectives: Sequence[TrainingObjective],
        optimizers: Sequence[OptimizerConfig],
        clip: float | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        """Stack the objectives and build an optimizer for each of them.

        Args:
            objectives: The objectives, on one device.
            optimizers: The settings of their optimizers.
            clip: The largest norm of each replica's gradient; None for no clipping.
            precision: The autocast dtype of the networks in training; None for float32.

        Raises:
            ValueError: The objectives differ in the shapes of their parameters.
        """
        self.objectives = objectives
        self._configs, self._clip, self._precision = optimizers, clip, precision
        self._device = next(objectives[0].parameters()).device
        if len(objectives) == 1:
            self._parameters: dict[str, Tensor] = dict(objectives[0].named_parameters())
        else:
            self._stack()
        self.optimizers: list[Optimizer] = [
            config.build(objective.parameters())
            for config, objective in zip(optimizers, objectives, strict=True)
        ]
        self.sums = torch.zeros(len(objectives), 3, device=self._device)
        self._norms = torch.zeros(len(objectives), device=self._device)

    def __call__(self, images: Tensor, step: Step) -> Terms:
        """Return loss, distortion and rate of each image, (R, B) each, in nats.

        Args:
            images: A batch (R, B, D) in [0, 1].
            step: The global step.
        """
        self.images = images
        alone = len(self.objectives) == 1
        model = (self.objectives[0] if alone else self._template).model
        model.precision = self._precision
        try:
            if alone:
                terms = self.objectives[0](images.squeeze(0), step)
                return Terms(*(term.unsqueeze(0) for term in terms))
            vectorized = vmap(self._call_one, in_dims=(0, 0, 0, None), randomness="different")
            return vectorized(self._parameters, self._buffers, images, step)
        finally:
            model.precision = None  # evaluations of the same model are made in float32

    def set_learning_rates(self, step: Step) -> None:
        """Set each optimizer's learning rate to its schedule's value at the global step."""
        for optimizer, config in zip(self.optimizers, self._configs, strict=True):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].copy_(torch.as_tensor(config.lr(step)))
                else:
                    group["lr"] = config.lr(step)

    def move_learning_rates_to_device(self) -> None:
        """Keep the learning rates in tensors on the device, which a CUDA graph reads."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                # The fused kernels accept only a float32 tensor.
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=self._device)

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def unstack_gradients(self) -> None:
        """Set the gradients of each objective's parameters to views of the stacked gradients."""
        if len(self.objectives) == 1:
            return
        gradients = {name: stacked.grad for name, stacked in self._parameters.items()}
        for index, objective in enumerate(self.objectives):
            for name, parameter in objective.named_parameters():
                stacked = gradients[name]
                parameter.grad = None if stacked is None else stacked[index]

    def clip_gradients(self) -> None:
        """Bound the norm of each replica's gradient, if a bound was given."""
        if self._clip is None:
            return
        for index, objective in enumerate(self.objectives):
            self._norms[index] = nn.utils.clip_grad_norm_(objective.parameters(), self._clip)

    @torch.no_grad()
    def batch_means(self, terms: Terms) -> Tensor:
        """Return the means (R, 3) over the batch of loss, distortion and rate, (R, B) each."""
        return torch.stack(terms, -1).mean(1)

    def find_nonfinite(self, means: Tensor, check: FiniteCheck | None) -> list[int]:
        """Return the indices of the replicas that a check finds not to be finite.

        Args:
            means: The batch means (R, 3), with the loss in front.
            check: "loss" checks the loss. "gradient" checks the gradient as well. Both synchronise
                the device. None checks nothing.
        """
        if check is None:
            return []
        return [
            index
            for index, loss in enumerate(means[:, 0].tolist())
            if not math.isfinite(loss)
            or (check == "gradient" and not math.isfinite(self.gradient_norm(index)))
        ]

    def add_to_sums(self, means: Tensor, skipped: list[int]) -> None:
        """Add batch means (R, 3) to `sums`, but not for replicas that skip the step."""
        if skipped:
            means[skipped] = 0
        self.sums += means

    def gradient_norm(self, index: int) -> float:
        """Return the norm of a replica's last gradient, before clipping."""
        if self._clip is not None:
            return self._norms[index].item()
        return _norm(self.objectives[index]).item()

    def _stack(self) -> None:
        try:
            parameters, buffers = stack_module_state(list(self.objectives))
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"the replicas differ in the shapes of their parameters: {error}"
            ) from error
        for index, objective in enumerate(self.objectives):
            for stack, tensors in (
                (parameters, objective.named_parameters()),
                (buffers, objective.named_buffers()),
            ):
                for name, tensor in tensors:
                    tensor.data = stack[name].data[index]
        self._parameters = parameters
        self._template = deepcopy(self.objectives[0]).to("meta")  # each call replaces its tensors
        self._buffers = buffers | self._separate_schedules()

    def _call_one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, step: Step
    ) -> Terms:
        return functional_call(self._template, (parameters, buffers), (x, step))

    def _separate_schedules(self) -> dict[str, Tensor]:
        """Replace each schedule that differs between replicas by a ReplicaSchedule.

        Returns:
            The buffers that hold the indices of the replicas, by name.
        """
        indices = torch.arange(len(self.objectives), device=self._device)
        buffers = {}
        for path, module in list(self._template.named_modules()):
            for name in schedules_of(module):
                schedules = [getattr(o.get_submodule(path), name) for o in self.objectives]
                if any(schedule != schedules[0] for schedule in schedules):
                    setattr(module, name, ReplicaSchedule(schedules))
                    buffers[f"{path}.{name}.replica".lstrip(".")] = indices
        return buffers


class ReplicaSchedule(nn.Module):
    """A schedule that differs between replicas: each replica gets the value of its schedule."""

    replica: Tensor  # (), the index of the replica

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        """Take one schedule per replica."""
        super().__init__()
        self._schedules = schedules
        self.register_buffer("replica", torch.zeros((), dtype=torch.long))

    def forward(self, step: Step) -> Tensor:
        """Return the value at the global step, a 0-dim tensor."""
        values: list[Value] = [schedule(step) for schedule in self._schedules]
        tensors = (torch.as_tensor(value, device=self.replica.device) for value in values)
        return torch.stack(list(tensors)).gather(0, self.replica.unsqueeze(0)).squeeze(0)


def _norm(objective: TrainingObjective) -> Tensor:
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)
