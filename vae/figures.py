"""Figures of finished runs. An estimator has the same colour, marker and line in all of them.

The colours are those of Okabe & Ito (2008), without yellow, which is too light on white: every
kind of colour vision tells them apart; where a colour comes again, marker and line differ.
"""

import math
import textwrap
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from . import comparison
from .checkpoint import Which
from .comparison import Group

_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
_NO_NOISE, _WORST_BIAS = 0.02, 2.0
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


def style(name: str, turn: int = 0) -> Style:
    """How an estimator is drawn, whatever else is in the figure; `turn` counts its groups."""
    index = _ORDER.get(name, zlib.crc32(name.encode()))
    turn += index // len(_COLOURS)
    return Style(
        _COLOURS[index % len(_COLOURS)],
        _MARKERS[turn % len(_MARKERS)],
        _LINES[turn % len(_LINES)],
    )


def styles(groups: list[Group]) -> dict[str, Style]:
    """By the groups' labels: an estimator's colour, and another marker and line for each group."""
    turns: Counter[str] = Counter()
    drawn = {}
    for group in sorted(groups, key=lambda group: group.label):
        drawn[group.label] = style(group.method, turns[group.method])
        turns[group.method] += 1
    return drawn


def learning_curves(groups: list[Group], curves: dict[str, pd.DataFrame]) -> Figure:
    """The ELBO along training: the mean over seeds in a band from the worst seed to the best.

    On held-out images where there are any, else on training images. `curves` has the lines of
    metrics.jsonl by the runs' folders. Steps that not every seed has are left out.
    """
    curves = {folder: lines for folder, lines in curves.items() if not lines.empty}
    lines = [curves[run.folder] for group in groups for run in group.runs if run.folder in curves]
    held_out = all("elbo/valid" in each for each in lines)
    name = "elbo/valid" if held_out else "elbo/train"
    figure, (axes,) = _figure(1, [group.label for group in groups])
    drawn = styles(groups)
    final = []
    for group in groups:
        there = [curves[run.folder] for run in group.runs if run.folder in curves]
        seeds = [each.set_index("step")[name] for each in there]
        together = pd.concat(seeds, axis=1).dropna() if seeds else pd.DataFrame()
        if together.empty:
            continue
        look = drawn[group.label]
        middle = together.mean(axis=1)
        axes.plot(middle, color=look.color, linestyle=look.linestyle, label=group.label)
        low, high = together.min(axis=1), together.max(axis=1)
        axes.fill_between(together.index, low, high, color=look.color, alpha=0.2, linewidth=0)
        final.append(middle.iloc[-1])
    axes.set(xlabel="step", ylabel=f"ELBO, {'held-out' if held_out else 'training'} images")
    if final:
        axes.set_ylim(*_window([value for each in lines for value in each[name]], final))
    _legend(figure, axes)
    return figure


def rate_distortion(groups: list[Group], model: Which | None = None) -> Figure:
    """Every run by its rate and distortion; along a grey line the ELBO is constant."""
    figure, (axes,) = _figure(1, [group.label for group in groups])
    drawn = styles(groups)
    for group in groups:
        look = drawn[group.label]
        axes.plot(
            comparison.values(group, "rate", model),
            comparison.values(group, "distortion", model),
            linestyle="none",
            marker=look.marker,
            color=look.color,
            alpha=0.8,
            label=group.label,
        )
    bounds = np.concatenate([comparison.values(group, "distortion", model) for group in groups])
    axes.set_ylim(*reversed([-y for y in _window(-bounds, -bounds)]))
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for elbo in MaxNLocator(8).tick_values(bottom + low, top + high):
        axes.plot([low, high], [elbo - low, elbo - high], color="0.85", zorder=0, linewidth=1)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)
    axes.set(xlabel="rate, nats", ylabel="distortion, nats")
    _legend(figure, axes)
    return figure


