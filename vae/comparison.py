"""Finished runs side by side."""

import json
from typing import Literal

import pandas as pd
from tabulate import tabulate

from .data import DataSet

Format = Literal["table", "markdown", "csv", "json"]


def title(data: DataSet) -> str:
    """What the numbers of a table are measured on, and whether their bounds bound a likelihood."""
    measured_on = f"{data.name}, test, {len(data.test):,} images, in nats per image"
    return measured_on if data.binary else f"{measured_on} (grey pixels: no likelihood)"


def render(tables: dict[str, pd.DataFrame], form: Format, digits: int = 2) -> str:
    """Tables by their titles; a dash, in csv nothing, in json null where there is no number.

    Text formats round to `digits`; csv and json round nothing, and csv is one table with the
    title for a first column.
    """
    match form:
        case "csv":
            return pd.concat(tables, names=["table"]).droplevel(1).to_csv()
        case "json":
            rows = {title: json.loads(t.to_json(orient="records")) for title, t in tables.items()}
            return json.dumps(rows, indent=2)
        case "markdown":
            parts = [f"### {title}\n\n{_grid(t, 'github', digits)}" for title, t in tables.items()]
        case "table":
            parts = [f"{title}:\n\n{_grid(t, 'plain', digits)}" for title, t in tables.items()]
    return "\n\n".join(parts)


def _grid(table: pd.DataFrame, style: str, digits: int) -> str:
    cells = [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in table]
    align = ["right" if number else "left" for number in numeric]
    return tabulate(
        cells, list(table), style, colalign=align if cells else None, disable_numparse=True
    )


def _cell(value: object, digits: int) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
