"""Objectives of one shape, evaluated as one: the same step of many runs costs one pass."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from .objective import Terms, TrainingObjective
from .schedules import Schedule, Step, Value, schedules_of


class OneOf(nn.Module):
    """A schedule that differs between replicas: each is answered with its own."""

    which: Tensor  # (), of the replica

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        super().__init__()
        self._schedules = schedules
        self.register_buffer("which", torch.zeros((), dtype=torch.long))

    def forward(self, step: Step) -> Tensor:
        values: list[Value] = [schedule(step) for schedule in self._schedules]
        tensors = (torch.as_tensor(value, device=self.which.device) for value in values)
        return torch.stack(list(tensors)).gather(0, self.which.unsqueeze(0)).squeeze(0)


class Replicas:
    """R objectives that differ in their weights, their batches, their noise and their schedules.

    Parameters and buffers are stacked, and each objective is left with views of its own slices:
    what an optimizer, a checkpoint or an evaluation does to it, as to any other objective, is done
    to the stack. A replica's gradient depends on nothing of the others. One objective alone is
    called as it is.

    Raises ValueError where the objectives are not of one shape.
    """

    def __init__(self, objectives: Sequence[TrainingObjective]) -> None:
        self.objectives = objectives
        if len(objectives) == 1:
            self._parameters = dict(objectives[0].named_parameters())
            return
        try:
            parameters, buffers = stack_module_state(list(objectives))
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"the replicas are not of one shape: {error}") from error
        for which, objective in enumerate(objectives):
            for stacked, own in (
                (parameters, objective.named_parameters()),
                (buffers, objective.named_buffers()),
            ):
                for name, tensor in own:
                    tensor.data = stacked[name].data[which]
        self._parameters = parameters
        self._shared = deepcopy(objectives[0]).to("meta")  # gets every tensor with each call
        self._buffers = buffers | self._tell_apart(parameters)

    def __call__(self, x: Tensor, step: Step) -> Terms:
        """Images (R, B, D) in [0, 1], the global step. Terms of (R, B)."""
        if len(self.objectives) == 1:
            return Terms(*(term.unsqueeze(0) for term in self.objectives[0](x.squeeze(0), step)))
        vectorised = vmap(self._call, in_dims=(0, 0, 0, None), randomness="different")
        return vectorised(self._parameters, self._buffers, x, step)

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Runs the networks under autocast; the one objective alone until it is told otherwise."""
        alone = len(self.objectives) == 1
        (self.objectives[0] if alone else self._shared).model.precision = precision

    def zero_grad(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def share_out_gradients(self) -> None:
        """Gives each objective's parameters their gradients, as views of the stack's."""
        if len(self.objectives) == 1:
            return
        gradients = {name: stacked.grad for name, stacked in self._parameters.items()}
        for which, objective in enumerate(self.objectives):
            for name, parameter in objective.named_parameters():
                stacked = gradients[name]
                parameter.grad = None if stacked is None else stacked[which]

    def _call(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, step: Step
    ) -> Terms:
        return functional_call(self._shared, (parameters, buffers), (x, step))

    def _tell_apart(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Puts a OneOf where schedules differ; the buffers that say which replica it is."""
        device = next(iter(parameters.values())).device
        which = torch.arange(len(self.objectives), device=device)
        buffers = {}
        for path, module in list(self._shared.named_modules()):
            for name in schedules_of(module):
                every = [getattr(each.get_submodule(path), name) for each in self.objectives]
                if any(schedule != every[0] for schedule in every):
                    setattr(module, name, OneOf(every))
                    buffers[f"{path}.{name}.which".lstrip(".")] = which
        return buffers
