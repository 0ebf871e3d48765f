"""Schedules: their curves, numbers and tensors as steps, and the checks of their fields."""

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.testing import assert_close

from vae.schedules import (
    AtLeastOneSchedule,
    Constant,
    Cosine,
    Exponential,
    Geometric,
    Linear,
    NonNegativeSchedule,
    Piecewise,
    PositiveSchedule,
    schedules_of,
)

ANY_TYPE = ConfigDict(arbitrary_types_allowed=True)
POSITIVE = TypeAdapter(PositiveSchedule, config=ANY_TYPE)
NON_NEGATIVE = TypeAdapter(NonNegativeSchedule, config=ANY_TYPE)
AT_LEAST_ONE = TypeAdapter(AtLeastOneSchedule, config=ANY_TYPE)

JANG = Exponential(start=1.0, minimum=0.5, rate=3e-3, every=50)

FALLING = [
    Linear(start=1.0, end=0.1, steps=97),
    Linear(start=0.3, end=0.0, steps=1),
    Cosine(start=1.0, end=0.1, steps=97),
    Geometric(start=1.0, end=0.1, steps=97),
    Exponential(start=1.0, minimum=0.1, rate=0.03),
    Exponential(start=2.0, minimum=0.0, rate=0.03, every=7),
    JANG,
    Piecewise(values=[1.0, 0.7, 0.1], boundaries=[10, 90]),
]
RISING = [
    Linear(start=0.1, end=1.0, steps=97),
    Linear(start=-1.0, end=1.0, steps=97),
    Cosine(start=0.1, end=1.0, steps=97),
    Cosine(start=0.1, end=1.0, steps=97, warmup=20),
    Geometric(start=0.1, end=1.0, steps=97),
    Piecewise(values=[0.1, 0.7, 1.0], boundaries=[10, 90]),
]
OTHER = [
    Constant(0.5),
    Constant(2),
    Linear(start=0.4, end=0.4, steps=3),
    Cosine(start=1.0, end=0.1, steps=97, warmup=20),
    Cosine(start=-1.0, end=-3.0, steps=97, warmup=20),
    Exponential(start=1.0, minimum=0.5, rate=0.0),
    Piecewise(values=[0.5], boundaries=[]),
    Piecewise(values=[0.5, 0.1, 2.0], boundaries=[10, 11]),
]
SCHEDULES = FALLING + RISING + OTHER

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
ADAPTERS = {"positive": POSITIVE, "non-negative": NON_NEGATIVE, "at least 1": AT_LEAST_ONE}

every_adapter = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)


# Curves


@pytest.mark.parametrize("schedule_class", [Linear, Cosine])
@pytest.mark.parametrize("start, end", [(1.0, 0.5), (0.0, 1.0), (1.0, 0.1), (0.1, 1.0)])
def test_curve_has_its_ends_and_the_mean_of_them_in_the_middle(schedule_class, start, end):
    schedule = schedule_class(start=start, end=end, steps=100)
    assert schedule(0) == pytest.approx(start, rel=1e-12)
    assert schedule(50) == pytest.approx((start + end) / 2)
    assert schedule(100) == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize("schedule_class", [Linear, Cosine, Geometric])
def test_curve_is_constant_after_its_steps(schedule_class):
    schedule = schedule_class(start=1.0, end=0.1, steps=100)
    assert {schedule(step) for step in (101, 150, 10**9)} == {schedule(100)}
    assert schedule(99) != schedule(100)


def test_linear_is_a_straight_line():
    schedule = Linear(start=2.0, end=-2.0, steps=8)
    assert [schedule(step) for step in range(9)] == [2, 1.5, 1, 0.5, 0, -0.5, -1, -1.5, -2]


def test_cosine_is_half_a_cosine():
    schedule = Cosine(start=3.0, end=1.0, steps=40)
    for step in range(41):
        assert schedule(step) == pytest.approx(2 + math.cos(math.pi * step / 40))


