"""Optimizers: configurations that are checked before a model exists, and what they build.

`Adam`, `AdamW`, `RAdam` and `SGD` are configurations; `build` makes an optimizer of parameters.
`FusedAdam` and `FusedSGD` are the optimizers, which run torch's fused kernels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.radam import radam

from vae.schedules import NonNegativeSchedule
from vae.utils.validation import Decay, NonNegative, Positive, frozen


class Optimizer(Protocol):
    """The methods that training calls; the optimizers in torch.optim have them too."""

    param_groups: list[dict[str, Any]]

    def step(self) -> None:
        """Update the parameters from their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint has to store."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""


@frozen
class OptimizerConfig(ABC):
    """Settings of an optimizer.

    Args:
        lr: Learning rate, a number or a schedule. The training loop sets it before every step.
    """

    lr: NonNegativeSchedule

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Build the optimizer of these parameters, with the learning rate at step 0."""


@frozen
class _AdamFamily(OptimizerConfig):
    variant: ClassVar["Variant"]

    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NonNegative

    def build(self, parameters: Iterable[nn.Parameter]) -> "FusedAdam":
        beta1, beta2 = self.betas
        return FusedAdam(
            self.variant,
            list(parameters),
            float(self.lr(0)),
            (beta1, beta2),
            self.eps,
            self.weight_decay,
        )


@frozen
class Adam(_AdamFamily):
    """Adam, with `weight_decay` as an L2 penalty.

    References:
        Kingma & Ba (2015), https://arxiv.org/abs/1412.6980.
    """

    variant = "adam"


@frozen
class AdamW(_AdamFamily):
    """Adam with decoupled weight decay.

    References:
        Loshchilov & Hutter (2019), https://arxiv.org/abs/1711.05101.
    """

    variant = "adamw"


@frozen
class RAdam(_AdamFamily):
    """Rectified Adam, with `weight_decay` as an L2 penalty.

    References:
        Liu et al. (2020), https://arxiv.org/abs/1908.03265.
    """

    variant = "radam"


@frozen
class SGD(OptimizerConfig):
    """Stochastic gradient descent with the momentum of Polyak (1964); `momentum` 0 for none."""

    momentum: Decay
    weight_decay: NonNegative

    def build(self, parameters: Iterable[nn.Parameter]) -> "FusedSGD":
        return FusedSGD(
            parameters,
            lr=float(self.lr(0)),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )


class FusedSGD(torch.optim.SGD):
    """torch.optim.SGD, except that loading a state keeps the learning rate of this optimizer.

    The rate may be a tensor that a captured CUDA graph reads, so it must not be replaced.
    """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rates = [group["lr"] for group in self.param_groups]
        super().load_state_dict(state)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


Variant = Literal["adam", "adamw", "radam"]


class FusedAdam:
    """Adam, AdamW or RAdam by torch's fused kernels, with the state_dict of torch.optim.Adam.

    The classes of torch.optim wrap the same kernels. They import torch's compiler, for 1.2 s and
    150 MB, and cost 0.2 ms more per step. And torch has no fused RAdam: on a CPU it is
    computed by the kernel of Adam (see `rectified`), and on a GPU by torch's foreach kernels. All
    parameters that have a gradient share one step count.

    Args:
        variant: The member of the family.
        parameters: The parameters to train.
        lr: Learning rate, a number or a tensor on the device of the parameters.
        betas: Decay of the first and of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Weight of the L2 penalty; for "adamw" of the decoupled decay.
    """

    def __init__(
        self,
        variant: Variant,
        parameters: list[nn.Parameter],
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, **options}]
        self._variant = variant
        self._state = [
            {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for p in parameters
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        (group,) = self.param_groups
        pairs = zip(group["params"], self._state, strict=True)
        updated = [(p, state) for p, state in pairs if p.grad is not None]
        if not updated:
            return
        steps = [state["step"] for _, state in updated]
        lr, eps = group["lr"], group["eps"]
        tensors: dict[str, Any] = {
            "params": [p for p, _ in updated],
            "grads": [p.grad for p, _ in updated],
            "exp_avgs": [state["exp_avg"] for _, state in updated],
            "exp_avg_sqs": [state["exp_avg_sq"] for _, state in updated],
            "state_steps": steps,
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "weight_decay": group["weight_decay"],
        }
        capturable = isinstance(lr, Tensor) and lr.is_cuda
        if self._variant == "radam":
            if steps[0].device.type != "cpu":  # reading the step would synchronise the device
                radam(**tensors, lr=lr, eps=eps, foreach=True, capturable=capturable)
                return
            lr, eps = rectified(lr, eps, group["betas"][1], 1 + int(steps[0]))
        adam(
            **tensors,
            lr=lr,
            eps=eps,
            max_exp_avg_sqs=[],
            amsgrad=False,
            maximize=False,
            fused=True,
            capturable=capturable,
            decoupled_weight_decay=self._variant == "adamw",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return moments, step counts and options, in the format of torch.optim.Adam."""
        (group,) = self.param_groups
        options = {name: value for name, value in group.items() if name != "params"}
        return {
            "state": {index: dict(state) for index, state in enumerate(self._state)},
            "param_groups": [options | {"params": list(range(len(self._state)))}],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore moments and step counts; the options of this optimizer stay as they are.

        Raises:
            ValueError: If the state belongs to other parameters.
        """
        saved = [state["state"].get(index, {}) for index in range(len(state["state"]))]
        if _shapes(saved) != _shapes(self._state):
            raise ValueError("the state belongs to an optimizer of other parameters")
        for current, restored in zip(self._state, saved, strict=True):
            for name, tensor in current.items():
                tensor.copy_(restored[name])


def _shapes(states: list[dict[str, Tensor]]) -> list[dict[str, torch.Size]]:
    return [{name: tensor.shape for name, tensor in state.items()} for state in states]


def rectified(lr: float, eps: float, beta2: float, step: int) -> tuple[float, float]:
    """Return the learning rate and the eps that turn a step of Adam into one of RAdam.

    Let m be the first moment, corrected for its bias, v the second moment without a correction,
    and r the rectification. With c = 1 - beta2^t, the step of RAdam is
    lr r m / (sqrt(v / c) + eps / sqrt(c)). That is
    Adam's at lr r and eps / sqrt(c). As long as the variance of 1 / sqrt(v) is not finite (the
    first five steps at beta2 = 0.999) RAdam's step is lr m. That is Adam's with an eps that is so
    large that sqrt(v) vanishes beside it.

    Args:
        lr: Learning rate of RAdam.
        eps: eps of RAdam.
        beta2: Decay of the second moment.
        step: The number t of the step, from 1.
    """
    c = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / c
    if rho <= 5:
        return lr * _HUGE_EPS, _HUGE_EPS
    r = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return lr * math.sqrt(r), eps / math.sqrt(c)


_HUGE_EPS = 1e12
"""Larger than the root of any squared gradient by so much that the root does not count."""
