"""Group runs that differ in their seed alone, and compute the statistics of each group.

The input is the table of `vae.comparison.collect`. The label of a group follows from the settings
that differ between groups, never from the name of a folder.
"""

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from vae.comparison.text import Bound
from vae.config.describe import Setting
from vae.training.checkpoint import Which
from vae.utils.errors import UserError

ENOUGH_SEEDS = 3
"""The fewest seeds that an interval is given for. Groups with fewer seeds are flagged."""

_IGNORED_KEYS = (
    "seed",
    "device",
    "training.capture",
    "data.root",
    "data.mirror",
    "importance_samples",
    "tracking",
)
"""Keys that do not change what a run learns, and therefore do not separate groups."""


class Selection(NamedTuple):
    """Which model of each run is compared, and by which bound.

    Attributes:
        model: The best or the last model; None for the best, or the last if a run has no best.
        rank_by: The bound by which groups are ordered, and whose intervals, best seeds and
            differences are reported.
    """

    model: Which | None = None
    rank_by: Bound = "elbo"


DEFAULT_SELECTION = Selection()


@dataclass(frozen=True)
class Comparison:
    """The runs of one data set, and the groups that they form.

    The best group comes first. Groups without a run that counts come last.

    Attributes:
        runs: The runs that count, in the order of groups and seeds: one row per run, with the
            columns of `collect` and `("run", "group")`, the label of the group.
        excluded: The runs that do not count, with the columns folder, group and reason.
        methods: The estimator or objective of each group, by label.
        settings: The settings that differ between groups: one row per group, by label.
    """

    runs: pd.DataFrame
    excluded: pd.DataFrame
    methods: pd.Series
    settings: pd.DataFrame

    def runs_of(self, label: str) -> pd.DataFrame:
        """Return the runs of one group."""
        return self.runs[self.runs["run", "group"] == label]

    def labels(self) -> list[str]:
        """Return the labels of the groups that have a run."""
        return list(self.runs["run", "group"].unique())


