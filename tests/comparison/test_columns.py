"""The columns of tables for people: which are shown, and how they fit the width of a terminal."""

import math

import pandas as pd
import pytest

from tests.comparison.runs_table import Rows, run, runs_table
from vae.comparison.columns import Layout, choose, group_layout, render_short, row_layout
from vae.comparison.table import Selection, compare, group_table
from vae.comparison.text import Bound, render_rows
from vae.utils.errors import UserError

MORE = "Ask for more."


def layout(*runs: Rows, ranked_by: Bound = "elbo", baseline: str | None = None) -> Layout:
    selection = Selection(rank_by=ranked_by)
    (comparison,) = compare(runs_table(*runs), selection).values()
    return group_layout(group_table(comparison, selection, baseline))


def three_seeds(method: str, elbo: float, **settings: object) -> list[Rows]:
    bounds: dict[str, float | None] = {"importance_weighted": elbo + 1, "log_likelihood": elbo + 2}
    return [run(method, seed, elbo - seed, measured=bounds, **settings) for seed in range(3)]


def two_groups() -> list[Rows]:
    return three_seeds("straight_through_gumbel", -90.0) + three_seeds("reinmax", -95.0)


def headings(text: str) -> list[str]:
    """Return the headings of the only table, which are separated by two spaces or more."""
    line = text.split("\n\n")[1].splitlines()[0]
    return [heading.strip() for heading in line.split("  ") if heading]


def test_short_table_has_the_bounds_and_the_difference_in_the_order_of_importance():
    table = layout(*two_groups(), baseline="reinmax")
    short = ["difference", "95 % of the difference", "IW bound", "log p(x)"]
    assert headings(render_short({"digits": table}, None, MORE)) == [
        *("estimator", "n", "ELBO", "95 %"),
        *short,
    ]
    assert "best seed" in table.table


def test_short_table_has_the_number_of_pairs_if_a_difference_is_over_fewer_seeds_than_its_group():
    without_a_seed = layout(*two_groups()[1:], baseline="straight_through_gumbel")
    text = render_short({"digits": without_a_seed}, None, MORE)
    assert headings(text)[4:7] == ["difference", "pairs", "IW bound"]
    assert text.splitlines()[-1].split()[:2] == ["reinmax", "3"]
    assert without_a_seed.table["pairs"].tolist() == ["0", "2"]
    without_a_pair = layout(run("a", 0), run("b", 1), baseline="a")
    assert "pairs" not in headings(render_short({"digits": without_a_pair}, None, MORE))


def test_bound_that_orders_the_groups_comes_first_in_the_short_table():
    table = layout(*two_groups(), ranked_by="log_likelihood", baseline="reinmax")
    assert headings(render_short({"digits": table}, None, MORE)) == [
        *("estimator", "n", "log p(x)", "95 %"),
        *("difference of the log p(x)", "95 % of the difference", "ELBO", "IW bound"),
    ]


def test_short_table_ends_with_the_note_if_there_is_one():
    table = layout(run("a"), run("b"))
    assert headings(render_short({"digits": table}, None, MORE)) == [
        *("estimator", "n", "ELBO", "note"),
    ]


def test_columns_are_left_out_from_the_right_and_named_below_the_table():
    text = render_short({"digits": layout(*two_groups(), baseline="reinmax")}, 80, MORE)
    assert headings(text) == ["estimator", "n", "ELBO", "95 %", "difference"]
    named = text.split("\n\n")[-1]
    assert named == f"No room for: 95 % of the difference, IW bound, log p(x).\n{MORE}"


def test_hint_is_not_wrapped_so_that_a_command_in_it_can_be_pasted():
    hint = f"All columns: python evaluate.py outputs/{'x' * 60} --columns all"
    text = render_short({"digits": layout(*two_groups())}, 40, hint)
    assert hint in text.splitlines()


def test_nothing_is_named_if_all_columns_fit():
    text = render_short({"digits": layout(*two_groups())}, 160, MORE)
    assert text == render_short({"digits": layout(*two_groups())}, None, MORE)
    assert MORE not in text