def test_warm_up_of_a_cosine_is_a_line_from_zero_and_the_rest_is_a_cosine():
    schedule = Cosine(start=3.0, end=1.0, steps=50, warmup=10)
    cosine = Cosine(start=3.0, end=1.0, steps=40)
    assert [schedule(step) for step in range(11)] == pytest.approx([0.3 * n for n in range(11)])
    assert [schedule(10 + n) for n in range(60)] == pytest.approx([cosine(n) for n in range(60)])


def test_geometric_changes_by_equal_factors():
    schedule = Geometric(start=1.0, end=1e6, steps=6)
    assert [schedule(step) for step in range(7)] == pytest.approx([10.0**n for n in range(7)])


@pytest.mark.parametrize("rate, every, minimum", [(3e-5, 1000, 0.5), (1e-4, 1, 0.1), (0.01, 7, 0)])
def test_exponential_has_the_formula_of_jang(rate, every, minimum):
    schedule = Exponential(start=1.0, minimum=minimum, rate=rate, every=every)
    for step in [*range(0, 3 * every), *range(3 * every, 100_000, 997)]:
        expected = max(minimum, math.exp(-rate * (step // every) * every))
        assert schedule(step) == pytest.approx(expected, rel=1e-12)


def test_exponential_changes_only_at_multiples_of_every():
    values = [JANG(step) for step in range(150)]
    assert len(set(values)) == 3
    assert values[49] != values[50] and values[99] != values[100]


def test_exponential_begins_at_its_start():
    assert Exponential(start=4.0, minimum=1.0, rate=0.1)(0) == 4.0


def test_piecewise_changes_at_its_boundaries():
    schedule = Piecewise(values=[1.0, 0.7, 0.5], boundaries=[3, 5])
    assert [schedule(step) for step in range(7)] == [1.0, 1.0, 1.0, 0.7, 0.7, 0.5, 0.5]


def test_constant_is_the_same_at_every_step():
    assert {Constant(0.3)(step) for step in (0, 1, 10**9)} == {0.3}


@pytest.mark.parametrize("schedule", FALLING, ids=str)
def test_falling_schedules_never_rise(schedule):
    values = [schedule(step) for step in range(300)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@pytest.mark.parametrize("schedule", RISING, ids=str)
def test_rising_schedules_never_fall(schedule):
    values = [schedule(step) for step in range(300)]
    assert values == sorted(values)
    assert values[0] < values[-1]


# Numbers and tensors


@every_schedule
def test_value_at_a_number_is_a_number(schedule):
    assert all(isinstance(schedule(step), float) for step in (0, 5, 50, 10**6))


@every_schedule
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_value_at_a_tensor_is_a_tensor_with_the_same_value(schedule, dtype):
    for step in [*range(0, 120, 5), 9, 11, 49, 89, 96, 97, 98, 10**6]:
        value = schedule(torch.tensor(step, dtype=dtype))
        assert isinstance(value, torch.Tensor)
        assert_close(value, torch.tensor(schedule(step)), rtol=1e-12, atol=1e-15)


@every_schedule
def test_step_tensor_is_not_changed(schedule):
    step = torch.tensor(15.0)
    schedule(step)
    assert step == 15


@every_schedule
@pytest.mark.parametrize("as_step", [int, torch.tensor])
def test_value_is_never_below_smallest(schedule, as_step):
    assert min(schedule(as_step(step)) for step in range(300)) >= schedule.smallest


@pytest.mark.parametrize("as_step", [int, torch.tensor])
@pytest.mark.parametrize("tiny", [1e-17, 1e-30])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda tiny: Linear(start=1.0, end=tiny, steps=10),
        lambda tiny: Linear(start=tiny, end=1.0, steps=10),
        lambda tiny: Cosine(start=1.0, end=tiny, steps=10),
        lambda tiny: Cosine(start=tiny, end=1.0, steps=10),
        lambda tiny: Geometric(start=1.0, end=tiny, steps=10),
        lambda tiny: Exponential(start=1.0, minimum=tiny, rate=100.0),
    ],
    ids=["linear down", "linear up", "cosine down", "cosine up", "geometric", "exponential"],
)
def test_positive_schedule_stays_positive_in_floating_point(schedule, tiny, as_step):
    positive = POSITIVE.validate_python(schedule(tiny))
    assert all(positive(as_step(step)) > 0 for step in range(20))


# Numbers as schedules, and bounds on schedules


@pytest.mark.parametrize("adapter", [POSITIVE, NON_NEGATIVE], ids=["positive", "non-negative"])
@pytest.mark.parametrize("number", [0.5, 3])
def test_number_is_a_constant_schedule(adapter, number):
    assert adapter.validate_python(number) == Constant(number)


@pytest.mark.parametrize("adapter", [POSITIVE, NON_NEGATIVE], ids=["positive", "non-negative"])
def test_schedule_is_used_as_it_is(adapter):
    assert adapter.validate_python(JANG) is JANG


REACHES_ZERO = [
    0,
    0.0,
    Linear(start=1.0, end=0.0, steps=5),
    Linear(start=0.0, end=1.0, steps=5),
    Cosine(start=1.0, end=0.5, steps=5, warmup=1),
    Exponential(start=1.0, minimum=0.0, rate=0.1),
    Piecewise(values=[1.0, 0.0, 1.0], boundaries=[1, 2]),
]
NEGATIVE = [
    -1,
    -1e-9,
    Linear(start=1.0, end=-0.1, steps=5),
    Cosine(start=-0.1, end=0.5, steps=5),
    Exponential(start=1.0, minimum=-0.1, rate=0.1),
    Piecewise(values=[1.0, -1.0, 1.0], boundaries=[1, 2]),
]
INVALID = ["0.5", "", True, False, None, math.nan, math.inf, -math.inf, [1.0], {"value": 1.0}]


@pytest.mark.parametrize("schedule", REACHES_ZERO + NEGATIVE, ids=str)
def test_positive_schedule_must_stay_positive(schedule):
    with pytest.raises(ValidationError, match="must stay greater than 0"):
        POSITIVE.validate_python(schedule)


@pytest.mark.parametrize("schedule", REACHES_ZERO, ids=str)
def test_non_negative_schedule_may_reach_zero(schedule):
    NON_NEGATIVE.validate_python(schedule)


@pytest.mark.parametrize("schedule", NEGATIVE, ids=str)
def test_non_negative_schedule_must_never_be_negative(schedule):
    with pytest.raises(ValidationError, match="must never be negative"):
        NON_NEGATIVE.validate_python(schedule)


@pytest.mark.parametrize("schedule", [0.9, Linear(start=2.0, end=0.5, steps=5)], ids=str)
def test_schedule_of_at_least_one_must_not_fall_below_one(schedule):
    with pytest.raises(ValidationError, match="must stay at 1 or above"):
        AT_LEAST_ONE.validate_python(schedule)


@pytest.mark.parametrize("schedule", [1, Linear(start=2.0, end=1.0, steps=5)], ids=str)
def test_schedule_of_at_least_one_may_reach_one(schedule):
    AT_LEAST_ONE.validate_python(schedule)


@every_adapter
@pytest.mark.parametrize("value", INVALID, ids=repr)
def test_value_that_is_neither_a_finite_number_nor_a_schedule_is_refused(adapter, value):
    with pytest.raises(ValidationError, match="must be a finite number or a schedule"):
        adapter.validate_python(value)


# Checks of the fields

VALID = {
    Constant: {"value": 1.0},
    Linear: {"start": 1.0, "end": 0.5, "steps": 10},
    Exponential: {"start": 1.0, "minimum": 0.5, "rate": 0.1, "every": 10},
    Cosine: {"start": 1.0, "end": 0.5, "steps": 10, "warmup": 2},
    Geometric: {"start": 1.0, "end": 0.5, "steps": 10},
    Piecewise: {"values": [1.0, 0.5], "boundaries": [10]},
}
FIELDS = [(schedule_class, name) for schedule_class, fields in VALID.items() for name in fields]
COUNTS = [
    (Linear, "steps"),
    (Geometric, "steps"),
    (Cosine, "steps"),
    (Cosine, "warmup"),
    (Exponential, "every"),
]


@pytest.mark.parametrize("schedule_class, name", FIELDS)
def test_field_that_is_not_a_finite_number_is_refused(schedule_class, name):
    for wrong in ("1", True, None, math.nan, math.inf):
        value = [wrong] if schedule_class is Piecewise else wrong
        with pytest.raises(ValidationError):
            schedule_class(**VALID[schedule_class] | {name: value})


@pytest.mark.parametrize("schedule_class, name", COUNTS)
@pytest.mark.parametrize("wrong", [-1, 2.5, 3.0])
def test_count_that_is_negative_or_no_integer_is_refused(schedule_class, name, wrong):
    with pytest.raises(ValidationError):
        schedule_class(**VALID[schedule_class] | {name: wrong})


@pytest.mark.parametrize(
    "schedule_class, name",
    [(Linear, "steps"), (Geometric, "steps"), (Cosine, "steps"), (Exponential, "every")],
)
def test_zero_steps_are_refused(schedule_class, name):
    with pytest.raises(ValidationError):
        schedule_class(**VALID[schedule_class] | {name: 0})


@pytest.mark.parametrize("schedule_class", VALID)
def test_unknown_field_is_refused(schedule_class):
    with pytest.raises(ValidationError):
        schedule_class(**VALID[schedule_class], speed=1.0)


@pytest.mark.parametrize("warmup", [10, 11])
def test_warm_up_that_is_as_long_as_the_schedule_is_refused(warmup):
    with pytest.raises(ValidationError, match=rf"warmup \({warmup}\) must be less than steps"):
        Cosine(start=1.0, end=0.5, steps=10, warmup=warmup)


@pytest.mark.parametrize("minimum", [1.0, 1.5])
def test_minimum_that_is_not_below_the_start_is_refused(minimum):
    with pytest.raises(ValidationError, match="nothing anneals"):
        Exponential(start=1.0, minimum=minimum, rate=0.1)


def test_negative_rate_is_refused():
    with pytest.raises(ValidationError):
        Exponential(start=1.0, minimum=0.5, rate=-0.1)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_wrong_number_of_boundaries_is_refused(values):
    with pytest.raises(ValidationError, match="boundaries, not 2"):
        Piecewise(values=values, boundaries=[1, 2])


@pytest.mark.parametrize("boundaries", [[5, 5], [5, 4]])
def test_boundaries_that_do_not_increase_are_refused(boundaries):
    with pytest.raises(ValidationError, match="boundaries must increase"):
        Piecewise(values=[1.0, 2.0, 3.0], boundaries=boundaries)


@pytest.mark.parametrize("boundary", [0, -3, 1.5])
def test_boundary_that_is_not_a_positive_integer_is_refused(boundary):
    with pytest.raises(ValidationError):
        Piecewise(values=[1.0, 2.0], boundaries=[boundary])


def test_schedule_is_immutable():
    with pytest.raises(AttributeError):
        Constant(1.0).value = 2.0


# schedules_of


def test_schedules_of_an_object_are_found_by_attribute_name():
    owner = SimpleNamespace(temperature=JANG, beta=Constant(1.0), lr=0.1, name="beta")
    assert schedules_of(owner) == {"temperature": JANG, "beta": Constant(1.0)}


def test_schedules_of_a_module_are_found_by_attribute_name():
    module = nn.Linear(1, 1)
    assert schedules_of(module) == {}
    module.temperature = JANG
    assert schedules_of(module) == {"temperature": JANG}
