"""Finished runs side by side."""

from .data import DataSet

Measured = dict[str, float | None]


def title(data: DataSet) -> str:
    """What the numbers of a table are measured on, and whether their bounds bound a likelihood."""
    measured_on = f"{data.name}, test, {len(data.test):,} images, in nats per image"
    return measured_on if data.binary else f"{measured_on} (grey pixels: no likelihood)"


def table(title: str, rows: dict[str, Measured]) -> str:
    """A line a row, a column a number, aligned; a dash where a number cannot be had."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["", *columns]]
    for label, row in rows.items():
        lines.append([label, *(_number(row.get(name)) for name in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return f"{title}:\n\n" + "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
