"""Print the ELBO on training images that runs have reached after equally much work.

    python tests/tools/equal_cost.py --epochs 20 40 80 160 \
        outputs/SWEEP_A=1.0 outputs/SWEEP_B=2.2

Each argument is a folder of replicas or of runs that differ in the seed, and after `=` the time of
one of their training steps, relative to the first folder (tests/benchmarks/estimators.py measures
it). A column "20" is what the work of 20 epochs of the first folder pays for: a run whose steps
take twice as long is at epoch 10 then. The numbers are means ± standard deviations over the seeds,
in nats per image.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from vae.tracking.metrics import read_metrics


def elbo_by_epoch(folder: Path) -> dict[int, float]:
    """Return the ELBO on training images after each epoch of a run."""
    metrics = read_metrics(folder)
    return dict(zip(metrics["epoch"].astype(int), metrics["elbo/train"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", nargs="+", type=int, default=[20, 40, 80, 160])
    parser.add_argument("runs", nargs="+", metavar="FOLDER=COST")
    arguments = parser.parse_args()
    print("|".join(["", "runs", "cost of a step", *map(str, arguments.epochs), ""]))
    print("|".join(["", *["---"] * (2 + len(arguments.epochs)), ""]))
    for argument in arguments.runs:
        folder, _, cost = argument.rpartition("=")
        curves = [elbo_by_epoch(file.parent) for file in Path(folder).rglob("metrics.jsonl")]
        cells = []
        for epochs in arguments.epochs:
            epoch = int(epochs / float(cost))
            reached = [curve[epoch] for curve in curves if epoch in curve]
            cells.append(f"{mean(reached):.1f} ± {stdev(reached):.1f}" if len(reached) > 1 else "")
        print("|".join(["", Path(folder).name, cost, *cells, ""]))


if __name__ == "__main__":
    main()
