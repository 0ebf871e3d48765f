"""Runs grouped over their seeds and put side by side: statistics of numbers that are there.

Groups are those runs that share every setting but the seed; what a group is called follows from
the settings that differ, never from the name of a folder.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

from .checkpoint import Which
from .data import DataSet
from .validation import UserError

Format = Literal["table", "markdown", "csv", "json"]
Setting = bool | str | int | float

BOUNDS = ("elbo", "importance_weighted", "log_likelihood")
"""Of these a table shows the spread over seeds; of the other numbers the mean."""

ENOUGH = 3
"""Seeds below which a group is flagged, and no interval is given."""

_NO_SETTINGS = (
    *("seed", "device", "training.capture", "data.root", "data.mirror"),
    *("importance_samples", "tracking"),
)
_HEADS = {
    "elbo": "ELBO",
    "elbo_std": "±",
    "importance_weighted": "IW bound",
    "elbo_map": "ELBO of the mode",
    "log_likelihood": "log p(x)",
    "accuracy": "probe accuracy",
    "nll": "probe nll",
}


@dataclass(frozen=True)
class Run:
    """A run as far as comparing it goes."""

    folder: str
    data: str  # what its numbers are measured on
    method: str
    settings: dict[str, Setting]
    seed: int
    status: str  # finished, or why not
    measured: dict[Which, dict[str, float | None]]  # of its best and its last model
    objective: float | None  # what training minimised, mean over its last epoch
    steps: int | None
    seconds: float | None

    def numbers(self, model: Which | None) -> dict[str, float | None] | None:
        """Of one of its models, by default the best that there is; None where there is none."""
        if model is None:
            return self.measured.get("best") or self.measured.get("last")
        return self.measured.get(model)


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in their seed alone, and what was left out of them."""

    settings: dict[str, Setting | None]  # those in which it differs from the other groups
    method: str
    runs: list[Run]
    left_out: list[str]

    @property
    def label(self) -> str:
        """Short and, among the groups that it was made with, unique."""
        if set(self.settings) <= {"estimator"}:
            return self.method
        words = [
            str(value) if key == "estimator" else f"{key}={value}"
            for key, value in self.settings.items()
            if value is not None
        ]
        return " ".join(words) or self.method

    def note(self) -> str:
        few = [f"n < {ENOUGH}"] if len(self.runs) < ENOUGH else []
        return ", ".join(few + self.left_out)


def title(data: DataSet, importance_samples: int) -> str:
    """What the numbers of a table are measured on, and whether their bounds bound a likelihood."""
    grey = "" if data.binary else " (grey pixels: no likelihood)"
    measured_on = f"{data.name}, test, {len(data.test):,} images, in nats per image{grey}"
    return f"{measured_on}, IW bound at m = {importance_samples:,}"


# Grouping


def group(runs: list[Run], model: Which | None = None) -> dict[str, list[Group]]:
    """The groups of every data set, by its title; never two data sets in one list.

    A run that is not finished, or that has no such model, counts in no mean; of two runs with the
    same settings and seed only the first does.
    """
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data, []).append(run)
    return {data: _groups(members, model) for data, members in by_data.items()}


def _groups(runs: list[Run], model: Which | None) -> list[Group]:
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    settings = [_settings(members[0]) for members in same.values()]
    shown = differing(settings)
    groups = []
    for own, members in zip(settings, same.values(), strict=True):
        counted: dict[int, Run] = {}
        left_out = Counter()
        for run in members:
            if run.status != "finished":
                left_out[run.status] += 1
            elif run.numbers(model) is None:
                left_out[" ".join(filter(None, ("without a", model, "model")))] += 1
            elif not _is_number(run.numbers(model).get("elbo")):
                left_out["whose ELBO is no number"] += 1
            elif run.seed in counted:
                left_out[f"a second time seed {run.seed}"] += 1
            else:
                counted[run.seed] = run
        notes = [f"{number} {why}" for why, number in left_out.items()]
        ordered = [counted[seed] for seed in sorted(counted)]
        named = {key: own.get(key) for key in shown}
        groups.append(Group(named, members[0].method, ordered, notes))
    return sorted(groups, key=lambda group: -mean(group, "elbo", model))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _settings(run: Run) -> dict[str, Setting]:
    return {
        key: value
        for key, value in run.settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in _NO_SETTINGS)
    }


