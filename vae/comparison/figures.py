"""Figures of finished runs. An estimator has the same colour, marker and line in all of them.

The colours are from Okabe & Ito (2008) without yellow, which is too light on white. They can be
told apart with every kind of colour vision. Save figures with `to_svg`, which adds the tooltips.
"""

import io
import math
import os
import re
import textwrap
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from vae.comparison.table import Comparison, numbers
from vae.config.describe import option_targets

_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
_MARKERS = ["o", "s", "^", "D", "v"]
_LINES = ["-", "--", ":", "-."]
_MOST_COMMON = [  # each has a colour; all other options share these colours
    *("straight_through", "straight_through_gumbel", "gumbel_softmax", "reinmax", "reinforce"),
    *("exact", "disarm"),
]
_LEGEND_ROWS = 40
_TOOLTIP = "tooltip: "  # the group ids of artists that have a tooltip begin with this
_TOOLTIPS_PER_CURVE = 25
_IN_LEGEND = "legend: "  # matplotlib hides labels that begin with _; `_add_legend` removes this
_NAMESPACES = {"": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}
_NO_NOISE, _WORST_BIAS = 0.02, 2.0  # relative; beyond them, an estimator is named and not drawn


_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Style(NamedTuple):
    """The arguments of matplotlib that draw an estimator."""

    color: str
    marker: str
    linestyle: str


def style(method: str, turn: int = 0) -> Style:
    """Return how an estimator or objective is drawn, in every figure.

    Args:
        method: The name of its option. Any other name gets a style from its hash.
        turn: 0 for its first group in a figure, 1 for its second one, and so on.
    """
    index = _option_order().get(method, zlib.crc32(method.encode()))
    turn += index // len(_COLOURS)
    return Style(
        _COLOURS[index % len(_COLOURS)],
        _MARKERS[turn % len(_MARKERS)],
        _LINES[turn % len(_LINES)],
    )


@cache
def _option_order() -> dict[str, int]:
    """Return the positions of all options, the most common estimators first."""
    options = {*option_targets("estimator"), *option_targets("objective")}
    order = [*_MOST_COMMON, *sorted(options - {*_MOST_COMMON})]
    return {name: index for index, name in enumerate(order)}


def styles(comparison: Comparison) -> dict[str, Style]:
    """Return the style of each group by its label; groups of one estimator share its colour."""
    methods = comparison.methods.sort_index()
    return dict(zip(methods.index, _styles_in_turn(methods), strict=True))


def _styles_in_turn(methods: pd.Series) -> list[Style]:
    """Return the style of each entry; repeated methods get their next marker and line.

    If another method already uses a marker in this colour, the next free marker is taken.
    """
    first = {method: style(method) for method in methods}
    chosen: list[Style] = []
    for method, turn in zip(methods, methods.groupby(methods).cumcount(), strict=True):
        taken = {(look.color, look.marker) for look in [*chosen, *first.values()]}
        looks = [style(method, turn + more) for more in range(len(_MARKERS))]
        free = [look for look in looks if (look.color, look.marker) not in taken]
        chosen.append(first[method] if turn == 0 else (free or looks)[0])
    return chosen


def to_svg(figure: Figure, salt: str) -> str:
    """Return a figure as an SVG element whose points and curves have tooltips.

    The element is larger than the canvas: legends and long labels are outside of the canvas.

    Args:
        figure: A figure of this module.
        salt: The ids in the element follow from it. Figures of one page need different salts.
    """
    file = io.StringIO()
    no_metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    with rc_context({"svg.hashsalt": salt}):  # the same figure always gives the same file
        figure.savefig(file, format="svg", bbox_inches="tight", metadata=no_metadata)
    for prefix, uri in _NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    # The name of a folder may have characters that XML cannot represent.
    root = ElementTree.fromstring(_NOT_IN_XML.sub("\ufffd", file.getvalue()))
    for group in root.iter():
        if group.get("id", "").startswith(_TOOLTIP):
            title = ElementTree.Element(f"{{{_NAMESPACES['']}}}title")
            title.text = group.attrib.pop("id").removeprefix(_TOOLTIP)
            group.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def learning_curves(comparison: Comparison, metrics: dict[str, pd.DataFrame]) -> Figure:
    """Draw the ELBO during training: the mean over seeds, in a band from worst to best seed.

    The ELBO is of held-out images if every run has some, and of training images otherwise. Steps
    that a seed lacks are left out.

    Args:
        comparison: The groups.
        metrics: The metrics of each run, by its folder.
    """
    runs = comparison.runs["run", "folder"]
    metrics = {run: metrics[run] for run in runs if not metrics[run].empty}
    held_out = all("elbo/valid" in lines for lines in metrics.values())
    name = "elbo/valid" if held_out else "elbo/train"
    figure, (axes,) = _figure()
    final = []
    looks = styles(comparison)
    for label in comparison.labels():
        look = looks[label]
        folders = comparison.runs_of(label)["run", "folder"]
        seeds = [metrics[run].set_index("step")[name] for run in folders if run in metrics]
        curves = pd.concat(seeds, axis="columns").dropna() if seeds else pd.DataFrame()
        if curves.empty:
            continue
        mean, low, high = curves.mean(axis=1), curves.min(axis=1), curves.max(axis=1)
        axes.plot(
            mean,
            color=look.color,
            linestyle=look.linestyle,
            label=_IN_LEGEND + label,
            gid=_TOOLTIP + label,
        )
        for step in _thin_out(mean.index):
            span = f", from {low[step]:.2f} to {high[step]:.2f}" if len(seeds) > 1 else ""
            text = f"{label}, step {step:.0f}: ELBO {mean[step]:.2f}{span}"
            _add_tooltip(axes, step, mean[step], text)
        axes.fill_between(curves.index, low, high, color=look.color, alpha=0.2, linewidth=0)
        final.append(mean.iloc[-1])
    axes.set(xlabel="step", ylabel=f"ELBO, {'held-out' if held_out else 'training'} images")
    if final:
        axes.set_ylim(
            *_window(pd.concat([lines[name] for lines in metrics.values()]), pd.Series(final))
        )
    _add_legend(axes)
    return figure


