"""Choose the columns of a table for people, and fit a table to the width of a terminal."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from vae.comparison.render import (
    grid,
    heading,
    ranking_bound,
    readable,
    readable_names,
    to_cells,
)
from vae.comparison.table import BOUNDS, Bound, part
from vae.utils.errors import UserError, close_match

_GAP = 2  # spaces between two columns
_SHORTEST_CELL = 7  # of a setting or a run that is cut in the middle


class Layout(NamedTuple):
    """A table for people, and what to show of it.

    Attributes:
        table: The table with all columns, by heading.
        labels: The headings of the first columns, which tell the rows apart. They are always
            shown.
        short: The headings of the columns that are shown by default after the labels, the most
            important first.
        names: The heading of each column, by its name in csv.
    """

    table: pd.DataFrame
    labels: list[str]
    short: list[str]
    names: dict[str, str]


def group_layout(groups: pd.DataFrame) -> Layout:
    """Return the layout of a group table.

    The labels are the settings that differ and the number of seeds. The short table adds the bound
    that orders the groups, the difference to the baseline, the other bounds and the note.
    """
    table, names = readable(groups), readable_names(groups)
    labels = [*(part(groups, "setting") if "setting" in groups else ["group"]), "n"]
    ranked_by = ranking_bound(groups)
    compared = [heading(ranked_by), "95 %"]
    if "difference" in groups:
        compared += [names["difference"], names["difference_low"]]
    short = [*compared, *_headings(BOUNDS), "note"]
    return _layout(table, labels, short, {"group": labels[0]} | names)


def row_layout(table: pd.DataFrame, labels: list[str], ranked_by: Bound = "elbo") -> Layout:
    """Return the layout of a table that has a row for each model, run or estimator.

    The short table has all columns: first the seed and the bounds, then all others.

    Args:
        table: The table, with the names that columns have in csv.
        labels: The names of the columns that tell the rows apart.
        ranked_by: The bound that comes first.
    """
    names = {str(name): heading(str(name)) for name in table}
    short = _headings(["seed", ranked_by, *BOUNDS, *map(str, table)])
    table = table.dropna(axis="columns", how="all").rename(columns=names)
    return _layout(table, _headings(labels), short, names)


def _layout(
    table: pd.DataFrame, labels: list[str], short: Iterable[str], names: dict[str, str]
) -> Layout:
    """Return a layout whose short table has each column of the table at most once."""
    present = [name for name in dict.fromkeys(short) if name in table and name not in labels]
    return Layout(table, labels, present, names)


def _headings(names: Iterable[str]) -> list[str]:
    return [heading(name) for name in names]


def choose(layouts: Mapping[str, Layout], columns: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return tables with the columns that have been chosen, by title.

    Args:
        layouts: The layout of each table, by title.
        columns: Headings, or names in csv. The labels always come first. `all` alone stands for
            all columns. A column that a table lacks is empty.

    Raises:
        UserError: No table has such a column.
    """
    if list(columns) == ["all"]:
        return {title: layout.table for title, layout in layouts.items()}
    names: dict[str, str] = {}
    for layout in layouts.values():
        names |= {name: name for name in layout.names.values()} | layout.names
    for column in columns:
        if column not in names:
            raise UserError(f"--columns: '{column}' is no column{close_match(column, names)}")
    return {
        title: layout.table.reindex(
            columns=[*dict.fromkeys([*layout.labels, *(names[column] for column in columns)])]
        )
        for title, layout in layouts.items()
    }


def render_short(
    layouts: Mapping[str, Layout], width: int | None, hint: str, digits: int = 2
) -> str:
    """Return the short tables as text, each below its title.

    If a table is too wide, names are shortened and columns are left out from the right. A line
    below the table names them.

    Args:
        layouts: The layout of each table, by title.
        width: The characters that fit in a line; None for any number.
        hint: A sentence that says where all columns are.
        digits: The digits after the point.
    """
    parts = []
    for title, layout in layouts.items():
        columns = to_cells(layout.table[[*layout.labels, *layout.short]], digits)
        left_out: list[str] = []
        if width is not None:
            columns, left_out = _fit(columns, len(layout.labels), width)
        parts += [_wrap(f"{title}:", width), grid(columns)]
        if left_out:
            parts.append(_wrap(f"No room for: {', '.join(left_out)}. {hint}", width))
    return "\n\n".join(parts)


def _wrap(text: str, width: int | None) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False) if width else text


def _fit(
    columns: list[list[str]], label_count: int, width: int
) -> tuple[list[list[str]], list[str]]:
    """Return columns that fit in a line, and the headings of those that are left out.

    The labels and the column after them stay as long as possible.
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