def differing(settings: list[dict[str, Setting]]) -> list[str]:
    """The keys that tell the settings apart.

    A key below another, as estimator.temperature below estimator, counts only where it differs
    between settings that agree in all keys above it: another estimator has another temperature,
    and the estimator says so. One that repeats a key of its own name, as model.latents repeats
    latents, is left out.
    """
    keys = list(dict.fromkeys(key for each in settings for key in each))
    shown = []
    for key in keys:
        above = [other for other in keys if key.startswith(f"{other}.")]
        values: dict[tuple, set] = {}
        for each in settings:
            context = tuple(each.get(other) for other in above)
            values.setdefault(context, set()).add(each.get(key))
        if any(len(different) > 1 for different in values.values()):
            shown.append(key)
    return [key for key in shown if not _repeats(key, settings)]


def _repeats(key: str, settings: list[dict[str, Setting]]) -> bool:
    group, _, name = key.rpartition(".")
    return bool(group) and all(name in each and each[name] == each.get(key) for each in settings)


def find(groups: list[Group], description: str) -> Group:
    """The one group that has these settings: `reinmax`, or `estimator=reinmax,latents=8`.

    A setting may also be one that all groups share.

    Raises UserError where it is not exactly one.
    """
    words = [word.partition("=") for word in description.split(",")]

    def fits(group: Group) -> bool:
        differing = group.settings
        shared = group.runs[0].settings if group.runs else {}
        return description == group.label or all(
            _same((shared | differing).get(key), value)
            if equals
            else key == group.method or any(_same(own, key) for own in differing.values())
            for key, equals, value in words
        )

    found = [each for each in groups if fits(each)]
    if len(found) != 1:
        number = len(found) or "none"
        labels = "; ".join(each.label for each in found or groups)
        raise UserError(f"baseline {description}: {number} of the groups fit: {labels}")
    return found[0]


def _same(held: Setting | None, word: str) -> bool:
    """Whether a setting is what a word says; of numbers, however they are written."""
    if isinstance(held, int | float) and not isinstance(held, bool):
        try:
            return held == float(word)
        except ValueError:
            return False
    return str(held) == word


# Statistics


def values(group: Group, name: str, model: Which | None = None) -> np.ndarray:
    """A number of each run, by seed; nan where it cannot be had."""
    held = [(run.numbers(model) or {}).get(name) for run in group.runs]
    return np.array([math.nan if value is None else value for value in held], dtype=float)


def mean(group: Group, name: str, model: Which | None = None) -> float:
    """nan-free order: a group without a number comes last."""
    held = values(group, name, model)
    return float(held.mean()) if len(held) and not np.isnan(held).any() else -math.inf


