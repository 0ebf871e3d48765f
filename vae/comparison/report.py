"""Write a comparison to a folder: tables, figures, and a page that contains both and pictures."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vae.comparison import figures
from vae.comparison.collect import DataCache
from vae.comparison.render import Format, flatten, readable, render
from vae.comparison.table import Comparison, Selection, numbers, run_table
from vae.config.load import SavedRun
from vae.tracking import pictures
from vae.tracking.metrics import read_metrics
from vae.utils.files import write_atomically

_ENDINGS: dict[Format, str] = {"csv": "csv", "markdown": "md", "json": "json"}
_ORIGINALS = 16  # above their reconstructions


class Section(NamedTuple):
    """The part of the page that shows one data set.

    Attributes:
        title: The title of the data set.
        table: The table of groups.
        figures: SVG elements, by caption.
        pictures: Reconstructions and samples of each group's best seed, PNG files as data URLs.
    """

    title: str
    table: Markup
    figures: dict[str, Markup]
    pictures: dict[str, tuple[str, str]]


def write(
    comparisons: Mapping[str, Comparison],
    group_tables: Mapping[str, pd.DataFrame],
    selection: Selection,
    data_cache: DataCache,
    folder: Path,
) -> Path:
    """Write the tables, the figures and the page.

    Args:
        comparisons: The comparison of each data set, by title.
        group_tables: The group table of each data set, by title.
        selection: The models and the bound that were compared.
        data_cache: Where the data sets are read.
        folder: An existing folder.

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
        table = text[title].to_html(
            index=False, na_rep="-", float_format="{:.2f}".format, border=0
        )
        sections.append(
            Section(
                title=title,
                table=Markup(table),
                figures=_draw(comparison, folder, f"_{index}" if index else ""),
                pictures=_pictures(comparison, selection, data_cache),
            )
        )
    templates = Environment(loader=PackageLoader("vae.comparison", "templates"), autoescape=True)
    page = folder / "index.html"
    _write_text(page, templates.get_template("report.html").render(sections=sections))
    return page


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


def _pictures(
    comparison: Comparison, selection: Selection, data_cache: DataCache
) -> dict[str, tuple[str, str]]:
    """Return reconstructions and samples of the best seed of each group, as data URLs."""
    drawn = {}
    for label in comparison.labels():
        runs = comparison.runs_of(label)
        best = numbers(runs, selection.rank_by).fillna(-math.inf).argmax()
        run = SavedRun(runs["run", "folder"].iloc[best])
        model, (data, _) = run.model(selection.model), data_cache.get(run)
        originals = pictures.one_per_class_in_turn(data.test, _ORIGINALS)
        drawn[label] = (
            _data_url(pictures.reconstructions(model, originals)),
            _data_url(pictures.samples(model, rows=4)),
        )
    return drawn


def _save(figure: Figure, folder: Path, name: str) -> Markup:
    """Write a figure to name.svg, and return its SVG element for the page."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # the same figure always gives the same file
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue()
    _write_text(folder / f"{name}.svg", svg)
    return Markup(svg[svg.index("<svg") :])


def _write_text(file: Path, text: str) -> None:
    # The names of run folders may hold bytes that are not valid UTF-8. They stay as they are.
    write_atomically(file, text.encode(errors="surrogateescape"))


def _data_url(image: Tensor) -> str:
    """Return a picture (1, height, width) in [0, 1] as a PNG file in a data URL."""
    buffer = io.BytesIO()
    pixels = (image.squeeze(0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
