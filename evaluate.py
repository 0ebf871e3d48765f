"""Prints the test bounds of finished runs: `python evaluate.py outputs/RUN [RUN ...]`.

The model is rebuilt from its run folder alone. Every bound is of the discrete model, in nats per
image; the noise is the same for every run.

With --gradients: how good a gradient the runs' estimators give their encoders.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# No torch up here: --help is asked for more often than anything else.

CONFIGS = Path(__file__).parent / "configs"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--model", choices=["best", "last"], help="which one; by default the best that there is"
    )
    parser.add_argument(
        "--importance-samples",
        type=count,
        default=100,
        metavar="M",
        help="samples of the importance-weighted bound (default: 100)",
    )
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="where the images are now, if not where they were"
    )
    parser.add_argument(
        "--format",
        choices=["table", "markdown", "csv", "json"],
        default="table",
        help="default: table",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="with --gradients: write the figures there"
    )
    gradients = parser.add_argument_group("the gradient, instead of the bounds")
    gradients.add_argument(
        "--gradients",
        action="store_true",
        help="relative bias, deviation, cosine and signal-to-noise of each run's estimator",
    )
    gradients.add_argument(
        "--estimators",
        type=lambda names: names.split(","),
        metavar="NAMES",
        help="these at their default settings, separated by commas, or all",
    )
    gradients.add_argument(
        "--draws", type=count, default=1000, metavar="R", help="of the noise (default: 1000)"
    )
    return parser.parse_args()


def count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    arguments = parse()
    import torch

    torch.set_flush_denormal(True)

    from vae import comparison

    tables, status = (gradients if arguments.gradients else bounds)(arguments)
    if tables:
        print(comparison.render(tables, arguments.format))
    return status


def bounds(arguments: argparse.Namespace) -> "tuple[dict[str, pd.DataFrame], int]":
    """A table a data set, a row a run."""
    import pandas as pd

    from vae import comparison, door, evaluation
    from vae.validation import UserError

    rows, status = {}, 0
    for run in arguments.runs:
        try:
            model = door.load(run, arguments.model)
            data = door.load_data(run, arguments.data_root)
        except UserError as error:
            status = complain(error)
            continue
        measured = evaluation.bounds(model, data.test.images, arguments.importance_samples)
        rows.setdefault(comparison.title(data), []).append({"run": str(run), **measured})
    return {title: pd.DataFrame(measured) for title, measured in rows.items()}, status


def gradients(arguments: argparse.Namespace) -> "tuple[dict[str, pd.DataFrame], int]":
    """A row an estimator of a run; the figures, where a folder for them is named."""
    import pandas as pd

    from vae import door, figures, runs
    from vae.validation import UserError

    names = arguments.estimators
    if names == ["all"]:
        names = door.option_names(CONFIGS, "estimator")
    rows, curves, status = {}, {}, 0
    for run in arguments.runs:
        try:
            measured = runs.measure_gradients(
                run, CONFIGS, arguments.model, names, arguments.draws, arguments.data_root
            )
        except UserError as error:
            status = complain(error)
            continue
        for name, quality in measured.quality.items():
            row = {"run": str(run), "estimator": name, **quality._asdict()}
            rows.setdefault(measured.title, []).append(row)
        lines = runs.metrics(run)
        if "gradient/bias" in lines:
            curves[door.method(run, CONFIGS)] = lines
    tables = {title: pd.DataFrame(measured) for title, measured in rows.items()}
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for index, (title, table) in enumerate(tables.items()):
            file = arguments.output / f"gradients{index or ''}.svg"
            figures.bias_against_deviation(table, title).savefig(file)
        if curves:
            file = arguments.output / "gradients_along_training.svg"
            figures.gradient_along_training(curves).savefig(file)
    return tables, status


def complain(error: Exception) -> int:
    print(f"evaluate.py: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
