"""Optimizers as values: checked before any parameter exists, then built from parameters."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from .schedules import NonNegativeSchedule
from .validation import Decay, NonNegative, Positive, value


@value
class Optimizer(ABC):
    """`lr` may be a schedule; the training loop sets it before every step."""

    lr: NonNegativeSchedule

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer: ...


@value
class _Moments(Optimizer):
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NonNegative

    def _options(self) -> dict[str, object]:
        return {
            "lr": float(self.lr(0)),
            "betas": tuple(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }


@value
class Adam(_Moments):
    """Kingma & Ba (2015), https://arxiv.org/abs/1412.6980."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, **self._options(), fused=True)


@value
class AdamW(_Moments):
    """Loshchilov & Hutter (2019), https://arxiv.org/abs/1711.05101."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, **self._options(), fused=True)


@value
class RAdam(_Moments):
    """Liu et al. (2020), https://arxiv.org/abs/1908.03265."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(parameters, **self._options())  # torch has no fused one


@value
class SGD(Optimizer):
    """Stochastic gradient descent with the momentum of Polyak (1964); 0 for none."""

    momentum: Decay
    weight_decay: NonNegative

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=float(self.lr(0)),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )
