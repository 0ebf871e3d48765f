"""Compares finished runs: `python evaluate.py outputs/RUN_OR_SWEEP [...]`.

Every run's best and last model is rebuilt from its folder and measured on the same test images
with the same noise; the numbers are kept in the folder as evaluation.json. Runs that differ in
their seed alone make one row. Every bound is of the discrete model, in nats per image.

With --gradients: how good a gradient the estimators give the encoder.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae.comparison import Group, Run
    from vae.runs import Library

# No torch up here: --help is asked for more often than anything else.

CONFIGS = Path(__file__).parent / "configs"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0, 1 where nothing could be compared, 2 for bad usage.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or one that holds some")
    add("--model", choices=["best", "last"], help="by default the best, where there is one")
    add("--runs", action="store_true", dest="each", help="a row a run, and not a group")
    add(
        "--baseline",
        metavar="GROUP",
        help="differences to it, paired by seed: reinmax, or estimator=reinmax,latents=8",
    )
    add(
        "--by",
        choices=["elbo", "importance_weighted", "log_likelihood"],
        default="elbo",
        help="the bound that groups are ordered and compared by (default: elbo)",
    )
    add(
        "--importance-samples",
        type=count,
        metavar="M",
        help="samples of the importance-weighted bound (default: as many as the run asked for)",
    )
    add("--data-root", metavar="FOLDER", help="where the images are, if not where they were")
    add("--format", choices=["table", "markdown", "csv", "json"], default="table")
    add("--output", type=Path, metavar="FOLDER", help="write tables, figures and index.html there")
    gradients = parser.add_argument_group("the gradient, instead of the bounds")
    add = gradients.add_argument
    add("--gradients", action="store_true", help="bias, deviation, cosine and signal-to-noise")
    add(
        "--estimators",
        type=lambda names: names.split(","),
        metavar="NAMES",
        help="these, or all, at their default settings or at others, reinmax:temperature=1; "
        "without it each run's own",
    )
    add("--draws", type=count, metavar="R", help="of the noise, 2 or more (default: 1000)")
    arguments = parser.parse_args()
    if not arguments.gradients and (arguments.estimators or arguments.draws):
        parser.error("--estimators and --draws go with --gradients")
    bounds_alone = (arguments.each, arguments.baseline, arguments.importance_samples)
    if arguments.gradients and (any(bounds_alone) or arguments.by != "elbo"):
        parser.error(
            "--runs, --baseline, --by and --importance-samples do not go with --gradients"
        )
    if arguments.draws == 1:
        parser.error("--draws: one draw has no deviation")
    return arguments


def count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    arguments = parse()
    from vae import machine
    from vae.printing import Unread
    from vae.validation import UserError

    try:
        machine.prepare()
        return (gradients if arguments.gradients else compare)(arguments)
    except UserError as error:  # what is wrong with one run is said of that run, and no end
        complain(error)
        return 2
    except (OSError, Unread) as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def compare(arguments: argparse.Namespace) -> int:
    """Tables of the bounds, and the report where a folder for it is named."""
    from vae import comparison, report, runs, tables
    from vae.printing import say

    prepare(arguments.output)
    library = runs.Library(arguments.data_root)
    view = comparison.View(arguments.model, arguments.by)
    compared = comparison.group(evaluated(arguments, library), view)
    groups = [group for groups in compared.values() for group in groups]
    if not any(group.runs for group in groups):
        why = Counter(note for group in groups for note in group.left_out)
        complain(f"nothing could be compared{': ' if why else ''}{', '.join(why)}")
        return 1
    for data, groups in compared.items():
        if comparison.lacking(groups, view):
            complain(f"{data}: no run has a {arguments.by}, and the ELBO orders them")
    baselines = chosen(compared, arguments.baseline)
    if arguments.each:
        shown = {data: tables.run_table(groups, view) for data, groups in compared.items()}
    else:
        shown = {
            data: tables.group_table(groups, view, baselines.get(data))
            for data, groups in compared.items()
        }
        if arguments.format in ("table", "markdown"):
            shown = {data: tables.readable(table) for data, table in shown.items()}
    say(tables.render(shown, arguments.format))
    if arguments.output:
        page = report.write(compared, view, baselines, library, arguments.output)
        print(f"\nReport: {page}", file=sys.stderr)
    return 0


def chosen(compared: "dict[str, list[Group]]", baseline: str | None) -> "dict[str, Group]":
    """The baseline of each table that has it. Raises UserError where none has."""
    from vae import comparison
    from vae.validation import UserError

    found, missing = {}, []
    for data, groups in compared.items() if baseline else ():
        try:
            found[data] = comparison.find(groups, baseline)
        except UserError as error:
            missing.append(error)
    if missing and not found:
        raise missing[0]
    return found


def evaluated(arguments: argparse.Namespace, library: "Library") -> "list[Run]":
    """All runs that can be read; of the others it is said why they cannot."""
    from tqdm import tqdm

    from vae import runs
    from vae.validation import UserError

    measured = []
    for folder in tqdm(folders(arguments), unit=" runs", leave=False, disable=None):
        try:
            samples = arguments.importance_samples
            measured.append(runs.evaluated(folder, library, samples, CONFIGS))
        except UserError as error:
            complain(error)
    return measured


def gradients(arguments: argparse.Namespace) -> int:
    """A row an estimator of a run; the figures, where a folder for them is named."""
    import pandas as pd

    from vae import configuration, report, run_gradients, runs, tables
    from vae.errors import close_match
    from vae.printing import say
    from vae.validation import UserError

    prepare(arguments.output)
    names, known = arguments.estimators, configuration.option_names(CONFIGS, "estimator")
    if names == ["all"]:
        names = known
    for name in names or ():
        option, _, _ = name.partition(":")
        if option not in known:
            near = close_match(option, known)
            raise UserError(f"--estimators {name}: there is no such option{near}")
    library, rows, curves = runs.Library(arguments.data_root), {}, {}
    for folder in folders(arguments):
        try:
            measured = run_gradients.measure(
                folder, CONFIGS, library, arguments.model, names, arguments.draws or 1000
            )
            lines = runs.metrics(folder)
        except UserError as error:
            complain(error)
            continue
        for name, quality in measured.quality.items():
            row = {"run": str(folder), "estimator": name, **quality._asdict()}
            rows.setdefault(measured.title, []).append(row)
        if "gradient/bias" in lines:
            curves[folder] = measured.own, lines
    if not rows:
        complain("nothing could be measured")
        return 1
    shown = {title: pd.DataFrame(measured) for title, measured in rows.items()}
    say(tables.render(shown, arguments.format, digits=3))
    if arguments.output:
        report.write_gradients(shown, curves, arguments.output)
    return 0


def prepare(output: Path | None) -> None:
    """Makes the folder for the report, before anything is measured. Raises UserError."""
    from vae.validation import UserError

    if output is None:
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}") from error


def folders(arguments: argparse.Namespace) -> list[Path]:
    """Every run folder at or below those on the command line, each once."""
    from vae import runs

    found = {}
    for path in arguments.runs:
        inside = runs.find(path)
        if not inside:
            complain(f"{path} is no run folder, and there is none below it")
        found |= {folder.resolve(): folder for folder in inside}
    return list(found.values())


def complain(message: object) -> None:
    print(f"evaluate.py: {message}", file=sys.stderr)


if __name__ == "__main__":
    from vae.printing import settled

    with settled():
        sys.exit(main())
