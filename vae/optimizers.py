"""Optimizers as values: checked before any parameter exists, then built from parameters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.radam import radam

from .schedules import NonNegativeSchedule
from .validation import Decay, NonNegative, Positive, value


class Stepper(Protocol):
    """What training asks of an optimizer: torch's own are some."""

    param_groups: list[dict[str, Any]]

    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@value
class Optimizer(ABC):
    """`lr` may be a schedule; the training loop sets it before every step."""

    lr: NonNegativeSchedule

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter], on_device: bool = False) -> Stepper:
        """With `on_device` the learning rate is a tensor beside the parameters, to be written
        into, so that a step on a CUDA device can be captured.
        """

    def _rate(self, parameters: list[nn.Parameter], on_device: bool) -> float | Tensor:
        lr = float(self.lr(0))
        if not on_device:
            return lr
        return torch.tensor(lr, dtype=torch.float32, device=parameters[0].device)  # fused: only so


@value
class _Moments(Optimizer):
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NonNegative

    def _build(
        self, kind: "Kind", parameters: Iterable[nn.Parameter], on_device: bool
    ) -> "FusedAdam":
        parameters = list(parameters)
        rate = self._rate(parameters, on_device)
        return FusedAdam(kind, parameters, rate, tuple(self.betas), self.eps, self.weight_decay)


@value
class Adam(_Moments):
    """Kingma & Ba (2015), https://arxiv.org/abs/1412.6980."""

    def build(self, parameters: Iterable[nn.Parameter], on_device: bool = False) -> "FusedAdam":
        return self._build("adam", parameters, on_device)


@value
class AdamW(_Moments):
    """Loshchilov & Hutter (2019), https://arxiv.org/abs/1711.05101."""

    def build(self, parameters: Iterable[nn.Parameter], on_device: bool = False) -> "FusedAdam":
        return self._build("adamw", parameters, on_device)


@value
class RAdam(_Moments):
    """Liu et al. (2020), https://arxiv.org/abs/1908.03265."""

    def build(self, parameters: Iterable[nn.Parameter], on_device: bool = False) -> "FusedAdam":
        return self._build("radam", parameters, on_device)


@value
class SGD(Optimizer):
    """Stochastic gradient descent with the momentum of Polyak (1964); 0 for none."""

    momentum: Decay
    weight_decay: NonNegative

    def build(self, parameters: Iterable[nn.Parameter], on_device: bool = False) -> "FusedSGD":
        parameters = list(parameters)
        return FusedSGD(
            parameters,
            lr=self._rate(parameters, on_device),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )


class FusedSGD(torch.optim.SGD):
    """With a rate that stays where it was built, whatever is loaded."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rates = [group["lr"] for group in self.param_groups]
        super().load_state_dict(state)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


Kind = Literal["adam", "adamw", "radam"]


class FusedAdam:
    """Adam and its kin by torch's fused kernel, with a state_dict like that of torch.optim.Adam.

    torch.optim's classes are wrappers of these functions that import torch's compiler, for 1.2 s
    and 150 MB, and take another 0.2 ms a step. And there is no fused RAdam: see `rectified`.
    """

    def __init__(
        self,
        kind: Kind,
        parameters: list[nn.Parameter],
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, **options}]
        self._kind = kind
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
        """Parameters without a gradient stay as they are."""
        (group,) = self.param_groups
        pairs = zip(group["params"], self._state, strict=True)
        moved = [(p, state) for p, state in pairs if p.grad is not None]
        steps = [state["step"] for _, state in moved]
        lr, eps = group["lr"], group["eps"]
        tensors = {
            "params": [p for p, _ in moved],
            "grads": [p.grad for p, _ in moved],
            "exp_avgs": [state["exp_avg"] for _, state in moved],
            "exp_avg_sqs": [state["exp_avg_sq"] for _, state in moved],
            "state_steps": steps,
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "weight_decay": group["weight_decay"],
        }
        captured = isinstance(lr, Tensor) and lr.is_cuda
        if self._kind == "radam":
            if steps[0].device.type != "cpu":  # where its number cannot be known without waiting
                radam(**tensors, lr=lr, eps=eps, foreach=True, capturable=captured)
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
            capturable=captured,
            decoupled_weight_decay=self._kind == "adamw",
        )

    def state_dict(self) -> dict[str, Any]:
        (group,) = self.param_groups
        options = {name: held for name, held in group.items() if name != "params"}
        return {
            "state": {number: dict(state) for number, state in enumerate(self._state)},
            "param_groups": [options | {"params": list(range(len(self._state)))}],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moments and counts; rates are set before every step. Raises ValueError."""
        theirs = [state["state"].get(number, {}) for number in range(len(state["state"]))]
        if _shapes(theirs) != _shapes(self._state):
            raise ValueError("the state is that of an optimizer of other parameters")
        for own, their in zip(self._state, theirs, strict=True):
            for name, held in own.items():
                held.copy_(their[name])


def _shapes(state: list[dict[str, Tensor]]) -> list[dict[str, torch.Size]]:
    return [{name: held.shape for name, held in each.items()} for each in state]


def rectified(lr: float, eps: float, beta2: float, step: int) -> tuple[float, float]:
    """The rate and the eps at which step number `step` >= 1 of Adam is one of RAdam.

    With c = 1 - beta2^t, RAdam's step is lr r m / (sqrt(v / c) + eps / sqrt(c)): Adam's, at lr r
    and eps / sqrt(c). Before the variance of 1 / sqrt(v) is finite, for five steps at beta2 =
    0.999, it is lr m: Adam's with an eps beside which sqrt(v) vanishes.
    """
    c = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / c
    if rho <= 5:
        return lr * _VAST, _VAST
    r = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    return lr * math.sqrt(r), eps / math.sqrt(c)


_VAST = 1e12
"""An eps that no root of a squared gradient reaches."""
