"""Runs that do not count, or only in a part of a table, are named with the reason, each once."""

import math
from pathlib import Path

import pytest

from tests.comparison.runs_table import Rows, run, runs_table
from vae.comparison.omissions import excluded_runs, partial_runs, unread_runs
from vae.comparison.table import Comparison, Selection, compare
from vae.utils.errors import UserError


def compare_runs(*runs: Rows, selection: Selection | None = None) -> dict[str, Comparison]:
    return compare(runs_table(*runs), selection or Selection())


def test_runs_that_do_not_count_are_named_once_per_reason_in_all_data_sets():
    comparisons = compare_runs(
        run("a"),
        run("a", status="unfinished"),
        run("b", status="diverged"),
        run("b", data="letters", status="unfinished"),
        run("a"),
        run("a", seed=1, elbo=math.nan),
        run("a", seed=2, models={None: {"elbo": None}}),
    )
    assert sorted(excluded_runs(comparisons.values())) == [
        "not counted, diverged: 2/b/0",
        "not counted, unfinished: 1/a/0, 3/b/0",
        "not counted, whose ELBO is not finite: 5/a/1",
        "not counted, with a repeated seed (0): 4/a/0",
        "not counted, without a model: 6/a/2",
    ]


def test_runs_without_the_selected_model_are_named():
    models = {"best": {"elbo": -1.0}, "last": {"elbo": -2.0}}
    comparisons = compare_runs(run(), run(seed=1, models=models), selection=Selection("best"))
    assert excluded_runs(comparisons.values()) == [
        "not counted, without a best model: 0/reinmax/0"
    ]


def test_runs_without_the_selected_bound_are_named():
    selection = Selection(rank_by="log_likelihood")
    comparisons = compare_runs(
        run(measured={"log_likelihood": -90.0}),
        run(seed=1),
        run(data="letters"),
        selection=selection,
    )
    assert partial_runs(comparisons, selection, {}) == [
        "letters: no run has the log p(x), so groups are ordered by the ELBO",
        "without the log p(x), so its group has no mean of it: 1/reinmax/1",
    ]


@pytest.mark.parametrize(
    ("missing", "names"),
    [(["seconds", "steps"], "seconds, steps"), (["training_objective"], "training objective")],
)
def test_runs_that_did_not_report_a_number_are_named(missing, names):
    rows = run(seed=1)
    rows[0]["run"] |= dict.fromkeys(missing)
    comparisons = compare_runs(run(), rows)
    assert partial_runs(comparisons, Selection(), {}) == [
        f"not in the mean of {names}: 1/reinmax/1"
    ]


def test_runs_without_a_pair_are_named_for_each_group_of_a_difference():
    comparisons = compare_runs(
        *(run("a", seed) for seed in (0, 1)),
        *(run("b", seed) for seed in (1, 2, 3)),
        *(run("c", seed) for seed in (0, 1)),
        run("d", status="diverged"),
    )
    assert sorted(partial_runs(comparisons, Selection(), {"digits": "a"})) == [
        "not in a difference, because a lacks the seed: 3/b/2, 4/b/3",
        "not in a difference, because b lacks the seed: 0/a/0",
    ]
    assert partial_runs(comparisons, Selection(), {}) == []


def test_errors_that_do_not_begin_with_the_folder_name_all_runs_that_have_them():
    errors: dict[Path, Exception] = {
        Path("a"): UserError("no images"),
        Path("b"): UserError("b/config.yaml cannot be read"),
        Path("c"): UserError("no images"),
    }
    assert unread_runs(errors) == [
        "b/config.yaml cannot be read",
        "not counted, no images: a, c",
    ]
