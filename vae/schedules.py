"""What varies in time: pure functions of the global step.

A schedule takes the step as a Python number or as a 0-dim tensor, and answers in kind; on a tensor
it neither synchronises the device nor branches. It stores nothing, so a resumed run needs the step
alone. Wherever a schedule is taken, a plain number is too, and means a constant.
"""

import math
import sys
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from .validation import Count, NonNegative, Positive, Whole, value

Step = int | Tensor
Value = float | Tensor


def _clamp(x: Value, low: float, high: float) -> Value:
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def _floor(x: Value) -> Value:
    return x.floor() if isinstance(x, Tensor) else math.floor(x)


def _cos(x: Value) -> Value:
    return x.cos() if isinstance(x, Tensor) else math.cos(x)


def _between(start: float, end: float, share: Value) -> Value:
    """Exact at both ends, so that what stays positive on paper does in floating point."""
    return start * (1 - share) + end * share


class Schedule(ABC):
    @abstractmethod
    def __call__(self, step: Step) -> Value:
        """The value at a global step >= 0."""

    @property
    @abstractmethod
    def smallest(self) -> float:
        """The least that the schedule ever answers, up to rounding."""


@value
class Constant(Schedule):
    """The same value at every step."""

    value: float

    def __call__(self, step: Step) -> Value:
        return self.value + 0.0 * step  # a tensor for a tensor

    @property
    def smallest(self) -> float:
        return self.value


@value
class Linear(Schedule):
    """From `start` to `end` in `steps` steps, then constant."""

    start: float
    end: float
    steps: Count

    def __call__(self, step: Step) -> Value:
        return _between(self.start, self.end, _clamp(step / self.steps, 0.0, 1.0))

    @property
    def smallest(self) -> float:
        return min(self.start, self.end)


@value
class Exponential(Schedule):
    """max(minimum, start * exp(-rate * t)), with t refreshed every `every` steps.

    Jang, Gu & Poole (2017), https://arxiv.org/abs/1611.01144: start 1, minimum 0.5.
    """

    start: float
    minimum: float
    rate: NonNegative
    every: Count = 1

    def __post_init__(self) -> None:
        if self.minimum >= self.start:
            raise ValueError(
                f"minimum ({self.minimum:g}) must be less than start ({self.start:g}), "
                "or nothing anneals"
            )

    def __call__(self, step: Step) -> Value:
        time = _floor(step / self.every) * self.every
        return _clamp(self.start * math.e ** (-self.rate * time), self.minimum, math.inf)

    @property
    def smallest(self) -> float:
        return self.minimum


@value
class Geometric(Schedule):
    """From `start` to `end` in `steps` steps by equal factors, then constant."""

    start: Positive
    end: Positive
    steps: Count

    def __call__(self, step: Step) -> Value:
        share = _clamp(step / self.steps, 0.0, 1.0)
        return self.start ** (1 - share) * self.end**share

    @property
    def smallest(self) -> float:
        return min(self.start, self.end)


@value
class Cosine(Schedule):
    """Half a cosine from `start` to `end` in `steps` steps, then constant.

    The first `warmup` of these steps rise linearly from 0 to where the cosine begins.
    Loshchilov & Hutter (2017), https://arxiv.org/abs/1608.03983, equation 5, without restarts.
    """

    start: float
    end: float
    steps: Count
    warmup: Whole = 0

    def __post_init__(self) -> None:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup ({self.warmup}) must be less than steps ({self.steps})")

    def __call__(self, step: Step) -> Value:
        progress = _clamp((step - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        cosine = _between(self.start, self.end, (1 - _cos(math.pi * progress)) / 2)
        return cosine * _clamp(step / self.warmup, 0.0, 1.0) if self.warmup else cosine

    @property
    def smallest(self) -> float:
        return min(self.start, self.end, 0.0 if self.warmup else math.inf)


@value
class Piecewise(Schedule):
    """values[i] from step boundaries[i - 1] on: one boundary less than there are values."""

    values: list[float]
    boundaries: list[Count]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"{len(self.values)} values need {len(self.values) - 1} boundaries, "
                f"not {len(self.boundaries)}"
            )
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must increase: {self.boundaries}")

    def __call__(self, step: Step) -> Value:
        spans = pairwise([-math.inf, *self.boundaries, math.inf])
        return sum(
            (step >= begin) * (step < end) * value
            for value, (begin, end) in zip(self.values, spans, strict=True)
        )

    @property
    def smallest(self) -> float:
        return min(self.values)


def _as_schedule(given: object) -> Schedule:
    if isinstance(given, Schedule):
        return given
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not abs(given) <= sys.float_info.max:
        raise ValueError(f"must be a finite number or a schedule, not {given!r}")
    return Constant(given)


def _positive(schedule: Schedule) -> Schedule:
    if schedule.smallest <= 0:
        raise ValueError(f"must stay greater than 0, but falls to {schedule.smallest:g}")
    return schedule


def _non_negative(schedule: Schedule) -> Schedule:
    if schedule.smallest < 0:
        raise ValueError(f"must never be negative, but falls to {schedule.smallest:g}")
    return schedule


def _at_least_one(schedule: Schedule) -> Schedule:
    if schedule.smallest < 1:
        raise ValueError(f"must stay at 1 or above, but falls to {schedule.smallest:g}")
    return schedule


PositiveSchedule = Annotated[Schedule, BeforeValidator(_as_schedule), AfterValidator(_positive)]
"""What a temperature is: a schedule or a number, greater than 0 at every step."""

AtLeastOneSchedule = Annotated[
    Schedule, BeforeValidator(_as_schedule), AfterValidator(_at_least_one)
]
"""What ReinMax's temperature is: a schedule or a number, 1 or more at every step."""

NonNegativeSchedule = Annotated[
    Schedule, BeforeValidator(_as_schedule), AfterValidator(_non_negative)
]
"""What a weight or a learning rate is: a schedule or a number, never negative."""


def schedules_of(owner: object) -> dict[str, Schedule]:
    """The schedules that an object holds, by the name of their attribute."""
    return {name: held for name, held in vars(owner).items() if isinstance(held, Schedule)}
