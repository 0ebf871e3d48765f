"""Measure what a run costs besides its steps: before the first step, and after the last one.

    python tests/benchmarks/startup.py                             # data=mnist_5k
    python tests/benchmarks/startup.py --root data                 # data=mnist
    python tests/benchmarks/startup.py --trees ../before .         # two working trees

The benchmark runs `python train.py training.epochs=1` in an empty folder, as a user would. All
other settings have their defaults, so evaluation, logging, pictures, checkpoints and the final
bounds are on. Seconds and CPU seconds are measured from the start of the process to the first
training step, and from the last step to the end of the process. The first start of each tree,
which fills the file cache and compiles byte-code, is left out. With several trees, each round
runs all of them, so that they are measured on an equally busy machine. On a busy machine, CPU time
says more than seconds.
"""

import argparse
import builtins
import json
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

from common import (
    hardware,
    hardware_line,
    parser_of_trees,
    peak_memory,
    run_in_new_process,
    table,
)


class Cost(NamedTuple):
    """The seconds and the CPU seconds of a part of a process."""

    seconds: float
    processor: float  # CPU seconds

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds - other.seconds, self.processor - other.processor)


def run_train_script(tree: Path, started: float, overrides: list[str]) -> None:
    """Run a tree's train.py in this process, and print when the first and last step were done.

    Args:
        tree: The working tree.
        started: The time (time.monotonic) at which the parent started this process.
        overrides: The arguments of train.py.
    """
    marks: dict[str, tuple[float, float]] = {}
    plain_import = builtins.__import__
    is_watching_steps = False

    def set_mark(name: str) -> None:
        marks[name] = time.monotonic() - started, time.process_time()

    def watching_import(name: str, *arguments: Any, **options: Any) -> ModuleType:
        nonlocal is_watching_steps
        is_first_torch = name == "torch" and name not in sys.modules
        if is_first_torch:
            set_mark("before torch")
        module = plain_import(name, *arguments, **options)
        if is_first_torch:
            set_mark("after torch")
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
            set_mark("last step")
            return skipped

        step_class.__call__ = step_and_mark

    builtins.__import__ = watching_import
    sys.argv, sys.path[0] = [str(tree / "train.py"), *overrides], str(tree)
    try:
        runpy.run_path(str(tree / "train.py"), run_name="__main__")
    finally:
        print("\n" + json.dumps({"marks": marks, "peak": peak_memory()}), flush=True)


def measure(tree: Path, overrides: Sequence[str]) -> tuple[dict[str, Cost], float]:
    """Train in a new process; return what its parts cost, by name, and its peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        options = ["--run", tree, "--started", started, *overrides]
        result = run_in_new_process(*options, folder=folder)
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    marks = {name: Cost(*values) for name, values in result["marks"].items()}
    start, end = marks["first step"], Cost(seconds, processor) - marks["last step"]
    parts = {
        "command to first step": start,
        "of which importing torch": marks["after torch"] - marks["before torch"],
        "last step to end": end,
        "both": Cost(start.seconds + end.seconds, start.processor + end.processor),
    }
    return parts, result["peak"]


def parse_arguments() -> argparse.Namespace:
    parser = parser_of_trees(__doc__, rounds=5)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    """Measure runs of each tree in new processes, or run one tree's train.py in this process."""
    if arguments.run:
        run_train_script(arguments.run, arguments.started, arguments.overrides)
        return
    root = arguments.root
    words = ["data=mnist", f"data.root={root.resolve()}"] if root else ["data=mnist_5k"]
    words += ["training.epochs=1", *arguments.overrides]
    trees = [tree.resolve() for tree in arguments.trees]
    rounds = [[measure(tree, words) for tree in trees] for _ in range(arguments.rounds + 1)][1:]

    print(f"{hardware_line(hardware())}\n")  # imports torch, so it comes after all measurements
    rows = []
    for part in rounds[0][0][0]:
        for index, tree in enumerate(trees):
            costs = [one_round[index][0][part] for one_round in rounds]
            seconds, processor = zip(*costs, strict=True)
            numbers = min(seconds), median(seconds), min(processor), median(processor)
            rows.append([part, tree.name, *(f"{number:.2f}" for number in numbers)])
    header = [f"{arguments.rounds} rounds", "tree", "seconds, min", "median", "CPU, min", "median"]
    print(table(header, rows))
    for index, tree in enumerate(trees):
        peak = max(one_round[index][1] for one_round in rounds)
        print(f"\nPeak memory of {tree.name}: {peak:.0f} MB")


if __name__ == "__main__":
    main(parse_arguments())
