"""Measure the seconds from the command to the first training step, and the memory of training.

    python tests/benchmarks/startup.py --root data

The benchmark runs `python train.py data=mnist` in an empty folder, as a user would. The cache of
the images exists, and all settings have their defaults, so evaluation, logging, pictures and the
final test bounds are on. The clock starts before the process and ends after the first training
step. The imports of torch and of torch._dynamo, which torch's optimizers import when the first one
is built, are timed where they happen. The table has warm starts. The first start, which fills the
file cache and compiles byte-code, has a separate column. On a busy machine, CPU time says more
than seconds.
"""

import argparse
import builtins
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NoReturn

from common import hardware, hardware_line, peak_memory, run_in_new_process, table

TRAIN = Path(__file__).parents[2] / "train.py"
IMPORTS = ("torch", "torch._dynamo")

Mark = tuple[float, float, float]
"""Seconds, CPU seconds and peak memory in MB since the start of the process."""


def run_train_script(started: float, until: str, overrides: list[str]) -> NoReturn:
    """Run train.py in this process, and print how long imports took and when marks were reached.

    Args:
        started: The time (time.monotonic) at which the parent started this process.
        until: The mark at which the process ends: "first step" or "end".
        overrides: The arguments of train.py.
    """
    import_times: dict[str, tuple[float, float]] = {}
    marks: dict[str, Mark] = {}
    plain_import = builtins.__import__
    is_watching_steps = False

    def set_mark(name: str) -> None:
        marks[name] = time.monotonic() - started, time.process_time(), peak_memory()

    def timed_import(name: str, *arguments: Any, **options: Any) -> ModuleType:
        nonlocal is_watching_steps
        if name in IMPORTS and name not in sys.modules:
            seconds, processor = time.monotonic(), time.process_time()
            module = plain_import(name, *arguments, **options)
            import_times[name] = time.monotonic() - seconds, time.process_time() - processor
            set_mark(f"import {name}")
            return module
        module = plain_import(name, *arguments, **options)
        step_module = sys.modules.get("vae.training.step")
        if not is_watching_steps and hasattr(step_module, "EagerStep"):
            is_watching_steps = True
            watch_steps(step_module.EagerStep)
        return module

    def watch_steps(step_class: Any) -> None:
        plain_step = step_class.__call__

        def step_and_mark(self: object, batch: int, step: int) -> list[int]:
            skipped = plain_step(self, batch, step)
            if "first step" not in marks:
                set_mark("first step")
                if until == "first step":
                    print_and_exit()
            set_mark("last step")
            return skipped

        step_class.__call__ = step_and_mark

    def print_and_exit() -> NoReturn:
        print("\n" + json.dumps({"imports": import_times, "marks": marks}), flush=True)
        os._exit(0)

    set_mark("python")
    builtins.__import__ = timed_import
    sys.argv, sys.path[0] = [str(TRAIN), *overrides], str(TRAIN.parent)
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as exit:
        if exit.code:
            raise
    set_mark("end")
    print_and_exit()


def measure(until: str, root: Path, overrides: list[str]) -> dict[str, Any]:
    """Train in a new process; return the seconds of its imports, and its marks."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--root", root, "--until", until]
        words = ["data=mnist", f"data.root={root.resolve()}", *overrides]
        return run_in_new_process(*options, "--started", time.monotonic(), *words, folder=folder)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, help="a writable torchvision root")
    add("--starts", type=int, default=5)
    add("--epochs", type=int, default=2, help="epochs of the run whose memory is measured")
    add("--until", choices=["first step", "end"], help=argparse.SUPPRESS)
    add("--started", type=float, help=argparse.SUPPRESS)
    add("overrides", nargs="*", help="overrides of train.py, such as model=conv")
    return parser.parse_args()


def row(name: str, first: Sequence[float], warm: Sequence[Sequence[float]]) -> list[str]:
    """Return a row of the table, given (seconds, CPU seconds) of each start."""
    seconds, processor = [start[0] for start in warm], [start[1] for start in warm]
    numbers = first[0], min(seconds), median(seconds), max(seconds), median(processor)
    return [name, *(f"{number:.2f}" for number in numbers)]


def main(arguments: argparse.Namespace) -> None:
    """Measure several starts and one run in new processes, or one of them in this process."""
    if arguments.until:
        run_train_script(arguments.started, arguments.until, arguments.overrides)
    root, overrides = arguments.root, arguments.overrides
    first, *warm = [measure("first step", root, overrides) for _ in range(arguments.starts + 1)]
    whole = measure("end", root, [f"training.epochs={arguments.epochs}", *overrides])

    print(f"{hardware_line(hardware())}\n")  # imports torch, so it comes after all measurements
    first_steps = [start["marks"]["first step"] for start in warm]
    rows = [row("from the command to the first step", first["marks"]["first step"], first_steps)]
    for name in first["imports"]:
        import_times = [start["imports"][name] for start in warm]
        rows.append(row(f"of which importing {name}", first["imports"][name], import_times))
    header = [f"seconds, {len(warm)} warm starts", "first start", "min", "median", "max"]
    print(table([*header, "CPU, median"], rows))
    rows = [
        [name, *(f"{number:.1f}" for number in numbers)]
        for name, numbers in whole["marks"].items()
    ]
    header = [f"{arguments.epochs} epochs, after", "seconds", "CPU seconds", "peak MB so far"]
    print(f"\n{table(header, rows)}")


if __name__ == "__main__":
    main(parse_arguments())