@pytest.mark.parametrize("width", [*range(20, 90, 7), 120])
def test_no_line_is_longer_than_the_width(width):
    settings = {
        f"model.networks.setting_{letter}": f"relaxation_{letter}" for letter in "abcdefgh"
    }
    other = {key: value + "_with_temperature" for key, value in settings.items()}
    runs = three_seeds("reinmax", -90.0, **settings) + three_seeds("reinforce", -95.0, **other)
    title = "a data set with a long name, " * 5
    text = render_short({title: layout(*runs)}, width, MORE)
    assert max(map(len, text.splitlines())) <= width
    assert "-91.00 ± 1.00" in text


def test_name_of_a_setting_is_shortened_only_if_the_table_does_not_fit():
    runs = [
        *three_seeds("reinmax", -90.0, **{"estimator.temperature": 1.0, "optimizer.lr": 0.1}),
        *three_seeds("reinmax", -95.0, **{"estimator.temperature": 0.5, "optimizer.lr": 0.2}),
    ]
    full = ["estimator.temperature", "optimizer.lr", "n"]
    assert headings(render_short({"": layout(*runs)}, 120, MORE))[:3] == full
    assert headings(render_short({"": layout(*runs)}, 70, MORE))[:3] == ["temperature", "lr", "n"]


def test_settings_whose_last_words_are_equal_keep_their_names():
    table = pd.DataFrame({"a.size": ["x" * 30], "b.size": ["y" * 30], "n": [3]})
    text = render_short({"": row_layout(table, ["a.size", "b.size"])}, 50, MORE)
    assert headings(text)[:2] == ["a.size", "b.size"]


def test_run_folders_lose_the_folders_that_all_runs_share():
    table = pd.DataFrame({"run": ["/long/path/a/x", "/long/path/b/x"], "elbo": [-1.0, -2.0]})
    text = render_short({"": row_layout(table, ["run"])}, 15, MORE)
    assert text.splitlines()[2:5] == ["run   ELBO", "a/x  -1.00", "b/x  -2.00"]
    assert "/long/path/a/x" in render_short({"": row_layout(table, ["run"])}, 80, MORE)


def test_long_label_is_cut_in_the_middle_rather_than_the_bound_left_out():
    table = pd.DataFrame({"model": ["seed_0_temperature_0.3: best"], "elbo": [-123.4]})
    text = render_short({"": row_layout(table, ["model"])}, 24, MORE)
    assert text.splitlines()[3] == "seed_0...: best  -123.40"


def test_rows_begin_with_the_seed_and_the_bounds():
    table = pd.DataFrame(
        {"run": ["x"], "group": ["a"], "seed": [0], "elbo": [-2.0], "rate": [1.0]}
        | {"importance_weighted": [-1.0], "log_likelihood": [None]}
    )
    assert row_layout(table, ["run"]).short == ["seed", "ELBO", "IW bound", "group", "rate"]
    assert row_layout(table, ["run"], "importance_weighted").short[1] == "IW bound"


@pytest.mark.parametrize("width", [None, 40])
def test_rows_are_rendered_alike_with_and_without_pandas(width):
    rows: list[dict[str, object]] = [
        {"model": "best", "active": 3, "rate": 1.0, "elbo": -2.0, "log_likelihood": None},
        {"model": "last", "active": 4, "rate": math.nan, "elbo": -3.0, "log_likelihood": None},
    ]
    text = render_rows("digits", rows, "model", width, MORE)
    assert headings(text)[:2] == ["model", "ELBO"]
    assert text == render_short({"digits": row_layout(pd.DataFrame(rows), ["model"])}, width, MORE)


def test_chosen_columns_follow_the_labels_and_are_named_as_in_the_table_or_in_csv():
    layouts = {"digits": layout(*two_groups(), baseline="reinmax")}
    chosen = choose(layouts, ["steps", "elbo_std", "ELBO", "difference_high", "group", "pairs"])
    assert list(chosen["digits"]) == [
        *("estimator", "n", "steps", "ELBO", "95 % of the difference", "pairs"),
    ]
    assert list(choose(layouts, ["all"])["digits"]) == list(layouts["digits"].table)


def test_column_without_a_value_is_empty_and_a_column_that_no_table_has_is_an_error():
    layouts = {"digits": layout(run("a"), run("b"))}
    assert choose(layouts, ["log_likelihood"])["digits"]["log p(x)"].isna().all()
    with pytest.raises(UserError, match="'elbow' is no column; did you mean elbo"):
        choose(layouts, ["elbow"])
