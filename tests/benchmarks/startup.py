"""Seconds from the command to the first training step, and the memory of training on full MNIST.

    python tests/benchmarks/startup.py --root data

Runs `python train.py data=mnist` in an empty folder, as a user would, with the images' cache in
place and everything default: evaluation, logging, pictures and the final test bounds are on. The
clock starts before the process does, and ends after the first step of an optimizer. torch and
torch._dynamo, which torch's optimizers import when the first one is made, are imported a little
earlier than `train.py` would, to be timed. Starts are warm: the first one, which fills the file
cache and compiles to byte-code, stands in a line of its own.
"""

import argparse
import importlib
import json
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import alone, described, machine, peak_memory, table

TRAIN = Path(__file__).parents[2] / "train.py"
MARKS = ("python", "torch", "dynamo", "first step", "last step", "end")


def driven(began: float, until: str, overrides: list[str]) -> None:
    """`train.py` in this process; then, by mark, seconds since `began` and peak memory so far."""
    marks: dict[str, tuple[float, float]] = {}

    def mark(name: str) -> None:
        marks[name] = time.monotonic() - began, peak_memory()

    def leave() -> None:
        print("\n" + json.dumps(marks), flush=True)
        os._exit(0)

    def stepped(*_: object) -> None:
        mark("last step")
        marks.setdefault("first step", marks["last step"])
        if until == "first step":
            leave()

    mark("python")
    importlib.import_module("torch")
    mark("torch")
    importlib.import_module("torch._dynamo")
    mark("dynamo")
    optimizers = importlib.import_module("torch.optim.optimizer")
    optimizers.register_optimizer_step_post_hook(stepped)
    sys.argv, sys.path[0] = [str(TRAIN), *overrides], str(TRAIN.parent)
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as left:
        if left.code:
            raise
    mark("end")
    leave()


def train(until: str, root: Path, overrides: list[str]) -> dict[str, tuple[float, float]]:
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


def main(arguments: argparse.Namespace) -> None:
    if arguments.until:
        driven(arguments.began, arguments.until, arguments.overrides)
    root, overrides = arguments.root, arguments.overrides
    cold, *starts = [train("first step", root, overrides) for _ in range(arguments.starts + 1)]
    whole = train("end", root, [f"training.epochs={arguments.epochs}", *overrides])

    print(f"{described(machine())}\n")  # imports torch, so nothing is measured after it
    spans = {
        "from the command to the first step": lambda marks: marks["first step"][0],
        "of which importing torch": lambda marks: marks["torch"][0] - marks["python"][0],
        "of which importing torch._dynamo": lambda marks: marks["dynamo"][0] - marks["torch"][0],
    }
    rows = []
    for name, span in spans.items():
        seconds = [span(marks) for marks in starts]
        numbers = span(cold), min(seconds), median(seconds), max(seconds)
        rows.append([name, *(f"{number:.2f}" for number in numbers)])
    print(
        table([f"seconds, {len(starts)} warm starts", "first start", "min", "median", "max"], rows)
    )
    marks = [name for name in MARKS if name in whole]
    rows = [[name, *(f"{number:.1f}" for number in whole[name])] for name in marks]
    print(f"\n{table([f'{arguments.epochs} epochs, until', 'seconds', 'peak MB so far'], rows)}")


if __name__ == "__main__":
    main(parse())
