"""Compare finished runs: `python evaluate.py outputs/RUN_OR_SWEEP [...]`.

The best and the last model of each run are measured on the same test images with the same noise.
The numbers are cached in the run folder as evaluation.json. Runs that differ in their seed alone
are one group, and make one row. All bounds are of the discrete model, in nats per image.

With --gradients, the gradients that estimators give the encoder are measured instead.
"""

import argparse
import os
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vae.runs.folder import STATUS, find_runs
from vae.utils.commands import tensorboard_command
from vae.utils.errors import UserError, first_line, is_out_of_memory
from vae.utils.runtime import configure_process
from vae.utils.stdout import (
    OutputClosed,
    print_error,
    print_or_raise,
    print_to_stderr,
    terminal_width,
)

if TYPE_CHECKING:
    from vae.comparison.columns import Layout
    from vae.comparison.table import Comparison

# Everything that imports torch or pandas is imported in functions, so that --help is fast.

_complain = partial(print_error, "evaluate.py")

_FORMATS_FOR_PEOPLE = ("table", "markdown")

_NOT_MEASURED = "exact is the reference of all other estimators, and is not measured"


def main() -> int:
    """Run the command, and return its exit status."""
    try:
        arguments = _parse()
        configure_process()
        _create_folder("--output", arguments.output)
        _create_folder("--tensorboard", arguments.tensorboard)
        return _compare_gradients(arguments) if arguments.gradients else _compare_bounds(arguments)
    except UserError as error:
        _complain(error)
        return 2
    except (OSError, OutputClosed) as error:
        _complain(error)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _complain(f"not enough memory: {first_line(error)}")
        return 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are printed like all others, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see evaluate.py --help")


def _parse() -> argparse.Namespace:
    """Return the arguments of the command line.

    Raises:
        UserError: The command line is wrong.
    """
    parser = _Parser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0; 1 if nothing could be compared or written; "
        "2 if the command line is wrong; 130 after Ctrl-C.",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="*",
        type=_path,
        metavar="RUN",
        help="a run folder, or a folder above some (default: the newest run or sweep in outputs)",
    )
    add(
        "--model", choices=["best", "last"], help="default: the best, or the last if there is none"
    )
    add("--runs", action="store_true", dest="per_run", help="one row per run instead of per group")
    add(
        "--baseline",
        type=_baseline,
        metavar="GROUP",
        help="add differences to a group, paired by seed: reinmax, or estimator=reinmax,latents=8",
    )
    add(
        "--by",
        choices=["elbo", "importance_weighted", "log_likelihood"],
        default="elbo",
        help="the bound by which groups are ordered and compared (default: elbo)",
    )
    add(
        "--importance-samples",
        type=_count,
        metavar="M",
        help="samples of the importance-weighted bound (default: as many as the run's own)",
    )
    add(
        "--data-root",
        type=_data_root,
        metavar="FOLDER",
        help="read images from here, not from the run's data.root",
    )
    add("--format", choices=["table", "markdown", "csv", "json"], default="table")
    add(
        "--columns",
        type=_columns,
        metavar="NAMES",
        help="all, or names as in the table or in csv (default: with --format table, as many of "
        "the important columns as the terminal has room for; otherwise all)",
    )
    add("--output", type=_path, metavar="FOLDER", help="write tables, figures and index.html here")
    add("--no-explorer", action="store_true", help="leave the decoders out of index.html")
    add(
        "--tensorboard",
        type=_path,
        metavar="FOLDER",
        help="write the means over seeds here, one TensorBoard run per group",
    )
    add = parser.add_argument_group("to measure gradients instead of bounds").add_argument
    add("--gradients", action="store_true", help="bias, deviation, cosine and signal-to-noise")
    add(
        "--estimators",
        type=_estimators,
        metavar="NAMES",
        help="options, or all; with other settings: reinmax:temperature=1 "
        "(default: the run's own estimator as it was trained)",
    )
    add("--draws", type=_count, metavar="R", help="draws of the noise, 2 or more (default: 1000)")
    arguments = parser.parse_args()
    if not arguments.runs:
        arguments.runs = [_newest_folder(Path("outputs"))]
        print_to_stderr(f"The newest in outputs: {arguments.runs[0]}")
    if not arguments.gradients and (arguments.estimators or arguments.draws):
        parser.error("--estimators and --draws need --gradients")
    of_bounds = (arguments.per_run, arguments.baseline, arguments.importance_samples)
    if arguments.gradients and (any(of_bounds) or arguments.by != "elbo"):
        parser.error(
            "--runs, --baseline, --by and --importance-samples cannot be used with --gradients"
        )
    if arguments.no_explorer and (arguments.gradients or not arguments.output):
        parser.error("--no-explorer needs --output, and cannot be used with --gradients")
    if arguments.columns and arguments.format not in _FORMATS_FOR_PEOPLE:
        parser.error("--columns needs --format table or markdown; csv and json have all columns")
    if arguments.gradients and arguments.tensorboard:
        parser.error("--tensorboard cannot be used with --gradients")
    if arguments.draws == 1:
        parser.error("--draws: one draw has no standard deviation; use 2 or more")
    return arguments


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number of 1 or more")
    return int(word)


