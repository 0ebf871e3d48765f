"""Figures of finished runs. An estimator has the same colour, marker and line in all of them.

The colours are those of Okabe & Ito (2008), without yellow, which is too light on white: every
kind of colour vision tells them apart; where a colour comes again, marker and line differ.
"""

import math
import zlib
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
_MARKERS = ["o", "s", "^"]
_LINES = ["-", "--", ":"]

_KNOWN = [
    # The most common first: they differ in colour.
    ["straight_through", "straight_through_gumbel", "gumbel_softmax", "reinmax", "reinforce"],
    ["exact", "disarm", "minimum_variance", "gumbel_rao", "gapped_straight_through"],
    ["relax", "rebar", "decoupled_straight_through_gumbel", "reinmax_rao", "vimco"],
    ["reinforce_learned_baseline", "reinforce_moving_average", "straight_through_argmax"],
    ["softmax"],
]
_ORDER = {name: index for index, name in enumerate(sum(_KNOWN, []))}


class Style(NamedTuple):
    color: str
    marker: str
    linestyle: str


def style(name: str) -> Style:
    """How an estimator is drawn, whatever else is in the figure."""
    index = _ORDER.get(name, zlib.crc32(name.encode()))
    turn = index // len(_COLOURS) % len(_MARKERS)
    return Style(_COLOURS[index % len(_COLOURS)], _MARKERS[turn], _LINES[turn])


def bias_against_deviation(measured: pd.DataFrame, title: str) -> Figure:
    """One point an estimator: relative deviation to the right, relative bias upwards.

    Columns estimator, bias, bias_error, deviation. The bar is a standard error of the bias.
    """
    figure, axes = _figure(1)
    for row in measured.itertuples():
        drawn = style(row.estimator)
        axes[0].errorbar(
            row.deviation,
            row.bias,
            yerr=row.bias_error,
            fmt=drawn.marker,
            color=drawn.color,
            markersize=7,
            capsize=3,
            label=row.estimator,
        )
    axes[0].set_xscale("log")
    axes[0].set(xlabel="relative standard deviation of one draw", ylabel="relative bias")
    axes[0].set_title(title, fontsize="medium", loc="left")
    axes[0].axhline(0, color="0.8", zorder=0)
    _legend(figure, axes[0])
    return figure


def gradient_along_training(curves: dict[str, pd.DataFrame]) -> Figure:
    """Bias, variance and cosine of each estimator's gradient at the model that it trains.

    Frames with the columns of metrics.jsonl, by estimator.
    """
    figure, axes = _figure(3)
    panels = {"bias": "relative bias", "variance": "relative variance", "cosine": "cosine"}
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        for estimator, lines in curves.items():
            drawn = style(estimator)
            points = lines.dropna(subset=[f"gradient/{name}"])
            axis.plot(
                points["step"],
                points[f"gradient/{name}"],
                color=drawn.color,
                linestyle=drawn.linestyle,
                label=estimator,
            )
        axis.set(xlabel="step", ylabel=label)
    axes[1].set_yscale("log")
    _legend(figure, axes[-1])
    return figure


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    """Without pyplot, which keeps every figure in memory and looks for a screen."""
    figure = Figure(figsize=(1.5 + 4.5 * panels, 4.2), layout="constrained", dpi=110)
    axes = [figure.add_subplot(1, panels, 1 + index) for index in range(panels)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        frameon=False,
        ncols=math.ceil(len(labels) / 20) or 1,
        fontsize="small",
    )
