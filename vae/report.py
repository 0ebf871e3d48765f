"""How runs compare, as a folder: tables, figures, pictures, and a page that holds them all."""

import base64
import io
import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from . import figures, pictures, run_folder, runs, tables
from .comparison import Group, View
from .files import write_atomically

_TABLES = {"csv": "csv", "markdown": "md", "json": "json"}
_SHOWN = 16  # originals above their reconstructions


class Section(NamedTuple):
    """One data set on the page."""

    title: str
    table: Markup
    figures: dict[str, Markup]  # svg, by caption
    pictures: dict[str, tuple[str, str]]  # reconstructions and samples, PNG as data URL, by label


def write(
    compared: dict[str, list[Group]],
    view: View,
    baselines: dict[str, Group],
    library: runs.Library,
    folder: Path,
) -> Path:
    """Writes everything to a folder that is there; the page. Raises UserError and OSError."""
    numbers = {
        data: tables.group_table(groups, view, baselines.get(data))
        for data, groups in compared.items()
    }
    each = {data: tables.run_table(groups, view) for data, groups in compared.items()}
    text = {data: tables.readable(table) for data, table in numbers.items()}
    for form, content in (("csv", numbers), ("json", numbers), ("markdown", text)):
        file = folder / f"groups.{_TABLES[form]}"
        write_atomically(file, tables.render(content, form).encode())
    write_atomically(folder / "runs.csv", tables.render(each, "csv").encode())
    sections = [
        _section(data, groups, text[data], view, library, folder, f"_{index}" if index else "")
        for index, (data, groups) in enumerate(compared.items())
    ]
    page = Environment(loader=PackageLoader("vae", "."), autoescape=True).get_template("page.html")
    write_atomically(folder / "index.html", page.render(sections=sections).encode())
    return folder / "index.html"


def write_gradients(
    measured: dict[str, pd.DataFrame],
    curves: dict[Path, tuple[str, pd.DataFrame]],
    folder: Path,
) -> None:
    """Tables of measured gradients, and figures: at given models, and along their training."""
    for form, ending in _TABLES.items():
        text = tables.render(measured, form, digits=3)
        write_atomically(folder / f"gradients.{ending}", text.encode())
    for index, (title, table) in enumerate(measured.items()):
        figure = figures.bias_against_deviation(table, title)
        _save(figure, folder, f"gradients_{index}" if index else "gradients")
    if curves:
        _save(figures.gradient_along_training(curves), folder, "gradients_along_training")


def _section(
    data: str,
    groups: list[Group],
    table: pd.DataFrame,
    view: View,
    library: runs.Library,
    folder: Path,
    suffix: str,
) -> Section:
    compared = [group for group in groups if group.runs]
    curves = {run.folder: runs.metrics(Path(run.folder)) for g in compared for run in g.runs}
    drawn = {}
    if compared:
        drawn = {
            "Learning curves": ("learning_curves", figures.learning_curves(compared, curves)),
            "Test ELBO": ("final_bounds", figures.final_bounds(compared, view.model)),
            "Rate and distortion": (
                "rate_distortion",
                figures.rate_distortion(compared, view.model),
            ),
        }
    return Section(
        title=data,
        table=Markup(table.to_html(index=False, na_rep="-", float_format="%.2f", border=0)),
        figures={
            caption: _save(figure, folder, name + suffix)
            for caption, (name, figure) in drawn.items()
        },
        pictures={each.label: _pictures(each, view, library) for each in compared},
    )


def _pictures(group: Group, view: View, library: runs.Library) -> tuple[str, str]:
    """Of the group's best seed: what it makes of test images, and of codes from the prior."""
    best = max(group.runs, key=lambda run: run.numbers(view.model)[view.by] or -math.inf)
    network = run_folder.load(best.folder, view.model)
    data, _ = library.get(run_folder.read_config(Path(best.folder)))
    originals = pictures.gallery(data.test, _SHOWN)
    return (
        _data_url(pictures.reconstructions(network, originals)),
        _data_url(pictures.samples(network, rows=4)),
    )


def _save(figure: Figure, folder: Path, name: str) -> Markup:
    """Writes it as name.svg, and gives what stands in the page."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # the same figure is the same file
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    write_atomically(folder / f"{name}.svg", svg.encode())
    return Markup(svg[svg.index("<svg") :])


def _data_url(image: Tensor) -> str:
    """(1, height, width) in [0, 1] as a PNG inside a page."""
    buffer = io.BytesIO()
    pixels = (image.squeeze(0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
