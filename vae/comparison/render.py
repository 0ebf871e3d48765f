"""Tables as text: for people (plain or Markdown) and for programs (CSV, JSON)."""

import json
import math
from collections.abc import Hashable, Mapping
from typing import Literal

import pandas as pd

from vae.comparison.table import part
from vae.comparison.text import BOUNDS, Bound, format_value, grid, heading

Format = Literal["table", "markdown", "csv", "json"]


def flatten(groups: pd.DataFrame) -> pd.DataFrame:
    """Return a group table with one level of columns: elbo, elbo_std, elbo_low and so on."""
    flat = groups.rename_axis("group").reset_index()
    flat.columns = [
        statistic
        if quantity == "setting" or statistic in ("best_seed", "worst_seed", "pairs")
        else "_".join(name for name in (quantity, statistic) if name not in ("", "mean"))
        for quantity, statistic in _pairs(flat)
    ]
    return flat


def readable(groups: pd.DataFrame) -> pd.DataFrame:
    """Format a group table for people: mean ± standard deviation, and no empty columns."""
    settings = (
        part(groups, "setting") if "setting" in groups else groups.index.to_frame(name="group")
    )
    columns: dict[str, object] = {
        str(key): ["-" if pd.isna(value) else str(value) for value in values]
        for key, values in settings.items()
    }
    columns["n"] = groups["n", ""].map(str)
    ranked_by = ranking_bound(groups)
    for quantity, statistic in _pairs(groups):
        values = groups[quantity, statistic]
        if quantity in ("setting", "n") or values.isna().all() or (values == "").all():
            continue
        match statistic:
            case "std" | "high":
                continue
            case "low":
                cells = _join(part(groups, quantity)[["low", "high"]], " to ")
            case "best_seed" | "worst_seed" | "pairs":
                cells = _join(values.to_frame(), "", digits=0)
            case "mean" if quantity in (*BOUNDS, "training_objective"):
                cells = _join(part(groups, quantity)[["mean", "std"]], " ± ")
            case "mean" if quantity in ("steps", "difference"):
                cells = _join(values.to_frame(), "", digits=0 if quantity == "steps" else 2)
            case _:
                cells = values.tolist()
        columns[_heading(quantity, statistic, ranked_by)] = cells
    return pd.DataFrame(columns, index=groups.index)


def readable_names(groups: pd.DataFrame) -> dict[str, str]:
    """Return the heading in `readable` of each column in `flatten`, except that of the label."""
    ranked_by = ranking_bound(groups)
    headings = [_heading(*names, ranked_by) for names in _pairs(groups)]
    return dict(zip(map(str, flatten(groups).columns[1:]), headings, strict=True))


def ranking_bound(groups: pd.DataFrame) -> Bound:
    """Return the bound by which the rows of a group table are ordered."""
    return next(bound for bound in BOUNDS if (bound, "low") in groups)


def _heading(quantity: str, statistic: str, ranked_by: Bound) -> str:
    """Return how tables for people call a column of a group table."""
    match quantity, statistic:
        case "setting", _:
            return statistic
        case "difference", "mean":
            return "difference" + ("" if ranked_by == "elbo" else f" of the {heading(ranked_by)}")
        case _, "low" | "high":
            return "95 % of the difference" if quantity == "difference" else "95 %"
        case _, "best_seed" | "worst_seed" | "pairs":
            return heading(statistic)
        case _:
            return heading(quantity)


def _pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the names of the columns of a table with two levels."""
    return [(str(name[0]), str(name[1])) for name in table.columns]


def _join(columns: pd.DataFrame, word: str, digits: int = 2) -> list[str]:
    """Return the numbers of each row in one cell, without those that are missing."""
    return [
        word.join(f"{number:.{digits}f}" for number in row if not pd.isna(number)) or "-"
        for row in columns.itertuples(index=False)
    ]


def render(tables: Mapping[str, pd.DataFrame], form: Format, digits: int = 2) -> str:
    """Return tables as text, each below its title.

    Args:
        tables: The tables, by title.
        form: csv is one table with the title in its first column; csv and json round nothing.
        digits: The digits after the point in tables and Markdown.

    Returns:
        The text. A missing number is a dash, in csv an empty field, in json null.
    """
    match form:
        case "csv":
            return pd.concat(tables, names=["table"]).droplevel(1).to_csv()
        case "json":
            return json.dumps({title: _records(t) for title, t in tables.items()}, indent=2)
        case "markdown":
            grids = {title: grid(to_cells(t, digits), "github") for title, t in tables.items()}
            return "\n\n".join(f"### {title}\n\n{text}" for title, text in grids.items())
        case "table":
            grids = {title: grid(to_cells(t, digits)) for title, t in tables.items()}
            return "\n\n".join(f"{title}:\n\n{text}" for title, text in grids.items())


def _records(table: pd.DataFrame) -> list[dict[Hashable, object]]:
    """Return rows for JSON, to the last digit; the JSON writer of pandas rounds."""
    values = table.replace([math.inf, -math.inf], math.nan).astype(object)
    return values.where(values.notna(), None).to_dict("records")


def to_cells(table: pd.DataFrame, digits: int = 2) -> list[list[str]]:
    """Return the columns of a table as texts; the first text of a column is its heading."""
    return [
        [str(name), *(format_value(value, digits) for value in table[name].astype(object))]
        for name in table
    ]
