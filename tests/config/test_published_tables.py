"""The tables of published settings in configs/experiment: names of rows, keys and values."""

import inspect
import re
from functools import cache
from typing import Any, Literal

import hydra
import pytest
from pydantic import ConfigDict, TypeAdapter

from tests.helpers import CONFIGS, compose_config, option_names, resolve_config
from vae.config.describe import option_targets
from vae.config.resolvers import OTHERS, PUBLISHED
from vae.schedules import NonNegativeSchedule, PositiveSchedule
from vae.utils.validation import Count, NonNegative, Positive, Whole

CHECKS = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

ENTRIES = {
    "optimizer": Literal["Adam", "AdamW", "RAdam", "SGD"],
    "lr": NonNegativeSchedule,
    "warmup": Whole,
    "temperature": PositiveSchedule,
    "start": Positive,  # of a temperature that falls exponentially
    "rate": NonNegative,  # of the same temperature
    "prior_temperature": PositiveSchedule,
    "inner_samples": Count,
}
"""The keys that a row may have, and the type of the value of each."""

ESTIMATORS = option_names("estimator")
every_experiment = pytest.mark.parametrize("experiment", option_names("experiment"))


@cache
def published_table(experiment: str) -> dict[str, dict[str, Any]]:
    """Return the table of an experiment, with schedules as objects of a run of 1,000 steps."""
    values = resolve_config(compose_config(f"experiment={experiment}"), total_steps=1000)
    return hydra.utils.instantiate(values[PUBLISHED], _convert_="all")


def assert_valid(value: object, expected: Any) -> None:
    TypeAdapter(expected, config=CHECKS).validate_python(value)


def test_every_key_that_an_option_file_asks_for_may_stand_in_a_table():
    asked_for = {
        key
        for file in CONFIGS.rglob("*.yaml")
        for key in re.findall(rf"\$\{{{PUBLISHED}:(\w+),", file.read_text())
    }
    assert asked_for == set(ENTRIES)


@every_experiment
def test_every_row_is_named_after_an_estimator_or_is_for_the_others(experiment):
    assert set(published_table(experiment)) <= {*ESTIMATORS, OTHERS}


@every_experiment
def test_every_entry_has_a_known_key_and_a_valid_value(experiment):
    for row in published_table(experiment).values():
        assert row
        for key, value in row.items():
            assert_valid(value, ENTRIES[key])


@every_experiment
def test_every_entry_for_an_argument_of_the_estimator_is_accepted_by_it(experiment):
    """Some estimators accept less than the type of an entry: ReinMax takes no temperature < 1."""
    for name, row in published_table(experiment).items():
        if name == OTHERS:
            continue
        estimator = hydra.utils.get_class(option_targets("estimator")[name])
        for key, parameter in inspect.signature(estimator).parameters.items():
            if key in row:
                assert_valid(row[key], parameter.annotation)


@pytest.mark.parametrize(
    "key, value",
    [
        *(("optimizer", value) for value in ("adam", "Adagrad", None)),
        *(("lr", value) for value in (-1e-3, "1e-3", True, None)),
        *(("warmup", value) for value in (-1, 1.5)),
        *(("temperature", value) for value in (0.0, -1.0, "1.0")),
        *(("start", value) for value in (0.0, "1.0")),
        *(("rate", value) for value in (-1e-5, float("inf"))),
        *(("inner_samples", value) for value in (0, 2.0)),
    ],
)
def test_check_of_these_tests_refuses_invalid_values(key, value):
    with pytest.raises(ValueError):
        assert_valid(value, ENTRIES[key])