def rate_distortion(comparison: Comparison) -> Figure:
    """Draw every run by its rate and distortion; along each grey line, the ELBO is constant."""
    figure, (axes,) = _figure()
    looks = styles(comparison)
    for label in comparison.labels():
        look = looks[label]
        runs = comparison.runs_of(label)
        rate, distortion = numbers(runs, "rate"), numbers(runs, "distortion")
        axes.plot(
            rate,
            distortion,
            linestyle="none",
            marker=look.marker,
            color=look.color,
            alpha=0.8,
            label=_IN_LEGEND + label,
        )
        for seed, x, y in zip(rate.index, rate, distortion, strict=True):
            text = f"{label}, seed {seed}: rate {x:.2f}, distortion {y:.2f}, ELBO {-x - y:.2f}"
            _add_tooltip(axes, x, y, text)
    reconstruction = -numbers(comparison.runs, "distortion")
    low, high = axes.get_xlim()
    bottom, top = sorted(-limit for limit in _window(reconstruction, reconstruction))
    for elbo in MaxNLocator(8).tick_values(bottom + low, top + high):
        axes.plot([low, high], [elbo - low, elbo - high], color="0.85", zorder=0, linewidth=1)
    axes.set(xlabel="rate, nats", ylabel="distortion, nats", xlim=(low, high), ylim=(bottom, top))
    _add_legend(axes)
    return figure


def final_bounds(comparison: Comparison) -> Figure:
    """Draw the test ELBO of every seed and the mean of each group, the best group on top."""
    elbo = numbers(comparison.runs, "elbo")
    means = elbo.groupby(comparison.runs["run", "group"].to_numpy(), sort=False).mean()
    means = means.sort_values(ascending=False, kind="stable")
    figure, (axes,) = _figure(height=0.7 + 0.3 * len(means))
    low, high = _window(elbo, means)
    looks = styles(comparison)
    for row, label in enumerate(means.index):
        color, mean, values = (
            looks[label].color,
            means[label],
            numbers(comparison.runs_of(label), "elbo"),
        )
        visible = values[values >= low]
        rows = [row] * len(visible)
        axes.plot(visible, rows, looks[label].marker, color=color, alpha=0.6, linestyle="none")
        for seed, value in visible.items():
            _add_tooltip(axes, value, row, f"{label}, seed {seed}: ELBO {value:.2f}")
        if mean >= low:
            text = f"{_TOOLTIP}{label}: mean ELBO {mean:.2f}"
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=color, linewidth=2, gid=text)
        if len(visible) < len(values):
            text = f"◂ {values.min():.1f}"
            axes.annotate(text, (low, row), color=color, va="center", fontsize="small")
    axes.set_yticks(range(len(means)), list(means.index), parse_math=False)
    axes.set(xlabel="test ELBO, nats", xlim=(low, high), ylim=(len(means) - 0.5, -0.5))
    return figure


