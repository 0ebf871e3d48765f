"""Draw the test ELBO of the published tables at 4x8 against the cost of a training step.

    uv run python tests/tools/elbo_against_cost.py

It reads three CSV files of docs/results and writes docs/images/elbo_against_cost.svg.
"""

from pathlib import Path

import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from vae.comparison.figures import _add_legend, _figure, _styles_in_turn, to_svg

DOCS = Path(__file__).parents[2] / "docs"
WORST_ELBO = -145.0  # what is below it is named and not drawn


def main() -> None:
    cost = pd.read_csv(DOCS / "results/step_cost.csv", index_col="group")["cost_4x8"]
    short = pd.read_csv(DOCS / "results/all_estimators_20_epochs.csv")
    long = pd.read_csv(DOCS / "results/seeds_4x8.csv")
    groups = pd.Series([*dict.fromkeys([*short["group"], *long["group"]])], dtype=str)
    looks = dict(zip(groups, _styles_in_turn(groups.str.split().str[0]), strict=True))
    figure, panels = _figure(panels=2)
    labelled: set[str] = set()
    for axes, table, title in zip(
        panels,
        (short, long),
        (
            "20 epochs, Adam 5e-4, 1 to 4 runs",
            "160 epochs, published settings, 1 to 10 seeds",
        ),
        strict=True,
    ):
        statistics = table.groupby("group", sort=False)["elbo"].agg(["mean", "std"])
        is_drawn = (statistics["mean"] > WORST_ELBO) & statistics.index.isin(cost.index)
        left_out = statistics.index[~is_drawn]
        for group, (mean, deviation) in statistics.drop(left_out).iterrows():
            axes.errorbar(
                cost[group],
                mean,
                yerr=None if pd.isna(deviation) else deviation,
                fmt=looks[group].marker,
                color=looks[group].color,
                capsize=3,
                label=None if group in labelled else group,
            )
            labelled.add(str(group))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        note = f"\nnot shown: {', '.join(left_out)}" if len(left_out) else ""
        axes.set(xlabel=f"CPU time of a step / straight_through{note}", ylabel="test ELBO, nats")
        axes.set_title(title, fontsize="small", loc="left")
    handles = [axes.get_legend_handles_labels() for axes in panels]
    for line, label in zip(*handles[0], strict=True):  # one legend, beside the right panel
        panels[1].errorbar(
            [], [], fmt=line[0].get_marker(), color=line[0].get_color(), label=label
        )
    _add_legend(panels[1])
    file = DOCS / "images/elbo_against_cost.svg"
    file.write_text(to_svg(figure, salt="elbo_against_cost"), encoding="utf-8")


if __name__ == "__main__":
    main()
