"""Choose the columns of a table for people, and fit a table to the width of a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from vae.comparison.render import ranking_bound, readable, readable_names, to_cells
from vae.comparison.table import part
from vae.comparison.text import BOUNDS, Bound, heading, in_order, render_columns
from vae.utils.errors import UserError, close_match


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
    that orders the groups, the difference to the baseline, the other bounds and the note. If the
    difference of a group is over fewer seeds than the group has, the number of pairs follows it.
    """
    table, names = readable(groups), readable_names(groups)
    labels = [*(part(groups, "setting") if "setting" in groups else ["group"]), "n"]
    ranked_by = ranking_bound(groups)
    compared = [heading(ranked_by), "95 %"]
    if "difference" in groups:
        compared += [names["difference"], names["difference_low"]]
        pairs = groups["difference", "pairs"]
        if ((pairs > 0) & (pairs < groups["n", ""])).any():
            compared.append(names["pairs"])
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
    short = _headings(in_order(map(str, table), ranked_by))
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
    return "\n\n".join(
        render_columns(
            title,
            to_cells(layout.table[[*layout.labels, *layout.short]], digits),
            len(layout.labels),
            width,
            hint,
        )
        for title, layout in layouts.items()
    )