def part(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the columns of one part of a table with two levels of columns."""
    return table.loc[:, [name]].droplevel(0, axis="columns")


def numbers(runs: pd.DataFrame, name: str) -> pd.Series:
    """Return one measured number of each run, by seed; NaN if a run lacks the number."""
    values = part(runs, "measured").reindex(columns=[name])[name]
    return values.astype(float).set_axis(runs["run", "seed"])


# Grouping


def compare(
    table: pd.DataFrame, selection: Selection = DEFAULT_SELECTION
) -> dict[str, Comparison]:
    """Group the runs of each data set.

    A run counts if it is finished and the ELBO of its selected model is finite. If several runs of
    a group have the same seed, only the first of them counts.

    Returns:
        The comparison of each data set, by the title of the data set.
    """
    if table.empty:
        return {}
    runs = _select_models(table, selection.model)
    by_data = runs.groupby(runs["run", "data"], sort=False)
    return {str(title): _compare(rows, selection) for title, rows in by_data}


def _select_models(table: pd.DataFrame, model: Which | None) -> pd.DataFrame:
    """Return one row per run: of the selected model, or of any other if the run lacks it."""
    # Without a model, the order stays: the best model of a run comes before its last one.
    selected_first = (table["run", "model"] != model).sort_values(kind="stable").index
    return table.loc[selected_first].drop_duplicates([("run", "folder")]).sort_index()


def _compare(runs: pd.DataFrame, selection: Selection) -> Comparison:
    """Group runs of the same data set, one row per run."""
    settings = part(runs, "setting")
    first_run = settings.notna().idxmax()  # a setting of the first run comes first
    settings = settings[first_run.sort_values(kind="stable").index]
    keys = differing(settings[[key for key in settings if not _is_ignored(str(key))]])
    runs = runs.copy()
    # Before pandas 3.1, to_dict("records") gives no record at all if there is no column.
    shown = settings[keys].to_dict("records") or [{}] * len(runs)
    runs["run", "group"] = [*map(_label, shown, runs["run", "method"])]
    reasons = _exclusion_reasons(runs, selection.model)
    counted = runs[reasons.isna()]
    counted = counted.loc[counted["run", "seed"].sort_values(kind="stable").index]
    groups = runs.drop_duplicates([("run", "group")]).set_index(("run", "group"))
    groups = groups.loc[_rank(counted, groups.index, selection)]
    return Comparison(
        runs=pd.concat([counted[counted["run", "group"] == label] for label in groups.index]),
        excluded=part(runs, "run")[["folder", "group"]].assign(reason=reasons).dropna(),
        methods=groups["run", "method"],
        settings=part(groups, "setting")[keys],
    )


def _is_ignored(key: str) -> bool:
    return any(key == ignored or key.startswith(f"{ignored}.") for ignored in _IGNORED_KEYS)


def _label(settings: dict[Hashable, Setting | None], method: str) -> str:
    """Return the label of a group from the settings in which it differs from other groups."""
    if set(settings) <= {"estimator"}:
        return method
    words = [
        str(value) if key == "estimator" else f"{key}={value}"
        for key, value in settings.items()
        if value is not None
    ]
    return " ".join(words) or method


def _exclusion_reasons(runs: pd.DataFrame, model: Which | None) -> pd.Series:
    """Return why each run does not count; missing for runs that count."""
    run = part(runs, "run")
    lacks_model = run["model"].isna() if model is None else run["model"] != model
    missing = "model" if model is None else f"{model} model"
    is_finite = np.isfinite(numbers(runs, "elbo").to_numpy())
    reasons = pd.Series(None, index=run.index, dtype=object)
    reasons = reasons.mask(~is_finite, "whose ELBO is not finite")
    reasons = reasons.mask(lacks_model, f"without a {missing}")
    reasons = reasons.mask(run["status"] != "finished", run["status"])
    repeated = run[reasons.isna()].duplicated(["group", "seed"])
    seeds = run["seed"].astype(str)[repeated[repeated].index]
    return reasons.fillna("with a repeated seed (" + seeds + ")")


def _rank(runs: pd.DataFrame, labels: pd.Index, selection: Selection) -> pd.Index:
    """Return the labels of groups, the best mean first; groups that lack a number come last."""
    bounds = list(dict.fromkeys([selection.rank_by, "elbo"]))
    values = part(runs, "measured").reindex(columns=bounds).astype(float)
    means = values.groupby(runs["run", "group"]).agg(_MEAN[1]).reindex(labels)
    return means.fillna(-math.inf).sort_values(bounds, ascending=False, kind="stable").index


def differing(settings: pd.DataFrame) -> list[str]:
    """Return the keys that distinguish the rows of a table of settings.

    A key below another, such as estimator.temperature below estimator, is returned only if it
    differs between rows that agree in all keys above it: another estimator has another temperature
    anyway. A key that repeats another one, as model.latents repeats latents, is not returned.
    """
    keys = []
    for key in map(str, settings):
        above = [other for other in settings if key.startswith(f"{other}.")]
        values = settings.groupby(above, dropna=False)[key] if above else settings[key]
        if np.max(values.nunique(dropna=False)) > 1 and not _repeats(key, settings):
            keys.append(key)
    return keys


def _repeats(key: str, settings: pd.DataFrame) -> bool:
    """Return whether a.b has the value of b in all rows."""
    group, _, name = key.rpartition(".")
    return bool(group) and name in settings and settings[key].equals(settings[name])


def find_group(comparison: Comparison, description: str) -> str:
    """Return the label of the one group that a description fits.

    Args:
        comparison: The groups.
        description: The label of a group, or words with commas between them, all of which must
            fit: `latents=8` is any setting, and `reinmax` is the method or the value of a setting
            that differs between groups. Numbers may be written in any way.

    Raises:
        UserError: The description does not fit exactly one group.
    """
    words = [[text.strip() for text in word.partition("=")] for word in description.split(",")]

    def fits(label: str) -> bool:
        shown = comparison.settings.loc[label].to_dict()
        shared = part(comparison.runs_of(label), "setting").head(1).to_dict("records")
        settings = dict(*shared) | shown
        names = [comparison.methods[label], *shown.values()]
        return all(
            key in settings and _equals(settings[key], value)
            if sign
            else any(_equals(name, key) for name in names)
            for key, sign, value in words
        )

    labels = list(comparison.settings.index)
    found = [label for label in labels if label == description.strip() or fits(label)]
    if len(found) != 1:
        count, names = len(found) or "none", "; ".join(found or labels)
        raise UserError(f"baseline {description}: {count} of the groups fit: {names}")
    return found[0]


def _equals(setting: Setting | None, word: str) -> bool:
    """Return whether a setting is what a word says; numbers may be written in any way."""
    if isinstance(setting, int | float) and not isinstance(setting, bool):
        try:
            return setting == float(word)
        except ValueError:
            return False
    return str(setting) == word


# Statistics


def group_table(
    comparison: Comparison,
    selection: Selection = DEFAULT_SELECTION,
    baseline: str | None = None,
) -> pd.DataFrame:
    """Return the statistics of each group, one row per group; nothing is rounded.

    Args:
        comparison: The groups.
        selection: The bound that intervals, best seeds and differences are given of.
        baseline: The label of a group. With it, the table has the differences to that group,
            paired by seed: positive is better.

    Returns:
        A table by label with two levels of columns: `("setting", key)` for the settings that
        differ, `("n", "")`, `("note", "")`, and `(quantity, statistic)`. The statistics are mean,
        std, low and high (the ends of the 95 % interval of the mean), best_seed, worst_seed and
        pairs. If a run lacks a measured number, its group has no mean of that number.
    """
    order = comparison.settings.index
    parts = [_measured(comparison, selection.rank_by)]
    if baseline is not None:
        parts.append(_differences(comparison, selection.rank_by, baseline))
    parts.append(_costs(comparison))
    table = pd.concat(parts, axis="columns").reindex(order)
    if baseline is not None:
        table["difference", "pairs"] = table["difference", "pairs"].fillna(0).astype(int)
    columns: dict[object, object] = {
        ("setting", key): values for key, values in comparison.settings.items()
    }
    columns["n", ""] = [len(comparison.runs_of(label)) for label in order]
    columns |= dict(table.items())
    columns["note", ""] = [_note(comparison, label) for label in order]
    return pd.DataFrame(columns, index=order)


def _measured(comparison: Comparison, ranked_by: Bound) -> pd.DataFrame:
    """Return the statistics over seeds of all numbers; NaN if a run of a group lacks a number."""
    runs = comparison.runs
    measured = part(runs, "measured").astype(float).set_axis(runs["run", "seed"])
    if runs.empty:
        measured = measured.reindex(columns=[ranked_by])
    statistics: dict[Hashable, Any] = {name: [_MEAN, _STD] for name in measured}
    statistics[ranked_by] += [_LOW, _HIGH, ("best_seed", _best_seed), ("worst_seed", _worst_seed)]
    return measured.groupby(runs["run", "group"].to_numpy()).agg(statistics)


def _differences(comparison: Comparison, bound: Bound, baseline: str) -> pd.DataFrame:
    """Return the statistics of each group's differences to the baseline, at the seeds of both."""
    values = numbers(comparison.runs, bound)
    runs = pd.DataFrame({"seed": values.index, "value": values.to_numpy()})
    runs["group"] = comparison.runs["run", "group"].to_numpy()
    is_baseline = runs["group"] == baseline
    pairs = runs[~is_baseline].merge(runs[is_baseline], on="seed", suffixes=("", "_of_baseline"))
    differences = (pairs["value"] - pairs["value_of_baseline"]).groupby(pairs["group"])
    statistics: Any = [_MEAN, _LOW, _HIGH, ("pairs", len)]
    return pd.concat({"difference": differences.agg(statistics)}, axis=1)


def _costs(comparison: Comparison) -> pd.DataFrame:
    """Return the statistics of what training reported, over the runs that reported it."""
    costs = part(comparison.runs, "run")[["training_objective", "seconds", "steps"]].astype(float)
    mean, std = ("mean", pd.Series.mean), ("std", pd.Series.std)
    statistics: Any = {"training_objective": [mean, std], "seconds": [mean], "steps": [mean]}
    return costs.groupby(comparison.runs["run", "group"]).agg(statistics)


def _best_seed(values: pd.Series) -> Hashable:
    """Return the seed of the highest value; None for a single value, or if one is missing."""
    return values.idxmax() if len(values) > 1 and values.notna().all() else None


def _worst_seed(values: pd.Series) -> Hashable:
    return _best_seed(-values)


def interval(values: pd.Series) -> tuple[float, float]:
    """Return the 95 % interval of the mean by Student's t; NaN for fewer than three values.

    It has its coverage if the values are normally distributed. (A percentile bootstrap of three
    values is their range, which covers the mean only three times in four.) Student (1908), The
    probable error of a mean.
    """
    if len(values) < ENOUGH_SEEDS:
        return math.nan, math.nan
    mean, error = values.mean(skipna=False), values.std(skipna=False) / math.sqrt(len(values))
    low, high = (error * stats.t.ppf(share, len(values) - 1) for share in (0.025, 0.975))
    return float(mean + low), float(mean + high)


_MEAN = ("mean", lambda values: values.mean(skipna=False))
_STD = ("std", lambda values: values.std(skipna=False))
_LOW = ("low", lambda values: interval(values)[0])
_HIGH = ("high", lambda values: interval(values)[1])


def _note(comparison: Comparison, label: str) -> str:
    """Return what to know about a group: few seeds, excluded runs, mixed revisions or devices."""
    runs, others = comparison.runs_of(label), comparison.excluded
    few = [f"n < {ENOUGH_SEEDS}"] if len(runs) < ENOUGH_SEEDS else []
    excluded = Counter(others[others["group"] == label]["reason"])
    distinct = {name: len(set().union(*sets)) for name, sets in part(runs, "made_with").items()}
    mixed = [f"{count} {name}" for name, count in distinct.items() if count > 1]
    return ", ".join([*few, *(f"{count} {reason}" for reason, count in excluded.items()), *mixed])


def run_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per run that counts, the runs of a group together; nothing is rounded."""
    run = part(comparison.runs, "run")
    parts = [
        run[["folder", "group", "seed"]].rename(columns={"folder": "run"}),
        part(comparison.runs, "measured"),
        run[["training_objective", "seconds", "steps"]],
    ]
    # Through Python objects, so that each column gets its own type: integer, float or string.
    return pd.DataFrame(pd.concat(parts, axis="columns").to_dict("records"))
