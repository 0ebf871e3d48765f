"""Tables of finished runs."""

import pytest
import torch

from vae.comparison import table, title
from vae.data import DataSet, Split

ROWS = {
    "short": {"elbo": -12.345, "log_likelihood": None, "active": 2},
    "a longer name": {"elbo": -101.0, "log_likelihood": -100.5, "active": 10},
}


def cells(rows: dict) -> list[list[str]]:
    """The words of a table below its title."""
    return [line.split() for line in table("title", rows).splitlines()[2:]]


def test_a_table():
    assert table("mnist", ROWS).splitlines() == [
        "mnist:",
        "",
        "                  elbo  log_likelihood  active",
        "short           -12.35               -       2",
        "a longer name  -101.00         -100.50      10",
    ]


def test_every_line_is_as_wide():
    assert len({len(line) for line in table("title", ROWS).splitlines()[2:]}) == 1


@pytest.mark.parametrize(
    "value, shown",
    [
        (None, "-"),
        (0, "0"),
        (0.0, "0.00"),
        (3, "3"),
        (3.0, "3.00"),
        (-0.126, "-0.13"),
        (12345.678, "12345.68"),
    ],
)
def test_a_number(value, shown):
    assert cells({"run": {"x": value}}) == [["x"], ["run", shown]]


def test_a_number_that_only_some_rows_have_is_a_dash_in_the_others():
    assert cells({"a": {"x": 1}, "b": {"y": 2}}) == [["x", "y"], ["a", "1", "-"], ["b", "-", "2"]]


def data(binary: bool) -> DataSet:
    split = Split(torch.zeros(1200, 4, dtype=torch.uint8), torch.zeros(1200, dtype=torch.long))
    return DataSet("digits", (2, 2), split, split, split, False, binary)


def test_a_title_says_what_was_measured():
    assert title(data(binary=True)) == "digits, test, 1,200 images, in nats per image"


def test_a_title_says_where_a_bound_bounds_no_likelihood():
    assert title(data(binary=False)) == f"{title(data(binary=True))} (grey pixels: no likelihood)"
