"""Tables as text: for people (plain and Markdown) and for programs (CSV and JSON)."""

import json
import math

import pandas as pd

from tests.comparison.runs_table import Rows, run, runs_table
from vae.comparison.render import flatten, readable, render
from vae.comparison.table import DEFAULT_SELECTION, Selection, compare, group_table

TABLE = pd.DataFrame({"run": ["x", "longer"], "elbo": [-12.345, math.nan], "active": [2, 10]})


def groups(
    *runs: Rows, selection: Selection = DEFAULT_SELECTION, baseline: str | None = None
) -> pd.DataFrame:
    (comparison,) = compare(runs_table(*runs), selection).values()
    return group_table(comparison, selection, baseline)


def three_seeds_of_a_and_b() -> list[Rows]:
    return [
        run(method, seed, elbo - seed)
        for method, elbo in (("a", -90.0), ("b", -95.0))
        for seed in range(3)
    ]


def test_a_plain_table_has_aligned_columns_below_its_title():
    assert render({"mnist": TABLE}, "table").splitlines() == [
        "mnist:",
        "",
        "run       elbo  active",
        "x       -12.35       2",
        "longer       -      10",
    ]


def test_a_markdown_table_has_a_heading_and_as_many_cells_in_every_row():
    lines = render({"mnist": TABLE}, "markdown").splitlines()
    assert lines[0] == "### mnist"
    assert lines[-1].split() == ["|", "longer", "|", "-", "|", "10", "|"]
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_json_rounds_nothing_and_a_number_that_is_not_finite_is_null():
    assert json.loads(render({"": pd.DataFrame({"x": [1 / 3, math.inf]})}, "json")) == {
        "": [{"x": 1 / 3}, {"x": None}]
    }
    tables = json.loads(render({"mnist": TABLE, "letters": TABLE}, "json"))
    assert tables["letters"][0] == {"run": "x", "elbo": -12.345, "active": 2}
    assert tables["mnist"][1]["elbo"] is None


def test_csv_is_one_table_that_rounds_nothing():
    lines = render({"mnist": TABLE, "letters": TABLE}, "csv").splitlines()
    assert lines[:3] == ["table,run,elbo,active", "mnist,x,-12.345,2", "mnist,longer,,10"]
    assert len(lines) == 5


def test_a_setting_of_some_groups_keeps_its_type_in_json():
    table = flatten(groups(run(), run(**{"training.steps": 40})))
    (rows,) = json.loads(render({"digits": table}, "json")).values()
    assert sorted(str(row["training.steps"]) for row in rows) == ["40", "None"]


def test_a_flat_group_table_has_one_name_per_column():
    table = flatten(groups(*three_seeds_of_a_and_b(), baseline="a"))
    assert list(table) == [
        *("group", "estimator", "n"),
        *("elbo", "elbo_std", "elbo_low", "elbo_high", "best_seed", "worst_seed"),
        *("rate", "rate_std", "log_likelihood", "log_likelihood_std"),
        *("difference", "difference_low", "difference_high", "pairs"),
        *("training_objective", "training_objective_std", "seconds", "steps", "note"),
    ]
    assert table["group"].tolist() == ["a", "b"]


def test_seeds_and_pairs_are_integers_in_csv():
    table = flatten(groups(*three_seeds_of_a_and_b(), baseline="a"))
    columns = table[["best_seed", "worst_seed", "pairs"]]
    assert render({"digits": columns}, "csv").splitlines()[1:] == ["digits,0,2,0", "digits,0,2,3"]


def test_a_readable_table_has_the_standard_deviations_and_no_empty_column():
    table = readable(groups(*three_seeds_of_a_and_b()))
    assert table["ELBO"].iloc[0] == "-91.00 ± 1.00"
    assert table["95 %"].iloc[0].count(" to ") == 1
    assert "log p(x)" not in table
    assert "note" not in table
    assert list(table)[:2] == ["estimator", "n"]


def test_a_readable_table_shows_the_setting_objective():
    table = readable(groups(run(objective="vimco"), run(objective="negative_elbo", elbo=-90.0)))
    assert table["objective"].tolist() == ["negative_elbo", "vimco"]


def test_a_readable_table_shows_the_training_objective_with_its_standard_deviation():
    table = readable(groups(run(seed=0), run(seed=2)))
    assert table["training objective"].tolist() == ["121.00 ± 1.41"]


def test_a_readable_table_says_which_bound_the_difference_is_of():
    runs = [
        run(method, seed, measured={"importance_weighted": -90.0 - seed})
        for method in ("a", "b")
        for seed in range(3)
    ]
    selection = Selection(rank_by="importance_weighted")
    table = readable(groups(*runs, selection=selection, baseline="a"))
    assert "difference of the IW bound" in table


def test_a_group_without_a_run_that_counts_can_be_rendered():
    table = readable(groups(run("a", status="diverged"), run("b", elbo=-1e6)))
    lines = render({"digits": table}, "table").splitlines()
    assert lines[0] == "digits:"
    assert [line.split()[0] for line in lines[-2:]] == ["b", "a"]
