"""Groups of runs: what is one, what it is called, and its statistics."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from vae.comparison import groups as comparison
from vae.comparison import tables
from vae.comparison.groups import ELBO, Group, Run, View, differing, group, interval, title
from vae.data.source import DataSet, Split
from vae.comparison.tables import readable, render
from vae.utils.errors import UserError


def run(
    method="reinmax", seed=0, elbo=-100.0, status="finished", data="digits", **settings
) -> Run:
    numbers = {"elbo": elbo, "rate": 5.0, "log_likelihood": None}
    return Run(
        folder=f"{method}/{seed}",
        data=data,
        method=method,
        settings={"estimator": method, "seed": seed, "latents": 4} | settings,
        seed=seed,
        status=status,
        measured={"last": numbers},
        steps=100,
        objective=120.0 + seed,
        seconds=2.5,
        made_with={"revisions": frozenset("a")},
    )


def only(runs: list[Run], view=ELBO) -> list[Group]:
    (groups,) = group(runs, view).values()
    return groups


# What is one group


def test_runs_that_differ_in_their_seed_alone_are_one_group():
    (one,) = only([run(seed=0), run(seed=2), run(seed=1)])
    assert [each.seed for each in one.runs] == [0, 1, 2]
    assert one.label == "reinmax"


@pytest.mark.parametrize(
    "setting", [{"device": "cuda"}, {"data.root": "elsewhere"}, {"tracking.pictures": 7}]
)
def test_where_it_ran_and_what_was_logged_are_no_settings(setting):
    assert len(only([run(seed=0), run(seed=1, **setting)])) == 1


def test_any_other_setting_parts_groups_and_names_them():
    groups = only([run(), run(latents=8, seed=1)])
    assert {each.label for each in groups} == {"latents=4", "latents=8"}
    assert {tuple(each.settings) for each in groups} == {("latents",)}


def test_estimators_are_named_by_themselves_and_ordered_by_their_bound():
    groups = only([run("a", elbo=-120.0), run("b", elbo=-90.0), run("c", elbo=-100.0)])
    assert [each.label for each in groups] == ["b", "c", "a"]


def test_estimators_that_differ_in_more_say_so():
    groups = only([run("a"), run("b"), run("a", **{"optimizer.lr": 1e-3, "seed": 4})])
    assert {each.label for each in groups} == {"a", "b", "a optimizer.lr=0.001"}


def test_the_settings_of_another_estimator_are_no_difference():
    """Only among runs that share what stands above a key does the key tell them apart."""
    settings = [
        {"estimator": "a", "estimator.temperature": 0.5},
        {"estimator": "b", "estimator.temperature": 1.0, "estimator.gap": 1},
        {"estimator": "c"},
    ]
    assert differing(settings) == ["estimator"]
    settings.append({"estimator": "b", "estimator.temperature": 2.0, "estimator.gap": 1})
    assert differing(settings) == ["estimator", "estimator.temperature"]


def test_what_only_repeats_a_key_above_is_said_once():
    settings = [{"latents": size, "model.latents": size, "model.width": size} for size in (4, 8)]
    assert differing(settings) == ["latents", "model.width"]
    settings.append(
        {"latents": 4, "model.latents": 5, "model.width": 4}
    )  # says something of its own
    assert differing(settings) == ["latents", "model.latents", "model.width"]


def test_a_schedule_differs_from_a_number_by_its_name_alone():
    settings = [
        {"estimator": "a", "estimator.temperature": 0.5},
        {"estimator": "a", "estimator.temperature": "Linear", "estimator.temperature.end": 0.1},
    ]
    assert differing(settings) == ["estimator.temperature"]


def test_what_is_the_same_everywhere_is_not_shown():
    assert differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}]) == ["b"]
    assert differing([{"a": 1}]) == []


def test_data_sets_are_never_in_one_table():
    tables = group([run(data="digits"), run(data="letters"), run(data="digits", seed=1)])
    assert {data: len(groups[0].runs) for data, groups in tables.items()} == {
        "digits": 2,
        "letters": 1,
    }


# What counts


def test_what_is_left_out_is_said():
    runs = [run(seed=s) for s in (0, 1, 2)]
    runs += [run(seed=3, status="unfinished"), run(seed=4, status="diverged"), run(seed=2)]
    (one,) = only(runs)
    assert len(one.runs) == 3
    assert one.note() == "1 unfinished, 1 diverged, 1 a second time seed 2"


@pytest.mark.parametrize("elbo", [math.nan, -math.inf, None])
def test_a_bound_that_is_no_number_counts_in_no_mean(elbo):
    (one,) = only([run(seed=0), run(seed=1, elbo=elbo)])
    assert [each.seed for each in one.runs] == [0]
    assert one.note() == "n < 3, 1 whose ELBO is no number"


def test_a_run_without_any_model_says_so():
    empty = replace(run(seed=0), measured={})
    assert only([empty])[0].note() == "n < 3, 1 without a model"


def test_runs_of_different_objectives_keep_their_names():
    """The setting is not overwritten by what training minimised."""
    runs = [run(objective="vimco"), run(objective="negative_elbo", elbo=-90.0)]
    groups = only(runs)
    table = tables.group_table(groups)
    assert table["objective"].tolist() == ["negative_elbo", "vimco"]
    assert table["training_objective"].tolist() == [120.0, 120.0]
    assert list(readable(table)["objective"]) == ["negative_elbo", "vimco"]
    assert not set(tables.run_table(groups)) & set(runs[0].settings) - {"seed"}


def test_few_seeds_are_flagged():
    assert only([run(seed=0), run(seed=1)])[0].note() == "n < 3"
    assert only([run(seed=s) for s in range(3)])[0].note() == ""


def test_runs_of_different_code_are_flagged():
    one, other = run(seed=0), run(seed=1)
    mixed = {"revisions": frozenset("ab"), "devices": frozenset()}
    other = Run(**vars(other) | {"made_with": mixed})
    (both,) = only([one, other, run(seed=2)])
    assert both.note() == "2 revisions"


def test_groups_are_compared_by_the_bound_that_is_asked_for():
    """The better ELBO has the worse bound here, and the other way round."""
    bound = View(by="importance_weighted")
    given = {"a": (-100.0, -95.0), "b": (-101.0, -92.0)}
    runs = []
    for name, (elbo, tighter) in given.items():
        for seed in range(3):
            one = run(name, seed, elbo + seed)
            one.measured["last"]["importance_weighted"] = tighter - seed
            runs.append(one)
    assert [each.label for each in only(runs)] == ["a", "b"]
    groups = only(runs, bound)
    assert [each.label for each in groups] == ["b", "a"]
    table = tables.group_table(groups, bound, comparison.find(groups, "a"))
    assert table.difference[0] == pytest.approx(3.0)
    assert (table.best_seed[0], table.worst_seed[0]) == (0, 2)
    assert (table.importance_weighted_low < table.importance_weighted).all()
    assert "elbo_low" not in table
    assert "difference of the IW bound" in readable(table)


def test_a_bound_that_a_group_lacks_puts_it_last():
    with_it, without = run("a", elbo=-120.0), run("b", elbo=-100.0)
    with_it.measured["last"]["log_likelihood"] = -110.0
    groups = only([with_it, without], View(by="log_likelihood"))
    assert [each.label for each in groups] == ["a", "b"]
    table = tables.group_table(groups, View(by="log_likelihood"))
    assert table.log_likelihood[0] == -110.0 and math.isnan(table.log_likelihood[1])


def test_whether_any_run_has_the_bound():
    by = View(by="log_likelihood")
    with_it = run("a")
    with_it.measured["last"]["log_likelihood"] = -110.0
    assert not comparison.lacking(only([run("b"), with_it], by), by)
    assert comparison.lacking(only([run("b")], by), by)
    assert not comparison.lacking(only([run("b", status="diverged")], by), by)


def test_a_model_that_a_run_has_not_is_not_replaced():
    (one,) = only([run()], View("best"))
    assert one.runs == [] and "1 without a best model" in one.note()
    assert len(only([run()], View("last"))[0].runs) == 1


def test_the_best_model_is_the_default_and_the_last_its_substitute():
    both = Run(**vars(run()) | {"measured": {"best": {"elbo": -1.0}, "last": {"elbo": -2.0}}})
    assert both.numbers(None) == {"elbo": -1.0}
    assert both.numbers("last") == {"elbo": -2.0}
    assert run().numbers(None)["elbo"] == -100.0


def test_a_group_without_a_finished_run_comes_last_and_has_no_numbers():
    groups = only([run("a", status="diverged"), run("b", elbo=-1e6)])
    assert [each.label for each in groups] == ["b", "a"]
    table = tables.group_table(groups)
    assert table.n.tolist() == [1, 0]
    assert math.isnan(table.elbo[1])
    render({"digits": readable(table)}, "table")


# Statistics


def test_mean_and_standard_deviation_are_those_of_the_seeds():
    elbos = [-101.0, -99.5, -103.25]
    table = tables.group_table(only([run(seed=s, elbo=e) for s, e in enumerate(elbos)]))
    assert table.elbo[0] == pytest.approx(np.mean(elbos))
    assert table.elbo_std[0] == pytest.approx(stats.tstd(elbos))
    assert (table.best_seed[0], table.worst_seed[0]) == (1, 2)
    assert (table.seconds[0], table.steps[0], table.n[0]) == (2.5, 100, 3)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_is_scipys(n):
    sample = np.random.default_rng(n).normal(-100, 2, n)
    reference = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert interval(sample) == pytest.approx(tuple(reference))


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_what_it_says(n):
    """The mean, at 95 of 100 samples of so few seeds: 4,000 of them, to five standard errors."""
    samples = np.random.default_rng(0).normal(size=(4_000, n))
    covered = [low <= 0 <= high for low, high in map(interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=5 * (0.95 * 0.05 / 4_000) ** 0.5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_values_have_no_interval(n):
    assert all(math.isnan(end) for end in interval(np.zeros(n)))


def test_differences_are_paired_by_seed():
    """The seeds' own ups and downs cancel, and a seed that only one group has does not count."""
    base = [run("a", seed=s, elbo=-100.0 - 10 * s) for s in range(4)]
    better = [run("b", seed=s, elbo=-99.0 - 10 * s) for s in (1, 2, 3, 7)]
    groups = only(base + better)
    baseline = comparison.find(groups, "a")
    table = tables.group_table(groups, ELBO, baseline).set_index("group")
    assert table.pairs["b"] == 3
    assert (table.difference["b"], table.difference_low["b"]) == pytest.approx((1.0, 1.0))
    assert math.isnan(table.difference["a"])


