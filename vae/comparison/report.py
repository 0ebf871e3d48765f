"""Write a comparison to a folder: tables, figures and a page.

The page contains the tables, the figures and pictures. It also has an explorer, with which codes
can be decoded in the browser.
"""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vae.comparison import figures
from vae.comparison.collect import DataCache
from vae.comparison.explorer import collect_explorer, embedded_bytes
from vae.comparison.render import Format, flatten, readable, render
from vae.comparison.table import Comparison, Selection, numbers, run_table
from vae.config.load import SavedRun
from vae.model import CategoricalVAE
from vae.tracking import pictures
from vae.tracking.metrics import read_metrics
from vae.utils.files import write_atomically
from vae.utils.stdout import print_to_stderr

_ENDINGS: dict[Format, str] = {"csv": "csv", "markdown": "md", "json": "json"}
_ORIGINALS = 16  # above their reconstructions
_EXPLORED = 10  # images whose codes can be loaded in the explorer: one of each digit
_SHOWN = {"n", "ELBO", "95 %", "95 % of the difference", "IW bound", "log p(x)", "note"}
"""The columns that the page shows at first, beside the settings and the difference."""


class Column(NamedTuple):
    """A column of the table in the page."""

    heading: str
    is_folded: bool


class Section(NamedTuple):
    """The part of the page that shows one data set.

    Attributes:
        title: The title of the data set.
        columns: The columns of the table of groups.
        rows: The cells of the table of groups.
        explorer: The content of the explorer; None without one.
        figures: SVG elements, by caption.
        pictures: Reconstructions and samples of each group's best seed, PNG files as data URLs.
    """

    title: str
    columns: list[Column]
    rows: list[list[str]]
    explorer: dict[str, Any] | None
    figures: dict[str, Markup]
    pictures: dict[str, tuple[str, str]]


def write(
    comparisons: Mapping[str, Comparison],
    group_tables: Mapping[str, pd.DataFrame],
    selection: Selection,
    data_cache: DataCache,
    folder: Path,
    with_explorer: bool = True,
) -> Path:
    """Write the tables, the figures and the page.

    With an explorer, its size is printed to stderr before the page is written.

    Args:
        comparisons: The comparison of each data set, by title.
        group_tables: The group table of each data set, by title.
        selection: The models and the bound that were compared.
        data_cache: Where the data sets are read.
        folder: An existing folder.
        with_explorer: Whether the page can decode codes; for this it contains decoders.

    Returns:
        The file of the page.

    Raises:
        UserError: A run can no longer be read.
        OSError: A file cannot be written.
    """
    flat = {title: flatten(table) for title, table in group_tables.items()}
    text = {title: readable(table) for title, table in group_tables.items()}
    runs = {title: run_table(comparison) for title, comparison in comparisons.items()}
    _write_text(folder / "groups.csv", render(flat, "csv"))
    _write_text(folder / "groups.json", render(flat, "json"))
    _write_text(folder / "groups.md", render(text, "markdown"))
    _write_text(folder / "runs.csv", render(runs, "csv"))
    sections = []
    for index, (title, comparison) in enumerate(comparisons.items()):
        models, images = _best_models(comparison, selection, data_cache)
        explored = with_explorer and bool(models)
        sections.append(
            Section(
                title=title,
                columns=_columns(text[title]),
                rows=[[_cell(value) for value in row] for row in text[title].to_numpy()],
                explorer=collect_explorer(models, images[:_EXPLORED]) if explored else None,
                figures=_draw(comparison, folder, f"_{index}" if index else ""),
                pictures={label: _pictures(model, images) for label, model in models.items()},
            )
        )
    explorers = [section.explorer for section in sections if section.explorer]
    if explorers:
        size = embedded_bytes(explorers) / 1e6
        print_to_stderr(f"Report: the explorer takes {size:.1f} MB; --no-explorer leaves it out")
    page = folder / "index.html"
    _write_text(page, render_page(sections))
    return page


