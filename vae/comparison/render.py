"""Tables as text: for people (plain or Markdown) and for programs (CSV, JSON)."""

import json
import math
from collections.abc import Hashable, Mapping
from typing import Literal

import pandas as pd
from tabulate import tabulate

from vae.comparison.table import BOUNDS, part

Format = Literal["table", "markdown", "csv", "json"]

_HEADINGS = {
    "elbo": "ELBO",
    "importance_weighted": "IW bound",
    "elbo_map": "ELBO of the mode",
    "log_likelihood": "log p(x)",
    "accuracy": "probe accuracy",
    "nll": "probe nll",
}


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
    ranked_by = next(bound for bound in BOUNDS if (bound, "low") in groups)
    of_bound = "" if ranked_by == "elbo" else f" of the {_HEADINGS[ranked_by]}"
    headings = _HEADINGS | {"difference": f"difference{of_bound}"}
    for quantity, statistic in _pairs(groups):
        values, heading = groups[quantity, statistic], headings.get(quantity, quantity)
        if quantity in ("setting", "n") or values.isna().all() or (values == "").all():
            continue
        match statistic:
            case "std" | "high" | "pairs":
                continue
            case "low":
                heading = "95 % of the difference" if quantity == "difference" else "95 %"
                cells = _join(part(groups, quantity)[["low", "high"]], " to ")
            case "best_seed" | "worst_seed":
                heading, cells = statistic, _join(values.to_frame(), "", digits=0)
            case "mean" if quantity in (*BOUNDS, "training_objective"):
                cells = _join(part(groups, quantity)[["mean", "std"]], " ± ")
            case "mean" if quantity in ("steps", "difference"):
                cells = _join(values.to_frame(), "", digits=0 if quantity == "steps" else 2)
            case _:
                cells = values.tolist()
        columns[heading.replace("_", " ")] = cells
    return pd.DataFrame(columns, index=groups.index)


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
            parts = [f"### {title}\n\n{_grid(t, 'github', digits)}" for title, t in tables.items()]
        case "table":
            parts = [f"{title}:\n\n{_grid(t, 'plain', digits)}" for title, t in tables.items()]
    return "\n\n".join(parts)


def _records(table: pd.DataFrame) -> list[dict[Hashable, object]]:
    """Return rows for JSON, to the last digit; the JSON writer of pandas rounds."""
    values = table.replace([math.inf, -math.inf], math.nan).astype(object)
    return values.where(values.notna(), None).to_dict("records")


def _grid(table: pd.DataFrame, style: str, digits: int) -> str:
    cells = [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    align = ["right" if _is_numeric(column) else "left" for column in zip(*cells, strict=True)]
    return tabulate(
        cells, table.columns.tolist(), style, colalign=align or None, disable_numparse=True
    )


def _cell(value: object, digits: int) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _is_numeric(cells: tuple[str, ...]) -> bool:
    return all(cell[:1] in "-0123456789" for cell in cells)