@pytest.mark.parametrize(
    "description, found",
    [
        ("b", "b"),
        ("estimator=b", "b"),
        ("estimator=a,latents=8", "a latents=8"),
        ("a,latents=8.0", "a latents=8"),
        ("8e0", "a latents=8"),
        ("b,shared=3", "b"),
    ],
)
def test_a_baseline_by_what_it_is(description, found):
    groups = only([run("a", shared=3), run("b", shared=3), run("a", latents=8, shared=3)])
    labels = {each.label.replace(" latents=4", "") for each in groups}
    assert found in labels
    chosen = comparison.find(groups, description)
    assert chosen.label.replace(" latents=4", "") == found


@pytest.mark.parametrize(
    "description, words",
    [("c", "none"), ("estimator=a", "2 of the groups"), ("latents=many", "none")],
)
def test_a_baseline_that_is_not_one_group_is_refused(description, words):
    with pytest.raises(UserError, match=words):
        comparison.find(only([run("a"), run("b"), run("a", latents=8)]), description)


# Text

TABLE = pd.DataFrame({"run": ["x", "longer"], "elbo": [-12.345, math.nan], "active": [2, 10]})


def test_a_table():
    assert render({"mnist": TABLE}, "table").splitlines() == [
        "mnist:",
        "",
        "run       elbo    active",
        "x       -12.35         2",
        "longer       -        10",
    ]


