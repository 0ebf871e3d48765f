"""Groups of runs: which runs form a group, the label of a group, and its statistics."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.comparison.runs_table import Rows, run, runs_table
from vae.comparison.table import (
    DEFAULT_SELECTION,
    Comparison,
    Selection,
    compare,
    differing,
    find_group,
    group_table,
    interval,
    numbers,
    run_table,
)
from vae.config.describe import Setting
from vae.data import DataSet, Split
from vae.evaluation import data_title
from vae.utils.errors import UserError


def compare_one_data_set(*runs: Rows, selection: Selection = DEFAULT_SELECTION) -> Comparison:
    (comparison,) = compare(runs_table(*runs), selection).values()
    return comparison


def labels(comparison: Comparison) -> list[str]:
    return list(comparison.settings.index)


def seeds(comparison: Comparison) -> list[int]:
    return comparison.runs["run", "seed"].tolist()


def notes(comparison: Comparison) -> list[str]:
    return group_table(comparison)["note", ""].tolist()


def settings_table(*settings: dict[str, Setting]) -> pd.DataFrame:
    table = pd.DataFrame(list(settings), dtype=object)
    return table.where(table.notna(), None)


# Grouping


def test_runs_that_differ_in_their_seed_alone_are_one_group_in_the_order_of_seeds():
    comparison = compare_one_data_set(run(seed=0), run(seed=2), run(seed=1))
    assert labels(comparison) == ["reinmax"]
    assert seeds(comparison) == [0, 1, 2]


@pytest.mark.parametrize(
    "setting", [{"device": "cuda"}, {"data.root": "elsewhere"}, {"tracking.pictures": 7}]
)
def test_the_device_the_data_folder_and_the_logging_do_not_separate_groups(setting):
    assert len(labels(compare_one_data_set(run(seed=0), run(seed=1, **setting)))) == 1


def test_any_other_setting_separates_groups_and_is_their_label():
    comparison = compare_one_data_set(run(), run(latents=8, seed=1))
    assert sorted(labels(comparison)) == ["latents=4", "latents=8"]
    assert list(comparison.settings) == ["latents"]


def test_groups_of_different_estimators_are_named_after_them_and_the_best_comes_first():
    comparison = compare_one_data_set(
        run("a", elbo=-120.0), run("b", elbo=-90.0), run("c", elbo=-100.0)
    )
    assert labels(comparison) == ["b", "c", "a"]
    assert comparison.methods.to_dict() == {"a": "a", "b": "b", "c": "c"}


def test_the_label_of_an_estimator_contains_the_other_settings_that_differ():
    comparison = compare_one_data_set(
        run("a"), run("b"), run("a", seed=4, **{"optimizer.lr": 1e-3})
    )
    assert set(labels(comparison)) == {"a", "b", "a optimizer.lr=0.001"}


def test_a_group_without_a_setting_that_differs_is_named_after_its_method():
    comparison = compare_one_data_set(run(), run(**{"training.clip": 1.0}))
    assert set(labels(comparison)) == {"reinmax", "training.clip=1.0"}


def test_a_setting_below_the_estimator_differs_only_between_runs_of_the_same_estimator():
    settings: list[dict[str, Setting]] = [
        {"estimator": "a", "estimator.temperature": 0.5},
        {"estimator": "b", "estimator.temperature": 1.0, "estimator.gap": 1},
        {"estimator": "c"},
    ]
    assert differing(settings_table(*settings)) == ["estimator"]
    settings.append({"estimator": "b", "estimator.temperature": 2.0, "estimator.gap": 1})
    assert differing(settings_table(*settings)) == ["estimator", "estimator.temperature"]


def test_a_setting_that_repeats_another_in_every_run_does_not_differ():
    settings = [{"latents": size, "model.latents": size, "model.width": size} for size in (4, 8)]
    assert differing(settings_table(*settings)) == ["latents", "model.width"]
    settings.append({"latents": 4, "model.latents": 5, "model.width": 4})
    assert differing(settings_table(*settings)) == ["latents", "model.latents", "model.width"]


def test_a_schedule_differs_from_a_number_by_its_name_alone():
    settings = settings_table(
        {"estimator": "a", "estimator.temperature": 0.5},
        {"estimator": "a", "estimator.temperature": "Linear", "estimator.temperature.end": 0.1},
    )
    assert differing(settings) == ["estimator.temperature"]


def test_a_setting_that_is_the_same_in_every_run_does_not_differ():
    assert differing(settings_table({"a": 1, "b": 2}, {"a": 1, "b": 3})) == ["b"]
    assert differing(settings_table({"a": 1})) == []


def test_each_data_set_has_its_own_comparison():
    comparisons = compare(
        runs_table(run(data="digits"), run(data="letters"), run(data="digits", seed=1))
    )
    assert {data: len(comparison.runs) for data, comparison in comparisons.items()} == {
        "digits": 2,
        "letters": 1,
    }


def test_a_table_without_runs_has_no_comparison():
    assert compare(pd.DataFrame()) == {}


# Runs that count


def test_the_note_of_a_group_counts_its_excluded_runs():
    comparison = compare_one_data_set(
        *(run(seed=seed) for seed in (0, 1, 2)),
        run(seed=3, status="unfinished"),
        run(seed=4, status="diverged"),
        run(seed=2),
    )
    assert len(comparison.runs) == 3
    assert notes(comparison) == ["1 unfinished, 1 diverged, 1 with a repeated seed (2)"]


def test_the_first_of_two_finished_runs_with_the_same_seed_counts():
    comparison = compare_one_data_set(
        run(elbo=-1.0, status="unfinished"), run(elbo=-2.0), run(elbo=-3.0)
    )
    assert numbers(comparison.runs, "elbo").tolist() == [-2.0]


@pytest.mark.parametrize("elbo", [math.nan, -math.inf, None])
def test_a_run_whose_elbo_is_not_finite_does_not_count(elbo):
    comparison = compare_one_data_set(run(seed=0), run(seed=1, elbo=elbo))
    assert seeds(comparison) == [0]
    assert notes(comparison) == ["n < 3, 1 whose ELBO is not finite"]


def test_a_run_without_a_model_does_not_count():
    comparison = compare_one_data_set(run(models={None: {"elbo": None}}))
    assert notes(comparison) == ["n < 3, 1 without a model"]


def test_a_group_of_fewer_than_three_seeds_is_flagged():
    assert notes(compare_one_data_set(run(seed=0), run(seed=1))) == ["n < 3"]
    assert notes(compare_one_data_set(*(run(seed=seed) for seed in range(3)))) == [""]


def test_a_group_of_several_revisions_is_flagged():
    comparison = compare_one_data_set(run(seed=0), run(seed=1, revisions="ab"), run(seed=2))
    assert notes(comparison) == ["2 revisions"]


def test_a_run_without_the_selected_model_does_not_count():
    best = compare_one_data_set(run(), selection=Selection("best"))
    assert best.runs.empty
    assert "1 without a best model" in notes(best)[0]
    assert len(compare_one_data_set(run(), selection=Selection("last")).runs) == 1


def test_the_best_model_is_compared_by_default_and_the_last_model_if_a_run_has_no_best():
    models: dict[str | None, dict[str, float | None]] = {
        "best": {"elbo": -1.0},
        "last": {"elbo": -2.0},
    }

    def elbos(*runs: Rows, selection: Selection = DEFAULT_SELECTION) -> list[float]:
        return numbers(compare_one_data_set(*runs, selection=selection).runs, "elbo").tolist()

    assert elbos(run(models=models)) == [-1.0]
    assert elbos(run(models=models), selection=Selection("last")) == [-2.0]
    assert elbos(run()) == [-100.0]
    assert elbos(run(models=models), run(seed=1)) == [-1.0, -100.0]


# Statistics


def test_mean_and_standard_deviation_are_those_of_the_seeds():
    elbos = [-101.0, -99.5, -103.25]
    comparison = compare_one_data_set(
        *(run(seed=seed, elbo=elbo) for seed, elbo in enumerate(elbos))
    )
    row = group_table(comparison).loc["reinmax"]
    assert row["elbo", "mean"] == pytest.approx(np.mean(elbos))
    assert row["elbo", "std"] == pytest.approx(stats.tstd(elbos))
    assert (row["elbo", "best_seed"], row["elbo", "worst_seed"]) == (1, 2)
    assert (row["seconds", "mean"], row["steps", "mean"], row["n", ""]) == (2.5, 100, 3)


def test_a_group_of_one_seed_has_no_standard_deviation_no_interval_and_no_best_seed():
    row = group_table(compare_one_data_set(run())).loc["reinmax"]
    assert row["elbo", "mean"] == -100.0
    assert row["elbo"][["std", "low", "high", "best_seed", "worst_seed"]].isna().all()


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_is_that_of_scipy(n):
    sample = np.random.default_rng(n).normal(-100, 2, n)
    reference = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert interval(pd.Series(sample)) == pytest.approx(tuple(reference))


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_contains_the_mean_for_95_of_100_samples(n):
    """The share of 4,000 samples is compared to within five standard errors."""
    samples = np.random.default_rng(0).normal(size=(4_000, n))
    covered = [low <= 0 <= high for low, high in map(interval, map(pd.Series, samples))]
    assert np.mean(covered) == pytest.approx(0.95, abs=5 * (0.95 * 0.05 / 4_000) ** 0.5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_values_have_no_interval(n):
    assert all(math.isnan(end) for end in interval(pd.Series(np.zeros(n))))


def test_the_training_objective_has_a_mean_and_a_standard_deviation():
    table = group_table(compare_one_data_set(run(seed=0), run(seed=2)))
    assert table["training_objective", "mean"].tolist() == [121.0]
    assert table["training_objective", "std"].tolist() == pytest.approx([2**0.5])


def test_the_setting_objective_and_the_training_objective_are_separate_columns():
    comparison = compare_one_data_set(
        run(objective="vimco"), run(objective="negative_elbo", elbo=-90.0)
    )
    table = group_table(comparison)
    assert table["setting", "objective"].tolist() == ["negative_elbo", "vimco"]
    assert table["training_objective", "mean"].tolist() == [120.0, 120.0]
    settings = {"estimator", "latents", "objective"}
    assert not settings & set(run_table(comparison))


def test_groups_are_compared_by_the_selected_bound():
    """The group with the better ELBO has the worse importance-weighted bound."""
    bounds = {"a": (-100.0, -95.0), "b": (-101.0, -92.0)}
    runs = [
        run(name, seed, elbo + seed, measured={"importance_weighted": tighter - seed})
        for name, (elbo, tighter) in bounds.items()
        for seed in range(3)
    ]
    assert labels(compare_one_data_set(*runs)) == ["a", "b"]
    selection = Selection(rank_by="importance_weighted")
    comparison = compare_one_data_set(*runs, selection=selection)
    assert labels(comparison) == ["b", "a"]
    table = group_table(comparison, selection, find_group(comparison, "a"))
    assert table["difference", "mean"].iloc[0] == pytest.approx(3.0)
    bound = table["importance_weighted"]
    assert (bound["best_seed"].iloc[0], bound["worst_seed"].iloc[0]) == (0, 2)
    assert (bound["low"] < bound["mean"]).all()
    assert ("elbo", "low") not in table


def test_a_group_that_lacks_the_selected_bound_comes_last():
    selection = Selection(rank_by="log_likelihood")
    comparison = compare_one_data_set(
        run("a", elbo=-120.0, measured={"log_likelihood": -110.0}),
        run("b", elbo=-100.0),
        selection=selection,
    )
    assert labels(comparison) == ["a", "b"]
    means = group_table(comparison, selection)["log_likelihood", "mean"]
    assert means["a"] == -110.0
    assert math.isnan(means["b"])


def test_a_group_has_no_mean_of_a_number_that_one_of_its_runs_lacks():
    comparison = compare_one_data_set(
        run(seed=0, measured={"log_likelihood": -90.0}), run(seed=1), run(seed=2)
    )
    table = group_table(comparison)
    assert table["log_likelihood"].isna().all(axis=None)
    assert table["elbo", "mean"].tolist() == [-100.0]


def test_a_bound_that_no_run_that_counts_has_is_missing_in_all_runs():
    """An empty selection of numbers is not a missing bound: there is no run to have the bound."""
    with_bound = run("a", measured={"log_likelihood": -110.0})
    selection = Selection(rank_by="log_likelihood")

    def bounds(*runs: Rows) -> pd.Series:
        comparison = compare_one_data_set(*runs, selection=selection)
        return numbers(comparison.runs, "log_likelihood")

    assert bounds(run("b"), with_bound).notna().any()
    assert bounds(run("b")).isna().tolist() == [True]
    assert bounds(run("b", status="diverged")).empty


def test_a_group_without_a_run_that_counts_comes_last_and_has_no_numbers():
    comparison = compare_one_data_set(run("a", status="diverged"), run("b", elbo=-1e6))
    assert labels(comparison) == ["b", "a"]
    table = group_table(comparison)
    assert table["n", ""].tolist() == [1, 0]
    assert math.isnan(table["elbo", "mean"].iloc[1])


def test_a_comparison_without_a_run_that_counts_has_a_group_table_without_numbers():
    comparison = compare_one_data_set(run(status="diverged"))
    table = group_table(comparison, baseline="reinmax")
    assert table["n", ""].tolist() == [0]
    assert table["difference", "pairs"].tolist() == [0]
    assert table["elbo"].isna().all(axis=None)
    assert notes(comparison) == ["n < 3, 1 diverged"]


def test_a_setting_of_some_groups_keeps_its_type_in_the_table():
    comparison = compare_one_data_set(run(), run(**{"training.steps": 40}))
    steps = group_table(comparison)["setting", "training.steps"]
    assert sorted(map(str, steps)) == ["40", "None"]


def test_the_table_of_runs_has_the_numbers_of_each_run_that_counts():
    comparison = compare_one_data_set(
        run("a", seed=1, elbo=-101.5),
        run("b", elbo=-90.0),
        run("a"),
        run("b", 1, status="diverged"),
    )
    table = run_table(comparison)
    assert list(table) == [
        *("run", "group", "seed", "elbo", "rate", "log_likelihood"),
        *("training_objective", "seconds", "steps"),
    ]
    assert table["run"].tolist() == ["1/b/0", "2/a/0", "0/a/1"]
    assert table["group"].tolist() == ["b", "a", "a"]
    assert table["seed"].tolist() == [0, 0, 1]
    assert table["elbo"].tolist() == [-90.0, -100.0, -101.5]


# Baseline


def test_differences_are_paired_by_seed():
    """An effect that all groups share at a seed cancels. Seeds of a single group do not count."""
    baseline_runs = [run("a", seed=seed, elbo=-100.0 - 10 * seed) for seed in range(4)]
    better_runs = [run("b", seed=seed, elbo=-99.0 - 10 * seed) for seed in (1, 2, 3, 7)]
    comparison = compare_one_data_set(*baseline_runs, *better_runs)
    differences = group_table(comparison, baseline=find_group(comparison, "a"))["difference"]
    assert differences["pairs"].to_dict() == {"a": 0, "b": 3}
    assert differences.loc["b", ["mean", "low"]].tolist() == pytest.approx([1.0, 1.0])
    assert math.isnan(differences.loc["a", "mean"])


@pytest.mark.parametrize(
    ("description", "found"),
    [
        ("b", "b"),
        (" b , shared = 3", "b"),
        ("estimator=b", "b"),
        ("estimator=a,latents=8", "a latents=8"),
        ("a,latents=8.0", "a latents=8"),
        ("8e0", "a latents=8"),
        (" a latents=8 ", "a latents=8"),
        ("b,shared=3", "b"),
    ],
)
def test_a_group_is_found_by_its_settings(description, found):
    comparison = compare_one_data_set(
        run("a", shared=3), run("b", shared=3), run("a", latents=8, shared=3)
    )
    assert found in {label.replace(" latents=4", "") for label in labels(comparison)}
    assert find_group(comparison, description).replace(" latents=4", "") == found


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("c", "none"),
        ("estimator=a", "2 of the groups"),
        ("latents=many", "none"),
        ("gap=None", "none"),
    ],
)
def test_a_description_that_does_not_fit_exactly_one_group_is_refused(description, words):
    comparison = compare_one_data_set(run("a"), run("b"), run("a", latents=8))
    with pytest.raises(UserError, match=words):
        find_group(comparison, description)


# Title


def data_set(binary: bool) -> DataSet:
    split = Split(torch.zeros(1200, 4, dtype=torch.uint8), torch.zeros(1200, dtype=torch.long))
    return DataSet("digits", split, split, split, False, binary)


def test_the_title_says_what_the_numbers_are_measured_on():
    measured_on = "digits, test, 1,200 images, in nats per image"
    assert data_title(data_set(binary=True), 1000) == f"{measured_on}, IW bound at m = 1,000"


def test_the_title_says_that_the_bounds_of_grey_pixels_bound_no_likelihood():
    title = data_title(data_set(binary=False), 100)
    assert "in nats per image (grey pixels: no likelihood), IW" in title
