"""Values that vary in time, as pure functions of the global step.

A schedule takes the step as a Python number or as a 0-dim tensor and returns a value of the same
type. On a tensor it neither branches nor synchronises the device. A schedule stores no state, so a
resumed run needs only the step. Wherever a schedule is accepted, a number is accepted too and
means a constant.

In a configuration `steps: null` is the length of the whole run. The number is filled in before the
schedule is built.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from vae.utils.validation import Count, NonNegative, Positive, Whole, frozen

Step = int | Tensor
Value = float | Tensor


def _clamp(x: Value, low: float, high: float) -> Value:
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def _cos(x: Value) -> Value:
    return x.cos() if isinstance(x, Tensor) else math.cos(x)


def _interpolate(start: float, end: float, share: Value) -> Value:
    """Interpolate linearly, and exactly at both ends.

    Between two ends that are not negative, no value is negative.
    """
    return start * (1 - share) + end * share


class Schedule(ABC):
    """A number that depends on the global step."""

    @abstractmethod
    def __call__(self, step: Step) -> Value:
        """Return the value at a global step >= 0."""

    @property
    @abstractmethod
    def smallest(self) -> float:
        """The smallest value that the schedule ever returns, up to rounding."""


@frozen
class Constant(Schedule):
    """The same value at every step."""

    value: float

    def __call__(self, step: Step) -> Value:
        return self.value + 0.0 * step  # a tensor for a tensor

    @property
    def smallest(self) -> float:
        return self.value


@frozen
class _Ramp(Schedule):
    """A schedule from `start` to `end` in `steps` steps, and then constant."""

    start: float
    end: float
    steps: Count

    @property
    def smallest(self) -> float:
        return min(self.start, self.end)


@frozen
class Linear(_Ramp):
    """A line from `start` to `end` in `steps` steps, then constant."""

    def __call__(self, step: Step) -> Value:
        return _interpolate(self.start, self.end, _clamp(step / self.steps, 0.0, 1.0))


@frozen
class Exponential(Schedule):
    """max(minimum, start * exp(-rate * t)), with t updated every `every` steps.

    References:
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
        time = step // self.every * self.every
        return _clamp(self.start * math.e ** (-self.rate * time), self.minimum, math.inf)

    @property
    def smallest(self) -> float:
        return self.minimum


@frozen
class Geometric(_Ramp):
    """A geometric series from `start` to `end` in `steps` steps, then constant; both positive."""

    start: Positive
    end: Positive

    def __call__(self, step: Step) -> Value:
        share = _clamp(step / self.steps, 0.0, 1.0)
        return self.start ** (1 - share) * self.end**share


@frozen
class Cosine(_Ramp):
    """Half a cosine from `start` to `end` in `steps` steps, then constant.

    During the first `warmup` of these steps the value rises linearly from 0 to `start`.

    References:
        Loshchilov & Hutter (2017), https://arxiv.org/abs/1608.03983, equation 5, without restarts.
    """

    warmup: Whole = 0

    def __post_init__(self) -> None:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup ({self.warmup}) must be less than steps ({self.steps})")

    def __call__(self, step: Step) -> Value:
        progress = _clamp((step - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        cosine = _interpolate(self.start, self.end, (1 - _cos(math.pi * progress)) / 2)
        return cosine * _clamp(step / self.warmup, 0.0, 1.0) if self.warmup else cosine

    @property
    def smallest(self) -> float:
        return min(self.start, self.end, 0.0 if self.warmup else math.inf)


@frozen
class Piecewise(Schedule):
    """The value values[i] from step boundaries[i - 1] on; values[0] before the first boundary."""

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


def _as_schedule(value: object) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= sys.float_info.max  # also true for NaN
    ):
        raise ValueError(f"must be a finite number or a schedule, not {value!r}")
    return Constant(value)


def _must(rule: str, allows: Callable[[float], bool]) -> AfterValidator:
    """Check the smallest value of a schedule; `rule` completes the message "must ..."."""

    def check(schedule: Schedule) -> Schedule:
        if not allows(schedule.smallest):
            raise ValueError(f"must {rule}, but falls to {schedule.smallest:g}")
        return schedule

    return AfterValidator(check)


PositiveSchedule = Annotated[
    Schedule, BeforeValidator(_as_schedule), _must("stay greater than 0", lambda least: least > 0)
]
"""A schedule or a number that is greater than 0 at every step: a temperature."""

AtLeastOneSchedule = Annotated[
    Schedule, BeforeValidator(_as_schedule), _must("stay at 1 or above", lambda least: least >= 1)
]
"""A schedule or a number that is 1 or more at every step: the temperature of ReinMax."""

NonNegativeSchedule = Annotated[
    Schedule, BeforeValidator(_as_schedule), _must("never be negative", lambda least: least >= 0)
]
"""A schedule or a number that is 0 or more at every step: a weight or a learning rate."""


def schedules_of(owner: object) -> dict[str, Schedule]:
    """Return the schedules among the attributes of an object, by attribute name."""
    return {name: value for name, value in vars(owner).items() if isinstance(value, Schedule)}
