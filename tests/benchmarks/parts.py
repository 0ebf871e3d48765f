"""Measure what evaluation, logging and checkpoints cost, compared with the training steps.

    python tests/benchmarks/parts.py                               # data=mnist_5k
    python tests/benchmarks/parts.py --root data --epochs 1        # data=mnist
    python tests/benchmarks/parts.py --trees ../before .           # two working trees

All settings but the number of epochs have their defaults. The numbers are seconds and CPU seconds
per epoch; in brackets is their share of the steps. The first start of each tree, which compiles
byte-code, counts as well, because only training is measured. Each round runs all trees.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from common import hardware, hardware_line, parser_of_trees, run_in_new_process, table

Costs = dict[str, list[float]]
"""Seconds and CPU seconds per epoch of each part of training, by name."""


def train(tree: Path, epochs: int, overrides: list[str]) -> Costs:
    """Train with the code of a tree in this process, and return what each part costs."""
    sys.path.insert(0, str(tree))
    from vae.utils.runtime import configure_process, limit_threads

    configure_process()
    limit_threads()
    from vae.config.build import build_experiment
    from vae.config.compose import compose_config
    from vae.experiment import run_experiment
    from vae.training import group, step

    costs: Costs = defaultdict(lambda: [0.0, 0.0])

    def measure(owner: Any, name: str, part: str) -> None:
        plain: Callable[..., Any] = getattr(owner, name)

        def measured(*arguments: Any, **options: Any) -> Any:
            seconds, processor = time.perf_counter(), time.process_time()
            result = plain(*arguments, **options)
            costs[part][0] += (time.perf_counter() - seconds) / epochs
            costs[part][1] += (time.process_time() - processor) / epochs
            return result

        setattr(owner, name, measured)

    measure(step.EagerStep, "__call__", "steps")
    measure(group.ReplicaGroup, "evaluate", "evaluation")
    measure(group.ReplicaGroup, "log", "logs and pictures")
    measure(group.ReplicaGroup, "save", "checkpoints")
    words = [f"training.epochs={epochs}", "importance_samples=1", "tracking.projected=0"]
    with tempfile.TemporaryDirectory() as folder:
        run_experiment(build_experiment(compose_config([*overrides, *words])), Path(folder))
    return costs


def parse_arguments() -> argparse.Namespace:
    parser = parser_of_trees(__doc__, rounds=3)
    parser.add_argument("--epochs", type=int, default=10)
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    """Measure each tree in new processes, or one tree in this process."""
    if arguments.run:
        print("\n" + json.dumps(train(arguments.run, arguments.epochs, arguments.overrides)))
        return
    root = arguments.root
    words = ["data=mnist", f"data.root={root.resolve()}"] if root else ["data=mnist_5k"]
    words += arguments.overrides
    trees = [tree.resolve() for tree in arguments.trees]
    rounds: list[list[Costs]] = [
        [run_in_new_process("--epochs", arguments.epochs, "--run", tree, *words) for tree in trees]
        for _ in range(arguments.rounds)
    ]
    print(f"{hardware_line(hardware())}\n")
    rows = []
    for part in rounds[0][0]:
        for index, tree in enumerate(trees):
            cells = [part, tree.name]
            for clock in range(2):
                costs = [one_round[index][part][clock] for one_round in rounds]
                steps = [one_round[index]["steps"][clock] for one_round in rounds]
                share = median(cost / step for cost, step in zip(costs, steps, strict=True))
                cells += [f"{min(costs):.3f}", f"{median(costs):.3f} ({share:.1%})"]
            rows.append(cells)
    header = [f"{arguments.rounds} rounds", "tree", "seconds, min", "median", "CPU, min", "median"]
    print(table(header, rows))


if __name__ == "__main__":
    main(parse_arguments())
