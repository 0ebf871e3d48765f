"""Seconds and memory of the bounds on full MNIST's 10,000 test images.

    python tests/benchmarks/evaluation.py --root data

    importance_weighted   `--samples` samples an image, of 4 x 8 and of 20 x 10 latents
    log_likelihood        exact, all 8**4 = 4,096 codes

Models of the default architecture (784-512-256 and mirrored) with random weights: neither number
depends on what was learned. Each measurement is a process of its own; its memory is the peak of
the whole process, beside what torch, the images and the model take before.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from common import alone, described, hardware, peak_memory, table


class Case(NamedTuple):
    bound: str
    latents: int
    categories: int


CASES = (
    Case("importance_weighted", 4, 8),
    Case("importance_weighted", 20, 10),
    Case("log_likelihood", 4, 8),
)


def measure(case: Case, root: str, images: int, samples: int) -> dict[str, float]:
    from vae.utils import runtime as machine

    machine.prepare()
    import torch

    from vae.evaluation import bounds as evaluation
    from vae.data.source import Torchvision
    from vae.model import CategoricalVAE
    from vae.networks import MLP

    torch.manual_seed(0)
    networks = MLP(encoder_sizes=[512, 256], decoder_sizes=[256, 512], activation="relu")
    model = CategoricalVAE(networks, latents=case.latents, categories=case.categories)
    data = Torchvision(dataset="MNIST", binarize="none", validation=0, root=root)
    shown = data.load(torch.device("cpu")).test.images[:images]
    before, began = peak_memory(), time.perf_counter()
    if case.bound == "importance_weighted":
        value = evaluation.importance_weighted(model, shown, samples)
    else:
        value = evaluation.log_likelihood(model, shown)
    seconds = time.perf_counter() - began
    return {"value": value, "seconds": seconds, "before": before, "peak": peak_memory()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", required=True, type=Path, help="a writable torchvision root")
    add("--images", type=int, default=10_000)
    add("--samples", type=int, default=1_000)
    add("--rounds", type=int, default=1)
    add("--here", type=int, metavar="CASE", help=argparse.SUPPRESS)  # in this process
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    options = arguments.images, arguments.samples
    if arguments.here is not None:
        print(json.dumps(measure(CASES[arguments.here], str(arguments.root), *options)))
        return
    words = ["--root", arguments.root.resolve(), "--images", options[0], "--samples", options[1]]
    rounds = [
        [alone(*words, "--here", number) for number in range(len(CASES))]
        for _ in range(arguments.rounds)
    ]
    rows = []
    for case, measured in zip(CASES, zip(*rounds, strict=True), strict=True):
        seconds = [one["seconds"] for one in measured]
        memory = [max(one[which] for one in measured) for which in ("before", "peak")]
        rows.append(
            [f"{case.bound}, {case.latents} x {case.categories}"]
            + [f"{number:.2f}" for number in (min(seconds), median(seconds))]
            + [f"{megabytes:.0f}" for megabytes in memory]
            + [f"{measured[0]['value']:.4f}"]
        )
    print(f"{described(hardware())}; {options[0]:,} images, {options[1]:,} samples\n")
    header = ["", "seconds, min", "median", "MB before", "peak MB", "nats"]
    print(table(header, rows))


if __name__ == "__main__":
    main(parse())