def render_page(sections: list[Section]) -> str:
    """Return the page as HTML. It refers to no other file, and its policy forbids requests."""
    templates = Environment(loader=PackageLoader("vae.comparison", "templates"), autoescape=True)
    return templates.get_template("report.html").render(sections=sections, zip=zip)


def write_gradients(
    measured: Mapping[str, pd.DataFrame],
    curves: dict[Path, tuple[str, pd.DataFrame]],
    folder: Path,
) -> None:
    """Write tables and figures of measured gradients.

    Args:
        measured: The quality of gradients, one row per run and estimator, by title.
        curves: What `figures.gradient_along_training` draws; not drawn if empty.
        folder: An existing folder.

    Raises:
        OSError: A file cannot be written.
    """
    for form, ending in _ENDINGS.items():
        _write_text(folder / f"gradients.{ending}", render(measured, form, digits=3))
    for index, (title, table) in enumerate(measured.items()):
        figure = figures.bias_against_deviation(table, title)
        _save(figure, folder, f"gradients_{index}" if index else "gradients")
    if curves:
        _save(figures.gradient_along_training(curves), folder, "gradients_along_training")


def _draw(comparison: Comparison, folder: Path, suffix: str) -> dict[str, Markup]:
    """Save the figures of one data set, and return them by caption."""
    runs = comparison.runs["run", "folder"]
    if runs.empty:
        return {}
    metrics = {run: read_metrics(Path(run)) for run in runs}
    drawn = {
        "Learning curves": ("learning_curves", figures.learning_curves(comparison, metrics)),
        "Test ELBO": ("final_bounds", figures.final_bounds(comparison)),
        "Rate and distortion": ("rate_distortion", figures.rate_distortion(comparison)),
    }
    return {
        caption: _save(figure, folder, name + suffix) for caption, (name, figure) in drawn.items()
    }


def _best_models(
    comparison: Comparison, selection: Selection, data_cache: DataCache
) -> tuple[dict[str, CategoricalVAE], Tensor]:
    """Return the model of the best seed of each group, by label, and some test images (n, D).

    The images show one class after another. Without a run, there are none.
    """
    models: dict[str, CategoricalVAE] = {}
    images = torch.empty(0)
    for label in comparison.labels():
        runs = comparison.runs_of(label)
        best = numbers(runs, selection.rank_by).fillna(-math.inf).argmax()
        run = SavedRun(runs["run", "folder"].iloc[best])
        models[label] = run.model(selection.model)
        images = pictures.one_per_class_in_turn(data_cache.get(run)[0].test, _ORIGINALS)
    return models, images


def _columns(table: pd.DataFrame) -> list[Column]:
    """Return the columns of a table that `readable` has formatted.

    The settings come before the column n.
    """
    headings = [str(heading) for heading in table]
    shown = _SHOWN.union(headings[: headings.index("n")])
    return [
        Column(heading, is_folded=heading not in shown and not heading.startswith("difference"))
        for heading in headings
    ]


def _cell(value: Any) -> str:
    """Return a cell of such a table as text."""
    if pd.isna(value):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _pictures(model: CategoricalVAE, images: Tensor) -> tuple[str, str]:
    """Return reconstructions of some images and samples, as data URLs."""
    return (
        _data_url(pictures.reconstructions(model, images)),
        _data_url(pictures.samples(model, rows=4)),
    )


def _save(figure: Figure, folder: Path, name: str) -> Markup:
    """Write a figure to name.svg, and return its SVG element for the page."""
    svg = figures.to_svg(figure, salt=name)
    _write_text(folder / f"{name}.svg", svg)
    return Markup(svg)


def _write_text(file: Path, text: str) -> None:
    # The names of run folders may hold bytes that are not valid UTF-8. They stay as they are.
    write_atomically(file, text.encode(errors="surrogateescape"))


def _data_url(image: Tensor) -> str:
    """Return a picture (1, height, width) in [0, 1] as a PNG file in a data URL."""
    buffer = io.BytesIO()
    pixels = (image.squeeze(0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