def bias_against_deviation(measured: pd.DataFrame, title: str) -> Figure:
    """Draw one point per estimator: relative deviation to the right, relative bias upwards.

    The bar is one standard error of the bias. Estimators without noise, and those whose bias is
    far above the bias of a zero gradient, are named below the figure instead.

    Args:
        measured: A table with the columns estimator, bias, bias_error and deviation.
        title: What was measured.
    """
    figure, (axes,) = _figure()
    is_drawn = (measured["deviation"] > _NO_NOISE) & (measured["bias"] < _WORST_BIAS)
    drawn, others = (measured[chosen].to_dict("records") for chosen in (is_drawn, ~is_drawn))
    # The option's colour, also at other settings: reinmax:temperature=1.
    options = measured[is_drawn]["estimator"].str.split(":").str[0]
    for row, look in zip(drawn, _styles_in_turn(options), strict=True):
        axes.errorbar(
            row["deviation"],
            row["bias"],
            yerr=row["bias_error"],
            fmt=look.marker,
            color=look.color,
            markersize=7,
            capsize=3,
            label=_IN_LEGEND + row["estimator"],
        )
        text = (
            f"{row['estimator']}: relative bias {row['bias']:.3f} ± {row['bias_error']:.3f}, "
            f"relative standard deviation {row['deviation']:.3f}"
        )
        _add_tooltip(axes, row["deviation"], row["bias"], text)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.axhline(0, color="0.8", zorder=0)
    names = ", ".join(f"{row['estimator']} {row['bias']:.2f}" for row in others)
    not_shown = f"\nNot shown, relative bias: {names}" if others else ""
    axes.set_xlabel("relative standard deviation of one draw" + not_shown)
    axes.set_ylabel("relative bias")
    axes.set_title(textwrap.fill(title, 75), fontsize="small", loc="left")
    _add_legend(axes)
    return figure


def gradient_along_training(curves: dict[Path, tuple[str, pd.DataFrame]]) -> Figure:
    """Draw bias, variance and cosine of each run's gradient at the model that it trains.

    The bias is drawn in a band of one standard error.

    Args:
        curves: The estimator of each run and its metrics, by the folder of the run. The folder
            names the line if there are several runs of one estimator.
    """
    figure, axes = _figure(panels=3)
    methods = pd.Series([estimator for estimator, _ in curves.values()])
    is_alone = ~methods.duplicated(keep=False)
    # A font cannot draw the bytes of a name that are not valid UTF-8.
    names = [os.fsencode(folder.name).decode(errors="replace") for folder in curves]
    looks = _styles_in_turn(methods)
    lines = zip(curves.values(), names, is_alone, looks, strict=True)
    for (estimator, metrics), run_name, alone, look in lines:
        for axis, name in zip(axes, ("bias", "variance", "cosine"), strict=True):
            points = metrics.dropna(subset=[f"gradient/{name}"])
            label = estimator if alone else run_name
            values = points.set_index("step")[f"gradient/{name}"]
            axis.plot(
                values,
                color=look.color,
                linestyle=look.linestyle,
                label=_IN_LEGEND + label,
                gid=_TOOLTIP + label,
            )
            for step in _thin_out(values.index):
                text = f"{label}, step {step:.0f}: {name} {values[step]:.3g}"
                _add_tooltip(axis, step, values[step], text)
            if name == "bias" and "gradient/bias_error" in points:
                bias, error = points["gradient/bias"], points["gradient/bias_error"]
                low, high = (bias - error).clip(0), bias + error
                axis.fill_between(points["step"], low, high, color=look.color, alpha=0.15, lw=0)
    for axis, label in zip(axes, ("relative bias", "relative variance", "cosine"), strict=True):
        axis.set(xlabel="step", ylabel=label)
    axes[1].set_yscale("log")
    _add_legend(axes[-1])
    return figure


def _thin_out(steps: pd.Index) -> pd.Index:
    """Return the steps of a curve whose points have tooltips; the last one is among them."""
    stride = math.ceil(len(steps) / _TOOLTIPS_PER_CURVE)
    return steps[::-1][:: max(stride, 1)]


def _add_tooltip(axes: Axes, x: float, y: float, text: str) -> None:
    """Give a point a tooltip, by an invisible marker that is easy to hit.

    Each marker is drawn by a separate call, because matplotlib leaves out markers off the canvas.
    """
    axes.plot(x, y, "o", alpha=0, markersize=10, gid=_TOOLTIP + text)


def _window(values: pd.Series, final: pd.Series) -> tuple[float, float]:
    """Return axis limits that contain at least the better half of the final values.

    Values far below them are cut off.
    """
    best, median = final.max(), final.median()
    reach = max(4 * (best - median), 0.15 * abs(best), 5.0)
    low, high = max(values.min(), best - reach), values.max()
    margin = 0.04 * (high - low) + 0.5
    return low - margin, high + margin


def _figure(panels: int = 1, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side.

    It is made without pyplot, which keeps every figure in memory and looks for a screen.
    """
    figure = Figure(figsize=(5 * panels, height), dpi=110)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.3)  # the panels fill the canvas, labels stick out
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
    return figure, axes


def _add_legend(axes: Axes) -> None:
    """Add a legend to the right of a panel, outside of the canvas."""
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        frameon=False,
        ncols=math.ceil(len(labels) / _LEGEND_ROWS) or 1,
        fontsize="small",
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label.removeprefix(_IN_LEGEND), parse_math=False)  # a name may contain $
