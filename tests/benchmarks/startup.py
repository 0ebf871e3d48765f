"""Seconds from the command to the first training step, and the memory of training on full MNIST.

    python tests/benchmarks/startup.py --root data

Runs `python train.py data=mnist` in an empty folder, as a user would, with the images' cache in
place and everything default: evaluation, logging, pictures and the final test bounds are on. The
clock starts before the process does, and ends after the first step of an optimizer. The imports of
torch and of torch._dynamo, which torch's optimizers import when the first one is made, are timed
where they happen. Starts are warm: the first one, which fills the file cache and compiles to
byte-code, is shown apart. CPU time is shown as well: on a busy machine it says more.
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
from typing import Any

from common import alone, described, hardware, peak_memory, table

TRAIN = Path(__file__).parents[2] / "train.py"
IMPORTS = ("torch", "torch._dynamo")

Mark = tuple[float, float, float]  # seconds, CPU seconds, peak MB


def driven(began: float, until: str, overrides: list[str]) -> None:
    """`train.py` in this process; then what its imports took, and where it stood at each mark."""
    took: dict[str, tuple[float, float]] = {}
    marks: dict[str, Mark] = {}
    watching: list[bool] = []
    plain_import = builtins.__import__

    def mark(name: str) -> None:
        marks[name] = time.monotonic() - began, time.process_time(), peak_memory()

    def watched_import(name: str, *rest: Any, **more: Any) -> ModuleType:
        if name not in IMPORTS or name in sys.modules:
            module = plain_import(name, *rest, **more)
            if not watching and hasattr(sys.modules.get("vae.step"), "TrainingStep"):
                watching.append(True)
                watch_steps(sys.modules["vae.step"].TrainingStep)
            return module
        seconds, processor = time.monotonic(), time.process_time()
        module = plain_import(name, *rest, **more)
        took[name] = time.monotonic() - seconds, time.process_time() - processor
        mark(f"import {name}")
        return module

    def watch_steps(kind: type) -> None:
        plain_step = kind.__call__

        def step(self: object, number: int, at: int) -> list[int]:
            left_out = plain_step(self, number, at)
            if "first step" not in marks:
                mark("first step")
                if until == "first step":
                    leave()
            mark("last step")
            return left_out

        kind.__call__ = step

    def leave() -> None:
        print("\n" + json.dumps({"took": took, "marks": marks}), flush=True)
        os._exit(0)

    mark("python")
    builtins.__import__ = watched_import
    sys.argv, sys.path[0] = [str(TRAIN), *overrides], str(TRAIN.parent)
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as left:
        if left.code:
            raise
    mark("end")
    leave()


def train(until: str, root: Path, overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = ["--root", root, "--until", until]
        words = ["data=mnist", f"data.root={root.resolve()}", *overrides]
        return alone(*options, "--began", time.monotonic(), *words, folder=folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, help="a writable torchvision root")
    add("--starts", type=int, default=5)
    add("--epochs", type=int, default=2, help="of the run whose memory is measured")
    add("--until", choices=["first step", "end"], help=argparse.SUPPRESS)
    add("--began", type=float, help=argparse.SUPPRESS)
    add("overrides", nargs="*", help="for train.py, as in model=conv")
    return parser.parse_args()


def row(name: str, cold: Sequence[float], warm: Sequence[Sequence[float]]) -> list[str]:
    seconds, processor = [one[0] for one in warm], [one[1] for one in warm]
    numbers = cold[0], min(seconds), median(seconds), max(seconds), median(processor)
    return [name, *(f"{number:.2f}" for number in numbers)]


def main(arguments: argparse.Namespace) -> None:
    if arguments.until:
        driven(arguments.began, arguments.until, arguments.overrides)
    root, overrides = arguments.root, arguments.overrides
    cold, *warm = [train("first step", root, overrides) for _ in range(arguments.starts + 1)]
    whole = train("end", root, [f"training.epochs={arguments.epochs}", *overrides])

    print(f"{described(hardware())}\n")  # imports torch, so nothing is measured after it
    first = [run["marks"]["first step"] for run in warm]
    rows = [row("from the command to the first step", cold["marks"]["first step"], first)]
    for name in cold["took"]:
        took = [run["took"][name] for run in warm]
        rows.append(row(f"of which importing {name}", cold["took"][name], took))
    header = [f"seconds, {len(warm)} warm starts", "first start", "min", "median", "max"]
    print(table([*header, "CPU, median"], rows))
    rows = [
        [name, *(f"{number:.1f}" for number in numbers)]
        for name, numbers in whole["marks"].items()
    ]
    header = [f"{arguments.epochs} epochs, after", "seconds", "CPU seconds", "peak MB so far"]
    print(f"\n{table(header, rows)}")


if __name__ == "__main__":
    main(parse())
