"""Measure the seconds and the memory of the bounds on the 10,000 test images of MNIST.

    python tests/benchmarks/evaluation.py --root data

    importance_weighted   `--samples` samples per image, at 4x8 and at 20x10 (latents x categories)
    log_likelihood        exact, over all 8**4 = 4,096 codes

The models have the default architecture (784-512-256 and mirrored) and random weights, because
neither number depends on the weights. Each measurement runs in a new process. The table has
the peak memory of the whole process, and the memory before the measurement, which torch, the
images and the model take.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from common import hardware, hardware_line, peak_memory, run_in_new_process, table


class Case(NamedTuple):
    """A bound, and the size of the code."""

    bound: str
    latents: int
    categories: int


CASES = (
    Case("importance_weighted", 4, 8),
    Case("importance_weighted", 20, 10),
    Case("log_likelihood", 4, 8),
)


def measure(case: Case, root: str, images: int, samples: int) -> dict[str, float]:
    """Return the value of a bound, its seconds, and the peak memory before and after it, in MB."""
    from vae.utils.runtime import configure_process

    configure_process()
    import torch

    from vae.data import Torchvision
    from vae.evaluation import importance_weighted, log_likelihood
    from vae.model import CategoricalVAE
    from vae.networks import MLP

    torch.manual_seed(0)
    networks = MLP(encoder_sizes=[512, 256], decoder_sizes=[256, 512], activation="relu")
    model = CategoricalVAE(networks, latents=case.latents, categories=case.categories)
    data = Torchvision(dataset="MNIST", binarize="none", validation=0, root=root)
    test_images = data.load(torch.device("cpu")).test.images[:images]
    before, began = peak_memory(), time.perf_counter()
    if case.bound == "importance_weighted":
        value = importance_weighted(model, test_images, samples)
    else:
        value = log_likelihood(model, test_images)
    seconds = time.perf_counter() - began
    return {"value": value, "seconds": seconds, "before": before, "peak": peak_memory()}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", required=True, type=Path, help="a writable torchvision root")
    add("--images", type=int, default=10_000)
    add("--samples", type=int, default=1_000)
    add("--rounds", type=int, default=1)
    add("--here", type=int, metavar="CASE", help=argparse.SUPPRESS)  # measure it in this process
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    """Measure every case in a new process, or one case in this process."""
    options = arguments.images, arguments.samples
    if arguments.here is not None:
        print(json.dumps(measure(CASES[arguments.here], str(arguments.root), *options)))
        return
    words = ["--root", arguments.root.resolve(), "--images", options[0], "--samples", options[1]]
    rounds = [
        [run_in_new_process(*words, "--here", number) for number in range(len(CASES))]
        for _ in range(arguments.rounds)
    ]
    rows = []
    for case, results in zip(CASES, zip(*rounds, strict=True), strict=True):
        seconds = [result["seconds"] for result in results]
        memory = [max(result[name] for result in results) for name in ("before", "peak")]
        rows.append(
            [f"{case.bound}, {case.latents}x{case.categories}"]
            + [f"{number:.2f}" for number in (min(seconds), median(seconds))]
            + [f"{megabytes:.0f}" for megabytes in memory]
            + [f"{results[0]['value']:.4f}"]
        )
    print(f"{hardware_line(hardware())}; {options[0]:,} images, {options[1]:,} samples\n")
    header = ["", "seconds, min", "median", "MB before", "peak MB", "nats"]
    print(table(header, rows))


if __name__ == "__main__":
    main(parse_arguments())
