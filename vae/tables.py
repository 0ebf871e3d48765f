"""Groups of runs as tables, and tables as text."""

import json
import math
from typing import Literal

import numpy as np
import pandas as pd
from tabulate import tabulate

from .comparison import BOUNDS, ELBO, Group, View, difference, interval, values

Format = Literal["table", "markdown", "csv", "json"]

_HEADS = {
    "elbo": "ELBO",
    "elbo_std": "±",
    "importance_weighted": "IW bound",
    "elbo_map": "ELBO of the mode",
    "log_likelihood": "log p(x)",
    "accuracy": "probe accuracy",
    "nll": "probe nll",
}


def group_table(
    groups: list[Group], view: View = ELBO, baseline: Group | None = None
) -> pd.DataFrame:
    """A row a group: nothing is rounded, and there is a column for everything.

    Intervals, seeds and the difference to the baseline are those of one bound.
    """
    rows = []
    for each in groups:
        names = list(dict.fromkeys(name for run in each.runs for name in run.numbers(view.model)))
        row = {"group": each.label, **each.settings, "n": len(each.runs)}
        for name in names or [view.by]:
            held = values(each, name, view.model)
            row[name] = held.mean() if len(held) else math.nan
            row[f"{name}_std"] = held.std(ddof=1) if len(held) > 1 else math.nan
            if name == view.by:
                row[f"{name}_low"], row[f"{name}_high"] = interval(held)
                seeds = [run.seed for run in each.runs]
                ranked = len(held) > 1 and not np.isnan(held).any()
                row["best_seed"] = seeds[held.argmax()] if ranked else None
                row["worst_seed"] = seeds[held.argmin()] if ranked else None
        if baseline is not None:
            other = each is not baseline
            paired = difference(each, baseline, view) if other else np.array([])
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


def run_table(groups: list[Group], view: View = ELBO) -> pd.DataFrame:
    """A row a finished run, those of one group together."""
    rows = [
        {"run": run.folder, "group": each.label, "seed": run.seed}
        | (run.numbers(view.model) or {})
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
    by = next((bound for bound in BOUNDS if f"{bound}_low" in table), "elbo")
    of = "difference" if by == "elbo" else f"difference of the {_HEADS[by]}"
    heads = _HEADS | {"difference": of}
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
        shown[heads.get(name, name.replace("_", " "))] = column
        if f"{name}_low" in table and table[f"{name}_low"].notna().any():
            head = "95 % of the difference" if name == "difference" else "95 %"
            shown[head] = _joined(table, f"{name}_low", " to ", [f"{name}_high"])
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
