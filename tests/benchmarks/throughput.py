"""Measure how many runs a study finishes per hour: in parallel, one after another, as replicas.

    python tests/benchmarks/throughput.py                                       # data=mnist_5k
    python tests/benchmarks/throughput.py --root data --epochs 1 3 --length 160 # data=mnist
    python tests/benchmarks/throughput.py -- model=linear                       # other settings

A study trains two estimators with the same seeds. Each way to run it is one command:

    one after another       -m hydra/launcher=basic estimator=A,B seed=0,1,...
    parallel                -m estimator=A,B seed=0,1,...       (the default of a sweep on a CPU)
    replicas                -m hydra/launcher=basic estimator=A,B seeds=S
    replicas, parallel      -m estimator=A,B seeds=S

The time of a command goes from its start to its end, with imports, evaluation, checkpoints and
test bounds. It is measured with two numbers of epochs. The difference between the two is the time
of the epochs alone, from which the time of longer runs follows. A round runs each command once;
the next round has the opposite order. The table has the minimum over rounds.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import benchmark_environment, hardware, hardware_line, table

TRAIN = Path(__file__).parents[2] / "train.py"
ESTIMATORS = "straight_through_gumbel", "reinmax"


def ways(seeds: int) -> dict[str, list[str]]:
    """Return the overrides of each way to run a study of this number of seeds."""
    numbers = ",".join(map(str, range(seeds)))
    return {
        "one after another": ["hydra/launcher=basic", f"seed={numbers}"],
        "parallel": [f"seed={numbers}"],
        "replicas": ["hydra/launcher=basic", f"seeds={seeds}"],
        "replicas, parallel": [f"seeds={seeds}"],
    }


def seconds_of_study(overrides: list[str]) -> float:
    """Run a sweep over the estimators in an empty folder and return its seconds."""
    command = [sys.executable, str(TRAIN), "-m", f"estimator={','.join(ESTIMATORS)}", *overrides]
    environment = benchmark_environment()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, help="train on MNIST in this torchvision root")
    add("--seeds", type=int, default=3, help="seeds of each estimator")
    add("--epochs", type=int, nargs=2, default=[5, 20], metavar=("A", "B"), help="to measure")
    add("--length", type=int, default=100, help="epochs of the runs that the table reports")
    add("--rounds", type=int, default=1)
    add("overrides", nargs="*", help="after --: overrides of train.py, such as model=conv")
    arguments = parser.parse_args()
    short, long = sorted(arguments.epochs)
    if short == long:
        parser.error("--epochs needs two different numbers")
    root = arguments.root
    data = ["data=mnist_5k"] if root is None else ["data=mnist", f"data.root={root.resolve()}"]
    runs = len(ESTIMATORS) * arguments.seeds
    seconds: dict[tuple[str, int], list[float]] = {}
    seconds_of_study(["seed=0", "training.epochs=1", *data])  # compiles byte-code
    for number in range(arguments.rounds):
        for way, overrides in list(ways(arguments.seeds).items())[:: -1 if number % 2 else 1]:
            for epochs in (short, long):
                chosen = [*overrides, f"training.epochs={epochs}", *data, *arguments.overrides]
                seconds.setdefault((way, epochs), []).append(seconds_of_study(chosen))
                print(f"{way}, {epochs} epochs: {seconds[way, epochs][-1]:.1f} s", flush=True)
    rows = []
    for way in ways(arguments.seeds):
        least = {epochs: min(seconds[way, epochs]) for epochs in (short, long)}
        per_epoch = (least[long] - least[short]) / (long - short)
        total = least[long] + (arguments.length - long) * per_epoch
        each = [f"{least[epochs]:.0f}" for epochs in (short, long)]
        rows.append([way, *each, f"{per_epoch / runs:.2f}", f"{3600 * runs / total:.1f}"])
    columns = [f"seconds, {runs} runs of {epochs} epochs" for epochs in (short, long)]
    rate = f"runs of {arguments.length} epochs per hour"
    print(hardware_line(hardware()))
    print(table(["way", *columns, "seconds of the study per epoch and run", rate], rows))


if __name__ == "__main__":
    main()