def test_markdown():
    lines = render({"mnist": TABLE}, "markdown").splitlines()
    assert lines[0] == "### mnist"
    assert lines[-1].split() == ["|", "longer", "|", "-", "|", "10", "|"]
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_every_group_has_a_name():
    groups = only([run(), run(**{"training.clip": 1.0})])
    assert {each.label for each in groups} == {"reinmax", "training.clip=1.0"}


def test_a_setting_that_some_groups_have_not_stays_as_it_is():
    groups = only([run(), run(**{"training.steps": 40})])
    (rows,) = json.loads(render({"x": tables.group_table(groups)}, "json")).values()
    steps = [row["training.steps"] for row in rows]
    assert sorted(map(str, steps)) == ["40", "None"]


def test_csv_and_json_round_nothing():
    tables = {"mnist": TABLE, "letters": TABLE}
    third = pd.DataFrame({"x": [1 / 3, math.inf]})
    assert json.loads(render({"": third}, "json")) == {"": [{"x": 1 / 3}, {"x": None}]}
    rows = render(tables, "csv").splitlines()
    assert rows[:3] == ["table,run,elbo,active", "mnist,x,-12.345,2", "mnist,longer,,10"]
    assert len(rows) == 5
    read = json.loads(render(tables, "json"))
    assert read["letters"][0] == {"run": "x", "elbo": -12.345, "active": 2}
    assert read["mnist"][1]["elbo"] is None


def test_a_readable_table_has_the_spread_and_no_empty_column():
    runs = [run(m, seed=s, elbo=e - s) for m, e in (("a", -90.0), ("b", -95.0)) for s in range(3)]
    table = readable(tables.group_table(only(runs)))
    assert table.ELBO[0] == "-91.00 ± 1.00"
    assert table["95 %"][0].count(" to ") == 1
    assert "log p(x)" not in table and "note" not in table
    assert list(table)[:2] == ["estimator", "n"]


def data(binary: bool) -> DataSet:
    split = Split(torch.zeros(1200, 4, dtype=torch.uint8), torch.zeros(1200, dtype=torch.long))
    return DataSet("digits", split, split, split, False, binary)


def test_a_title_says_what_was_measured():
    measured = "digits, test, 1,200 images, in nats per image"
    assert title(data(binary=True), 1000) == f"{measured}, IW bound at m = 1,000"


def test_a_title_says_where_a_bound_bounds_no_likelihood():
    assert "in nats per image (grey pixels: no likelihood), IW" in title(data(binary=False), 100)


def test_what_training_minimised_stands_beside_the_bounds():
    table = tables.group_table(only([run(seed=0), run(seed=2)]))
    assert table["training_objective"].tolist() == [121.0]
    assert table["training_objective_std"].tolist() == pytest.approx([2**0.5])
    assert readable(table)["training objective"].tolist() == ["121.00 ± 1.41"]