def final_bounds(groups: list[Group], model: Which | None = None) -> Figure:
    """The test ELBO of every seed, and the mean of each group; the best group on top."""
    width = 6.5 + _width([group.label for group in groups])
    figure = Figure(figsize=(width, 1.2 + 0.32 * len(groups)), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    _plain(axes)
    drawn = styles(groups)
    groups = sorted(groups, key=lambda group: -comparison.mean(group, "elbo", model))
    everything = np.concatenate([comparison.values(group, "elbo", model) for group in groups])
    low, high = _window(everything, [comparison.mean(group, "elbo", model) for group in groups])
    for row, group in enumerate(groups):
        look, held = drawn[group.label], comparison.values(group, "elbo", model)
        seen = held[held >= low]
        axes.plot(
            seen, [row] * len(seen), look.marker, color=look.color, alpha=0.6, linestyle="none"
        )
        if held.mean() >= low:
            axes.plot([held.mean()] * 2, [row - 0.3, row + 0.3], color=look.color, linewidth=2)
        if len(seen) < len(held):
            axes.annotate(
                f"◂ {held.min():.1f}", (low, row), color=look.color, va="center", fontsize="small"
            )
    axes.set_yticks(range(len(groups)), [group.label for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(low, high)
    axes.set_xlabel("test ELBO, nats")
    return figure


def _window(values: Sequence[float], final: Sequence[float]) -> tuple[float, float]:
    """Limits that show what is good: far below the better half of the ends, the rest is cut."""
    values, final = np.asarray(values, dtype=float), np.asarray(final, dtype=float)
    best, median = final.max(), np.median(final)
    reach = max(4 * (best - median), 0.15 * abs(best), 5.0)
    low = max(np.nanmin(values), best - reach)
    high = np.nanmax(values)
    margin = 0.04 * (high - low) + 0.5
    return low - margin, high + margin


def bias_against_deviation(measured: pd.DataFrame, title: str) -> Figure:
    """One point an estimator: relative deviation to the right, relative bias upwards.

    Columns estimator, bias, bias_error, deviation. The bar is a standard error of the bias. What
    has no noise, or a bias far above that of the zero gradient, is named below instead.
    """
    figure, (axes,) = _figure(1, list(measured.estimator))
    drawn = measured[(measured.deviation > _NO_NOISE) & (measured.bias < _WORST_BIAS)]
    turns: Counter[str] = Counter()
    for row in drawn.itertuples():
        option, _, _ = row.estimator.partition(":")  # at settings of its own, perhaps
        look = style(option, turns[option])
        turns[option] += 1
        axes.errorbar(
            row.deviation,
            row.bias,
            yerr=row.bias_error,
            fmt=look.marker,
            color=look.color,
            markersize=7,
            capsize=3,
            label=row.estimator,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.axhline(0, color="0.8", zorder=0)
    others = [f"{row.estimator} {row.bias:.2f}" for row in measured.drop(drawn.index).itertuples()]
    names = ["relative standard deviation of one draw"]
    names += [f"Not shown, relative bias: {', '.join(others)}"] if others else []
    axes.set(xlabel="\n".join(names), ylabel="relative bias")
    figure.suptitle(textwrap.fill(title, 75), fontsize="small", x=0.01, ha="left")
    _legend(figure, axes)
    return figure


def gradient_along_training(curves: dict[Path, tuple[str, pd.DataFrame]]) -> Figure:
    """Bias, variance and cosine of a run's gradient at the model that it trains, a line a run.

    The bias in a band of one standard error. The run's estimator and a frame with the columns of
    metrics.jsonl, by the run's folder: that is what a line is called where there are several runs
    of the estimator.
    """
    runs = Counter(estimator for estimator, _ in curves.values())
    names = {
        folder: estimator if runs[estimator] == 1 else folder.name
        for folder, (estimator, _) in curves.items()
    }
    figure, axes = _figure(3, list(names.values()))
    panels = {"bias": "relative bias", "variance": "relative variance", "cosine": "cosine"}
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        turns: Counter[str] = Counter()
        for folder, (estimator, lines) in curves.items():
            drawn = style(estimator, turns[estimator])
            turns[estimator] += 1
            points = lines.dropna(subset=[f"gradient/{name}"])
            axis.plot(
                points["step"],
                points[f"gradient/{name}"],
                color=drawn.color,
                linestyle=drawn.linestyle,
                label=names[folder],
            )
            if name == "bias" and "gradient/bias_error" in points:
                error = points["gradient/bias_error"]
                below, above = (points["gradient/bias"] + side * error for side in (-1, 1))
                axis.fill_between(
                    points["step"], below.clip(0), above, color=drawn.color, alpha=0.15, lw=0
                )
        axis.set(xlabel="step", ylabel=label)
    axes[1].set_yscale("log")
    _legend(figure, axes[-1])
    return figure


def _figure(panels: int, labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """With room for a legend of these beside the panels.

    Without pyplot, which keeps every figure in memory and looks for a screen.
    """
    columns = _columns(labels)
    width = 5 * panels + columns * (0.6 + _width(labels))
    height = max(4.5, 0.3 + 0.19 * math.ceil(len(labels) / columns))
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = [figure.add_subplot(1, panels, 1 + index) for index in range(panels)]
    for axis in axes:
        _plain(axis)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        frameon=False,
        ncols=_columns(labels),
        fontsize="small",
    )


def _columns(labels: Sequence[str]) -> int:
    """Of a legend."""
    return math.ceil(len(labels) / 40) or 1


def _width(labels: Sequence[str]) -> float:
    """How wide the longest is in small print, in inches; a little more, rather than less."""
    return 0.08 * max(map(len, labels), default=0)