def interval(sample: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; nan for fewer than three values.

    It covers what it says where the values are normal. (A percentile bootstrap of three values is
    their range, which covers the mean three times in four.) Student (1908), The probable error of
    a mean.
    """
    if len(sample) < ENOUGH:
        return math.nan, math.nan
    error = sample.std(ddof=1) / math.sqrt(len(sample))
    low, high = sample.mean() + error * stats.t.ppf([0.025, 0.975], len(sample) - 1)
    return float(low), float(high)


def difference(group: Group, baseline: Group, model: Which | None = None) -> np.ndarray:
    """Its test ELBO less the baseline's, at each seed that both have: positive is better."""
    ours, theirs = (
        dict(zip((run.seed for run in each.runs), values(each, "elbo", model), strict=True))
        for each in (group, baseline)
    )
    return np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


# Tables


def group_table(
    groups: list[Group], model: Which | None = None, baseline: Group | None = None
) -> pd.DataFrame:
    """A row a group: nothing is rounded, and there is a column for everything."""
    rows = []
    for each in groups:
        names = list(dict.fromkeys(name for run in each.runs for name in run.numbers(model)))
        row = {"group": each.label, **each.settings, "n": len(each.runs)}
        for name in names or ["elbo"]:
            held = values(each, name, model)
            row[name] = held.mean() if len(held) else math.nan
            row[f"{name}_std"] = held.std(ddof=1) if len(held) > 1 else math.nan
            if name == "elbo":
                row["elbo_low"], row["elbo_high"] = interval(held)
                seeds = [run.seed for run in each.runs]
                row["best_seed"] = seeds[held.argmax()] if len(held) > 1 else None
                row["worst_seed"] = seeds[held.argmin()] if len(held) > 1 else None
        if baseline is not None:
            paired = difference(each, baseline, model) if each is not baseline else np.array([])
            row["difference"] = paired.mean() if len(paired) else math.nan
            row["difference_low"], row["difference_high"] = interval(paired)
            row["pairs"] = len(paired)
        objectives = pd.Series([run.objective for run in each.runs], dtype=float)
        row["training_objective"] = objectives.mean()
        row["training_objective_std"] = objectives.std()
        row["seconds"] = _mean_of([run.seconds for run in each.runs])
        row["steps"] = _mean_of([run.steps for run in each.runs])
        rows.append(row | {"note": each.note()})
    table = pd.DataFrame(rows)
    for key in groups[0].settings:  # as they are: beside a None, pandas makes a 1 a 1.0
        table[key] = pd.Series([each.settings[key] for each in groups], dtype=object)
    return table


def run_table(groups: list[Group], model: Which | None = None) -> pd.DataFrame:
    """A row a finished run, those of one group together."""
    rows = [
        {"run": run.folder, "group": each.label, "seed": run.seed}
        | (run.numbers(model) or {})
        | {"training_objective": run.objective, "seconds": run.seconds, "steps": run.steps}
        for each in groups
        for run in each.runs
    ]
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of groups as one reads it: means with their spread, and no column without a word."""
    shown = {}
    settings = list(table.columns[1 : table.columns.get_loc("n")]) or ["group"]
    for name in [*settings, "n"]:
        shown[name] = table[name].map(lambda value: "-" if pd.isna(value) else str(value))
    for name in table.columns[table.columns.get_loc("n") + 1 :]:
        if name.endswith(("_std", "_low", "_high")) or name == "pairs":
            continue
        column = table[name]
        if column.isna().all() or (column.astype(str) == "").all():
            continue
        if name in (*BOUNDS, "training_objective"):
            column = _joined(table, name, " ± ", [f"{name}_std"])
        elif name in ("best_seed", "worst_seed", "steps"):
            column = column.map(lambda value: "-" if pd.isna(value) else f"{value:.0f}")
        elif name == "difference":
            column = _joined(table, name, "", [])
        shown[_HEADS.get(name, name.replace("_", " "))] = column
        for kind in ("elbo", "difference"):
            if name == kind and table[f"{kind}_low"].notna().any():
                head = "95 %" if kind == "elbo" else "95 % of the difference"
                shown[head] = _joined(table, f"{kind}_low", " to ", [f"{kind}_high"])
    return pd.DataFrame(shown)


def _joined(table: pd.DataFrame, name: str, word: str, others: list[str]) -> pd.Series:
    """Numbers in one cell, the later ones only where there are any."""
    columns = [table[column] for column in (name, *others)]

    def cell(numbers: tuple) -> str:
        there = [f"{number:.2f}" for number in numbers if not pd.isna(number)]
        return word.join(there) or "-"

    return pd.Series([cell(numbers) for numbers in zip(*columns, strict=True)], table.index)


def _mean_of(held: list[float | None]) -> float:
    there = [value for value in held if value is not None]
    return sum(there) / len(there) if there else math.nan


# Text


def render(tables: dict[str, pd.DataFrame], form: Format, digits: int = 2) -> str:
    """Tables by their titles; a dash, in csv nothing, in json null where there is no number.

    Text formats round to `digits`; csv and json round nothing, and csv is one table with the
    title for a first column.
    """
    match form:
        case "csv":
            return pd.concat(tables, names=["table"]).droplevel(1).to_csv()
        case "json":
            return json.dumps({title: _records(t) for title, t in tables.items()}, indent=2)
        case "markdown":
            parts = [f"### {title}\n\n{_grid(t, 'github', digits)}" for title, t in tables.items()]
        case "table":
            parts = [f"{title}:\n\n{_grid(t, 'plain', digits)}" for title, t in tables.items()]
    return "\n\n".join(parts)


def _records(table: pd.DataFrame) -> list[dict[str, object]]:
    """Rows that JSON can hold, to the last digit; pandas' own writer rounds."""
    held = table.replace([math.inf, -math.inf], math.nan).astype(object)
    return held.where(held.notna(), None).to_dict("records")


def _grid(table: pd.DataFrame, style: str, digits: int) -> str:
    cells = [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    align = ["right" if _numeric(column) else "left" for column in zip(*cells, strict=True)]
    return tabulate(cells, list(table), style, colalign=align or None, disable_numparse=True)


def _cell(value: object, digits: int) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _numeric(cells: tuple[str, ...]) -> bool:
    return all(cell[:1] in "-0123456789" for cell in cells)
