"""Finished runs side by side."""

Measured = dict[str, float | None]


def table(rows: dict[str, Measured]) -> str:
    """A line a row, a column a number, aligned; a dash where a number cannot be had."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["", *columns]]
    for label, row in rows.items():
        lines.append([label, *(_number(row.get(name)) for name in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
