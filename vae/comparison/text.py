"""Tables as text for people, from plain rows and columns.

This module imports neither pandas nor scipy, which take seconds: the table at the end of every run
is made here. `vae.comparison.render` and `vae.comparison.columns` make tables of DataFrames.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal, get_args

from tabulate import tabulate

Bound = Literal["elbo", "importance_weighted", "log_likelihood"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
"""The bounds by which groups can be ranked."""

_HEADINGS = {
    "elbo": "ELBO",
    "importance_weighted": "IW bound",
    "elbo_map": "ELBO of the mode",
    "log_likelihood": "log p(x)",
    "accuracy": "probe accuracy",
    "nll": "probe nll",
}

_MISSING = "-"  # a number that a row lacks
_GAP = 2  # spaces between two columns
_SHORTEST_CELL = 7  # of a setting or a run that is cut in the middle


def heading(name: str) -> str:
    """Return how tables for people call a measured number."""
    return _HEADINGS.get(name, name.replace("_", " "))


def in_order(names: Iterable[str], ranked_by: Bound = "elbo") -> list[str]:
    """Return the names of numbers in order: first the seed and the bounds, even if not given.

    Args:
        names: The names that columns have in csv.
        ranked_by: The bound that comes first.
    """
    return list(dict.fromkeys(["seed", ranked_by, *BOUNDS, *names]))


def render_rows(
    title: str, rows: Sequence[Mapping[str, object]], label: str, width: int | None, hint: str
) -> str:
    """Return rows as a table below its title, without columns that are empty in all rows.

    Args:
        title: The title of the table.
        rows: The values of each row, by the names that columns have in csv.
        label: The name of the column that tells the rows apart.
        width: The characters that fit in a line; None for any number.
        hint: A sentence that says where all columns are.
    """
    names = [label, *in_order(name for row in rows for name in row if name != label)]
    columns = [[heading(name), *(format_value(row.get(name)) for row in rows)] for name in names]
    shown = [column for column in columns if set(column[1:]) != {_MISSING}]
    return render_columns(title, shown, 1, width, hint)


def render_columns(
    title: str, columns: list[list[str]], label_count: int, width: int | None, hint: str
) -> str:
    """Return columns of text as a table below its title.

    If columns do not fit, their headings and the hint follow the table. The hint is a line that is
    never wrapped, so that a command in it can be pasted.

    Args:
        title: The title of the table.
        columns: The texts of each column, of which the first is its heading.
        label_count: The number of columns that tell the rows apart, which come first.
        width: The characters that fit in a line; None for any number.
        hint: A sentence that says where all columns are.
    """
    left_out: list[str] = []
    if width is not None:
        columns, left_out = _fit(columns, label_count, width)
    parts = [_wrap(f"{title}:", width), grid(columns)]
    if left_out:
        parts.append(_wrap(f"No room for: {', '.join(left_out)}.", width) + f"\n{hint}")
    return "\n\n".join(parts)


def grid(columns: list[list[str]], style: Literal["plain", "github"] = "plain") -> str:
    """Return columns of text side by side. Columns of numbers are aligned right."""
    rows = [*map(list, zip(*columns, strict=True))]
    align = ["right" if _is_numeric(column[1:]) else "left" for column in columns]
    if style == "github":
        return tabulate(rows[1:], rows[0], style, colalign=align, disable_numparse=True)
    # tabulate pads a row of headings by two spaces per column, but not a row of the table.
    return tabulate(rows, tablefmt=style, colalign=align, disable_numparse=True)


def format_value(value: object, digits: int = 2) -> str:
    """Return a value as text; a missing number is a dash."""
    if value is None or value != value:
        return _MISSING
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _is_numeric(cells: list[str]) -> bool:
    return all(cell[:1] in "-0123456789" for cell in cells)


def _wrap(text: str, width: int | None) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False) if width else text


def _fit(
    columns: list[list[str]], label_count: int, width: int
) -> tuple[list[list[str]], list[str]]:
    """Return columns that fit in a line, and the headings of those that are left out.

    The labels and the first column after them are removed last.
    """
    if _total_width(columns) <= width:
        return columns, []
    columns, left_out = _shorten_names(columns), []
    while _total_width(columns) > width and len(columns) > label_count + 1:
        left_out.append(columns.pop()[0])
    longest = max(len(cell) for column in columns for cell in column)
    while _total_width(columns) > width and longest > _SHORTEST_CELL:
        longest -= 1
        labels = [[_cut(cell, longest) for cell in column] for column in columns[:label_count]]
        columns = labels + columns[label_count:]
    while _total_width(columns) > width and len(columns) > 1:
        left_out.append(columns.pop(-2)[0])
    return columns, left_out[::-1]


def _total_width(columns: list[list[str]]) -> int:
    return sum(max(map(len, column)) + _GAP for column in columns) - _GAP


def _shorten_names(columns: list[list[str]]) -> list[list[str]]:
    """Leave out what the names of settings or of run folders share.

    `estimator.temperature` becomes `temperature`, if there is no other setting of this name, and
    a run folder lacks the folders above it that all runs share.
    """
    headings = [column[0] for column in columns]
    last_words = [name.rpartition(".")[2] for name in headings]
    shortened = []
    for (name, *cells), word in zip(columns, last_words, strict=True):
        if name == "run":
            folders = [Path(cell).parts for cell in cells]
            levels = zip(*(folder[:-1] for folder in folders), strict=False)
            shared = len([*takewhile(lambda level: len(set(level)) == 1, levels)])
            cells = [str(Path(*folder[shared:])) for folder in folders]
        shortened.append([word if last_words.count(word) == 1 else name, *cells])
    return shortened


def _cut(cell: str, length: int) -> str:
    """Replace the middle of a text that is too long by three dots."""
    if len(cell) <= length:
        return cell
    end = (length - 3) // 2
    return f"{cell[: length - 3 - end]}...{cell[len(cell) - end :]}"
