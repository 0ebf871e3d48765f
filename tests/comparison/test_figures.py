"""Estimators look different in figures, and panels and legends do not overlap."""

import warnings

import pandas as pd
import pytest

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
    names = [*option_names("estimator"), "vimco"]
    styles = {name: figures.style(name) for name in names}
    assert len(set(styles.values())) == len(names)
    assert figures.style("of my own") == figures.style("of my own")


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
