"""Estimators look different in figures, and panels and legends do not overlap."""

import warnings
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.helpers import option_names
from vae.comparison import figures
from vae.comparison.table import Comparison

pytestmark = pytest.mark.usefixtures("float32")


def comparison_of(labels: list[str]) -> Comparison:
    """Return groups of one estimator with one run each, whose folder is named like the group."""
    columns = {
        ("run", "folder"): labels,
        ("run", "seed"): 0,
        ("run", "group"): labels,
        ("measured", "elbo"): -100.0,
        ("measured", "rate"): 20.0,
        ("measured", "distortion"): 80.0,
    }
    return Comparison(
        runs=pd.DataFrame(columns),
        excluded=pd.DataFrame(),
        methods=pd.Series("reinmax", index=labels),
        settings=pd.DataFrame({"a": labels}, index=labels),
    )


def test_each_estimator_has_one_style_and_no_two_share_it():
    names = [*option_names("estimator"), "vimco", "reweighted_wake_sleep"]
    styles = {name: figures.style(name) for name in names}
    assert len(set(styles.values())) == len(names)
    assert figures.style("of my own") == figures.style("of my own")


def test_an_estimator_at_two_settings_looks_like_no_other_estimator_of_the_figure():
    names = option_names("estimator")
    methods = pd.Series([*names, "disarm", "muprop", "muprop", "reinforce"])
    looks = figures._styles_in_turn(methods)
    assert looks[: len(names)] == [figures.style(name) for name in names]
    assert len({(look.color, look.marker) for look in looks}) == len(looks)


@pytest.mark.parametrize("number", [3, 50])
def test_many_groups_with_long_names_neither_squeeze_a_panel_nor_lie_over_it(number):
    labels = [
        f"straight_through_gumbel temperature=0.{index:03} some.other.setting=1e-{index}"
        for index in range(number)
    ]
    comparison = comparison_of(labels)
    metrics = pd.DataFrame({"step": [1.0, 2.0], "elbo/train": [-120.0, -100.0]})
    drawn = [
        figures.learning_curves(comparison, dict.fromkeys(labels, metrics)),
        figures.rate_distortion(comparison),
        figures.final_bounds(comparison),
    ]
    legends = 0
    for figure in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns if a layout has no room
            figure.draw_without_rendering()
        (axes,) = figure.axes
        panel = axes.get_window_extent()
        assert panel.width > 350
        assert panel.height > 60
        saved = figure.get_tightbbox()  # in inches
        legend = axes.get_legend()
        if legend is not None and legend.get_texts():
            legends += 1
            extent = legend.get_window_extent()
            assert len(legend.get_texts()) == number
            assert extent.x0 >= panel.x1
            assert extent.x1 <= saved.x1 * figure.dpi + 1
            assert extent.y0 >= saved.y0 * figure.dpi - 1
    assert legends == 2


def test_axis_of_a_figure_with_one_point_is_logarithmic():
    table = pd.DataFrame(
        {"estimator": ["reinmax"], "bias": [0.1], "bias_error": [0.0], "deviation": [2.0]}
    )
    (axes,) = figures.bias_against_deviation(table, "title").axes
    assert axes.get_xscale() == "log"


def test_estimators_are_named_below_the_figure_if_none_can_be_drawn():
    row = {"estimator": "reinmax:samples=2", "bias": 0.5, "bias_error": 0.1, "deviation": 0.0}
    figure = figures.bias_against_deviation(pd.DataFrame([row]), "title")
    figure.draw_without_rendering()
    assert "reinmax:samples=2 0.50" in figure.axes[0].get_xlabel()


def test_names_are_drawn_as_they_are_even_if_they_look_like_formulas_or_begin_with_an_underscore():
    names = ["_run", r"a$\frac$b", "x$y$"]
    points = pd.DataFrame({"step": [1.0, 2.0], "elbo/train": [-120.0, -100.0]})
    points[[f"gradient/{name}" for name in ("bias", "variance", "cosine")]] = 0.25
    comparison = comparison_of(names)
    measured = {"estimator": names, "bias": 0.5, "bias_error": 0.1, "deviation": 2.0}
    for figure in (
        figures.learning_curves(comparison, dict.fromkeys(names, points)),
        figures.rate_distortion(comparison),
        figures.bias_against_deviation(pd.DataFrame(measured), "title"),
        figures.gradient_along_training({Path(name): ("reinmax", points) for name in names}),
        figures.final_bounds(comparison),
    ):
        legend = figure.axes[-1].get_legend()
        texts = legend.get_texts() if legend else figure.axes[0].get_yticklabels()
        assert [text.get_text() for text in texts] == names
        assert "<svg" in figures.to_svg(figure, "salt")


# Tooltips


def tooltips_of(figure: Figure) -> list[str]:
    """Return the texts of the tooltips in the SVG element of a figure."""
    root = ElementTree.fromstring(figures.to_svg(figure, "salt"))
    return [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]


def test_points_and_curves_have_tooltips():
    comparison = comparison_of(["a & <b>"])
    metrics = pd.DataFrame({"step": [1.0, 2.0], "elbo/train": [-120.0, -100.0]})
    curves = figures.learning_curves(comparison, {"a & <b>": metrics})
    assert tooltips_of(curves) == [
        "a & <b>",
        "a & <b>, step 2: ELBO -100.00",
        "a & <b>, step 1: ELBO -120.00",
    ]
    assert tooltips_of(figures.rate_distortion(comparison)) == [
        "a & <b>, seed 0: rate 20.00, distortion 80.00, ELBO -100.00"
    ]
    assert tooltips_of(figures.final_bounds(comparison)) == [
        "a & <b>, seed 0: ELBO -100.00",
        "a & <b>: mean ELBO -100.00",
    ]


def test_figures_of_gradients_have_tooltips():
    row = {"estimator": "reinmax", "bias": 0.5, "bias_error": 0.1, "deviation": 2.0}
    (tooltip,) = tooltips_of(figures.bias_against_deviation(pd.DataFrame([row]), "title"))
    assert tooltip == "reinmax: relative bias 0.500 ± 0.100, relative standard deviation 2.000"
    names = ("bias", "variance", "cosine")
    metrics = pd.DataFrame({"step": [7.0], **{f"gradient/{name}": [0.25] for name in names}})
    figure = figures.gradient_along_training({Path("run"): ("reinmax", metrics)})
    for name in names:
        assert f"reinmax, step 7: {name} 0.25" in tooltips_of(figure)


def test_long_curve_has_few_tooltips_and_one_of_them_at_its_end():
    steps = pd.Series(range(1000), dtype=float)
    metrics = pd.DataFrame({"step": steps, "elbo/train": steps - 2000})
    figure = figures.learning_curves(comparison_of(["a"]), {"a": metrics})
    texts = tooltips_of(figure)
    assert len(texts) <= 30
    assert "a, step 999: ELBO -1001.00" in texts


@pytest.mark.filterwarnings("ignore:Glyph 1 ")  # matplotlib's font cannot draw it
def test_figure_with_control_characters_in_a_label_is_valid_xml():
    assert "a\ufffd, seed 0: ELBO -100.00" in tooltips_of(
        figures.final_bounds(comparison_of(["a\x01"]))
    )