def _path(word: str) -> Path:
    if not word:  # which would be the working directory
        raise argparse.ArgumentTypeError("'' names no folder")
    return Path(word)


def _data_root(word: str) -> str:
    if not word or (os.path.exists(word) and not os.path.isdir(word)):
        raise argparse.ArgumentTypeError(f"'{word}' is not a folder")
    return word


def _baseline(word: str) -> str:
    if not all(part.partition("=")[0].strip() for part in word.split(",")):
        raise argparse.ArgumentTypeError(f"'{word}' lacks the name of a group or of a setting")
    return word


def _columns(word: str) -> list[str]:
    names = [name.strip() for name in word.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{word}' lacks the name of a column")
    return names


def _estimators(word: str) -> list[str]:
    names = [[part.strip() for part in name.split(":")] for name in word.split(",")]
    if not all(map(all, names)):
        raise argparse.ArgumentTypeError(f"'{word}' lacks the name of an estimator or a setting")
    return [":".join(parts) for parts in names]


def _compare_bounds(arguments: argparse.Namespace) -> int:
    """Print the table of groups or of runs, and write the report if a folder is given."""
    from tqdm import tqdm

    from vae.comparison import report
    from vae.comparison.collect import DataCache, collect
    from vae.comparison.columns import group_layout, row_layout
    from vae.comparison.means import write_means
    from vae.comparison.omissions import excluded_runs, partial_runs, unread_runs
    from vae.comparison.render import flatten, render
    from vae.comparison.table import Selection, compare, group_table, run_table

    data_cache = DataCache(arguments.data_root)
    selection = Selection(arguments.model, arguments.by)
    folders = tqdm(_find_runs(arguments.runs), unit=" runs", leave=False, disable=None)
    errors: dict[Path, Exception] = {}
    table = collect(folders, data_cache, arguments.importance_samples, errors.__setitem__)
    comparisons = compare(table, selection)
    _complain_all(unread_runs(errors))
    _complain_all(excluded_runs(comparisons.values()))
    if all(comparison.runs.empty for comparison in comparisons.values()):
        _complain("nothing could be compared")
        return 1
    baselines = _find_baselines(comparisons, arguments.baseline)
    shown_baselines = baselines
    if arguments.format in _FORMATS_FOR_PEOPLE and not arguments.per_run:
        # Without a baseline, these tables have the differences to the best group.
        labels = {title: comparison.labels() for title, comparison in comparisons.items()}
        best_groups = {title: names[0] for title, names in labels.items() if names}
        shown_baselines = best_groups | baselines
    _complain_all(partial_runs(comparisons, selection, shown_baselines))
    groups = {
        title: group_table(comparison, selection, baselines.get(title))
        for title, comparison in comparisons.items()
    }
    run_tables = {title: run_table(comparison) for title, comparison in comparisons.items()}
    if arguments.format not in _FORMATS_FOR_PEOPLE:
        flat = {title: flatten(table) for title, table in groups.items()}
        text = render(run_tables if arguments.per_run else flat, arguments.format)
    elif arguments.per_run:
        layouts = {
            title: row_layout(table, ["run"], selection.rank_by)
            for title, table in run_tables.items()
        }
        text = _render_for_people(layouts, arguments)
    else:
        layouts = {
            title: group_layout(group_table(comparison, selection, shown_baselines.get(title)))
            for title, comparison in comparisons.items()
        }
        text = _render_for_people(layouts, arguments)
    try:
        print_or_raise(text)
    finally:  # the report is written even if the table cannot be printed
        if arguments.output:
            page = report.write(
                comparisons,
                groups,
                selection,
                data_cache,
                arguments.output,
                with_explorer=not arguments.no_explorer,
            )
            print_to_stderr(f"\nReport: {page}")
        if arguments.tensorboard:
            write_means(comparisons, arguments.tensorboard)
            command = tensorboard_command(arguments.tensorboard)
            print_to_stderr(f"\nTo look at the means over seeds: {command}")
    return 0


def _render_for_people(
    layouts: "dict[str, Layout]", arguments: argparse.Namespace, digits: int = 2
) -> str:
    """Return tables with the columns that the command line chooses.

    Raises:
        UserError: The command line names an unknown column.
    """
    from vae.comparison.columns import choose, render_short
    from vae.comparison.render import render

    if arguments.columns or arguments.format != "table":
        chosen = choose(layouts, arguments.columns or ["all"])
        return render(chosen, arguments.format, digits)
    return render_short(layouts, terminal_width(), "--columns all shows all columns.", digits)


def _find_baselines(
    comparisons: "dict[str, Comparison]", description: str | None
) -> dict[str, str]:
    """Return the label of the baseline group by title, for each data set that has such a group.

    Raises:
        UserError: No data set has such a group.
    """
    from vae.comparison.table import find_group

    if description is None:
        return {}
    baselines: dict[str, str] = {}
    errors: dict[str, UserError] = {}
    for title, comparison in comparisons.items():
        try:
            baselines[title] = find_group(comparison, description)
        except UserError as error:
            errors[title] = error
    if not baselines:
        raise next(iter(errors.values()))
    _complain_all(f"{title}: {error}" for title, error in errors.items())
    return baselines


def _compare_gradients(arguments: argparse.Namespace) -> int:
    """Print the quality of gradients, and write tables and figures if a folder is given."""
    import pandas as pd

    from vae.cli.estimators import build_estimators, expand_names
    from vae.comparison import report
    from vae.comparison.collect import DataCache
    from vae.comparison.columns import choose, row_layout
    from vae.comparison.gradients import measure
    from vae.comparison.omissions import Omission, by_reason, unread_runs
    from vae.comparison.render import render
    from vae.config.load import SavedRun
    from vae.evaluation import GradientQuality
    from vae.tracking.metrics import read_metrics

    labels = ["run", "estimator"]
    if arguments.columns:  # an unknown name ends the command before anything is measured
        unmeasured = pd.DataFrame(columns=[*labels, *GradientQuality._fields])
        choose({"": row_layout(unmeasured, labels)}, arguments.columns)
    names = expand_names(arguments.estimators) if arguments.estimators else None
    if names and len(names) > 1 and any(name.split(":")[0] == "exact" for name in names):
        _complain(_NOT_MEASURED)
    data_cache = DataCache(arguments.data_root)
    rows: list[dict[str, object]] = []
    curves: dict[Path, tuple[str, pd.DataFrame]] = {}
    without_curve: list[Omission] = []
    errors: dict[Path, Exception] = {}
    for folder in _find_runs(arguments.runs):
        try:
            run = SavedRun(folder)
            run.total_steps()
        except UserError as error:
            errors[folder] = error
            continue
        # An error here is one of the command line, and ends the command.
        estimators = build_estimators(names, run) if names else None
        try:
            data, _ = data_cache.get(run)
            measured = measure(run, estimators, data, arguments.model, arguments.draws or 1000)
            metrics = read_metrics(folder)
        except (UserError, OSError) as error:
            errors[folder] = error
            continue
        if not measured.quality:
            errors[folder] = UserError(_NOT_MEASURED)
        for name, quality in measured.quality.items():
            rows.append({"title": measured.title, "run": str(folder), "estimator": name})
            rows[-1] |= quality._asdict()
        if "gradient/bias" in metrics:
            curves[folder] = measured.trained_with, metrics
        else:
            without_curve.append(("no gradient in its metrics, so no curve", folder))
    _complain_all(unread_runs(errors))
    if not rows:
        _complain("nothing could be measured")
        return 1
    by_title = pd.DataFrame(rows).groupby("title", sort=False)
    shown = {str(title): table.drop(columns="title") for title, table in by_title}
    if arguments.format in _FORMATS_FOR_PEOPLE:
        layouts = {title: row_layout(table, labels) for title, table in shown.items()}
        text = _render_for_people(layouts, arguments, digits=3)
    else:
        text = render(shown, arguments.format)
    try:
        print_or_raise(text)
    finally:  # the report is written even if the table cannot be printed
        if arguments.output:
            report.write_gradients(shown, curves, arguments.output)
            if curves:
                _complain_all(by_reason(without_curve))
    return 0


def _create_folder(option: str, output: Path | None) -> None:
    """Create the folder of an option before anything is measured.

    Raises:
        UserError: The folder cannot be created or written to.
    """
    if output is None:
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UserError(f"{option} {output}: {error.strerror}") from error


def _newest_folder(outputs: Path) -> Path:
    """Return the run or sweep in a folder whose status has changed last.

    Raises:
        UserError: There is none.
    """

    def changed(run: Path) -> int:
        return (run / STATUS).stat().st_mtime_ns if (run / STATUS).exists() else 0

    newest_run = max(find_runs(outputs), key=changed, default=None)
    if newest_run is None:
        raise UserError(f"there is no run in {outputs}; name a run folder")
    return outputs.joinpath(*newest_run.relative_to(outputs).parts[:1])


def _find_runs(paths: list[Path]) -> list[Path]:
    """Return every run folder at or below the paths, each once."""
    found: dict[Path, Path] = {}
    reasons: dict[str, str] = {}

    def record_error(error: OSError) -> None:
        reasons[str(error.filename)] = str(error.strerror)

    for path in paths:
        folders = find_runs(path, record_error)
        if not folders:
            reasons.setdefault(str(path), "there is no run folder in it")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    _complain_all(f"{path}: {reason}" for path, reason in reasons.items())
    return list(found.values())


def _complain_all(messages: Iterable[object]) -> None:
    for message in messages:
        _complain(message)
