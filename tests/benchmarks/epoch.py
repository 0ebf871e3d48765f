"""Measure the seconds per epoch on MNIST: this project, the usual loop, a lean loop, the GEMMs.

    python tests/benchmarks/epoch.py --root data

The architecture and the settings follow the ReinMax authors: 784-512-256-32 and mirrored,
ReLU, 4 latents of 8 categories, Adam with learning rate 5e-4, grey pixels, 60,000 images,
straight-through Gumbel.

    ours    `vae.training.train`, which evaluates, logs and saves a checkpoint every epoch
    usual   DataLoader, ToTensor, default Adam, `item()` at every step; denormals are not flushed
    lean    an indexed tensor, fused Adam, no `item()`, no logging; denormals are flushed
    gemms   every matrix product of a step, and nothing else

Each measurement runs in a new process, whose first epoch is not counted. A round measures every
contender once. The next round has the opposite order, so that a machine whose speed drifts treats
all of them alike. A ratio is computed from the medians within a round; the table has its median
over the rounds.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common import hardware, hardware_line, run_in_new_process, table
from torch import Tensor, nn

SIZES = (784, 512, 256, 32)
LATENTS, CATEGORIES = 4, 8
TEMPERATURE, LEARNING_RATE = 0.5, 5e-4
IMAGES = 60_000


def ours(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """Measure the time between the moments when the metrics of two epochs are logged.

    Pictures are drawn in every tenth epoch and after the last one. With fewer than ten epochs,
    these times therefore contain none.
    """
    from vae.data import Torchvision
    from vae.estimators import StraightThroughGumbel
    from vae.model import CategoricalVAE
    from vae.networks import MLP
    from vae.objective import NegativeELBO
    from vae.optimizers import Adam
    from vae.tracking import Logger, LoggingConfig
    from vae.training import TrainingConfig, TrainingRun, train
    from vae.utils.runtime import configure_process

    class TimedLogger(Logger):
        """Notes the time when the metrics of each epoch are logged."""

        def log_scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
            super().log_scalars(step, epoch, values)
            times.append(time.perf_counter())

    # Torch is already imported, so OpenMP's threads spin longer. That costs no time on idle cores.
    configure_process()
    times: list[float] = []
    data = Torchvision(dataset="MNIST", binarize="none", validation=0, root=root)
    networks = MLP(encoder_sizes=[512, 256], decoder_sizes=[256, 512], activation="relu")
    model = CategoricalVAE(networks, latents=LATENTS, categories=CATEGORIES)
    training = TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        steps=None,
        clip=None,
        patience=None,
        precision=precision,
        on_nan="stop",
        capture="off",
    )
    logging = LoggingConfig(
        pictures_every=10, pictures=20, train_images=5000, projected=0, gradient_every=0
    )
    with tempfile.TemporaryDirectory() as folder, TimedLogger(Path(folder)) as logger:
        run = TrainingRun(
            NegativeELBO(model, StraightThroughGumbel(temperature=TEMPERATURE)),
            Adam(lr=LEARNING_RATE, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0),
            logger,
            Path(folder),
            seed=0,
        )
        train([run], data.load(torch.device("cpu")), training, logging)
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def usual(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """Measure the loop of public code: DataLoader, ToTensor, default Adam, `item()` each step."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

    encoder, decoder = _layers(SIZES), _layers(SIZES[::-1])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE)
    dataset = MNIST(root, train=True, download=True, transform=transforms.ToTensor())
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)

    def epoch() -> None:
        total = 0.0
        for images, _ in loader:
            x = images.view(-1, 784)
            logits = encoder(x).view(-1, LATENTS, CATEGORIES)
            z = F.gumbel_softmax(logits, tau=TEMPERATURE, hard=True)
            reconstruction = torch.sigmoid(decoder(z.flatten(1)))
            bce = F.binary_cross_entropy(reconstruction, x, reduction="sum")
            q = logits.softmax(-1)
            kl = (q * (torch.log(q + 1e-10) - torch.log(torch.tensor(1 / CATEGORIES)))).sum()
            loss = (bce + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()

    return _timed(epoch, epochs)


def lean(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """Measure a loop that does as little as eager torch allows."""
    torch.set_flush_denormal(True)
    from torchvision.datasets import MNIST

    encoder, decoder = _layers(SIZES), _layers(SIZES[::-1])
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    images = MNIST(root, train=True, download=True).data.flatten(1)  # (60000, 784) uint8
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def run(network: nn.Module, x: Tensor) -> Tensor:
        with autocast:
            return network(x).float()

    def epoch() -> None:
        for index in torch.randperm(IMAGES).split(batch_size):
            x = images[index].float().div_(255)
            logits = run(encoder, x).view(-1, LATENTS, CATEGORIES)
            z = F.gumbel_softmax(logits, tau=TEMPERATURE, hard=True)
            pixels = run(decoder, z.flatten(1))
            bce = F.binary_cross_entropy_with_logits(pixels, x, reduction="sum")
            log_q = logits.log_softmax(-1)
            negative_entropy = (log_q.exp() * log_q).sum()  # the KL, up to a constant
            optimizer.zero_grad()
            ((bce + negative_entropy) / len(x)).backward()
            optimizer.step()

    return _timed(epoch, epochs)


def gemms(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """Measure every matrix product of a training step, without biases and activations."""
    torch.set_flush_denormal(True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    widths = [*SIZES, *SIZES[-2::-1]]
    layers = [
        tuple(
            torch.randn(shape, dtype=dtype) for shape in ((batch_size, a), (b, a), (batch_size, b))
        )
        for a, b in itertools.pairwise(widths)
    ]

    def epoch() -> None:
        for _ in range(IMAGES // batch_size):
            for depth, (x, weight, gradient) in enumerate(layers):
                x @ weight.T
                gradient.T @ x
                if depth:
                    gradient @ weight

    return _timed(epoch, epochs)


def _layers(sizes: tuple[int, ...]) -> nn.Sequential:
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(*[m for a, b in pairs for m in (nn.Linear(a, b), nn.ReLU())][:-1])


def _timed(epoch: Callable[[], None], epochs: int) -> list[float]:
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


class Contender(NamedTuple):
    """A way to train, and how it is measured."""

    title: str
    measure: Callable[[str, int, str, int], list[float]]
    precisions: tuple[str, ...] = ("float32", "bf16")
    most_epochs: int = sys.maxsize


CONTENDERS = {
    "usual": Contender("the usual loop", usual, ("float32",), most_epochs=3),  # it is slow
    "ours": Contender("this project, all included", ours),
    "lean": Contender("a lean loop", lean),
    "gemms": Contender("the matrix products alone", gemms),
}


class Cell(NamedTuple):
    """A contender with a batch size and a precision."""

    batch_size: int
    precision: str
    contender: str


Seconds = dict[Cell, list[list[float]]]
"""The seconds of each epoch, in each round."""


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Return everything to measure. Cells that are compared with each other are neighbours."""
    return [
        Cell(batch_size, precision, name)
        for batch_size in arguments.batch_sizes
        for precision in arguments.precisions
        for name, contender in CONTENDERS.items()
        if name in arguments.contenders and precision in contender.precisions
    ]


def ratio(above: list[list[float]] | None, below: list[list[float]] | None) -> str:
    """Return the median over the rounds of the ratio of the medians within a round."""
    if not above or not below:
        return "-"
    return f"{median(median(a) / median(b) for a, b in zip(above, below, strict=True)):.2f}"


def report(seconds: Seconds) -> str:
    """Return a table with a row per contender and precision."""
    batch_sizes = dict.fromkeys(cell.batch_size for cell in seconds)
    rows = dict.fromkeys((cell.contender, cell.precision) for cell in seconds)
    header = ["seconds per epoch"]
    for size in batch_sizes:
        header += [f"batch {size}: min", "median", "x GEMMs", "speed-up"]
    lines = []
    for name, precision in sorted(rows, key=lambda row: list(CONTENDERS).index(row[0])):
        line = [f"{CONTENDERS[name].title}, {precision}"]
        for size in batch_sizes:
            rounds = seconds[Cell(size, precision, name)]
            epochs = [second for epochs_of_round in rounds for second in epochs_of_round]
            gemm_rounds = seconds.get(Cell(size, precision, "gemms"))
            usual_rounds = seconds.get(Cell(size, "float32", "usual"))
            line += [f"{min(epochs):.2f}", f"{median(epochs):.2f}"]
            line += [ratio(rounds, gemm_rounds), ratio(usual_rounds, rounds)]
        lines.append(line)
    return table(header, lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", required=True, type=Path, help="a writable torchvision root")
    add("--batch-sizes", nargs="+", type=int, default=[100, 200, 500], metavar="B")
    precisions = ["float32", "bf16"]
    add("--precisions", nargs="+", choices=precisions, default=precisions, metavar="P")
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="C")
    add("--rounds", type=int, default=3)
    add("--epochs", type=int, default=4, help="per process, 2 or more; the first is not counted")
    add("--json", type=Path, metavar="FILE", help="write the raw seconds to this file")
    add("--here", action="store_true", help=argparse.SUPPRESS)  # measure one cell in this process
    return parser.parse_args()


def measure(cell: Cell, arguments: argparse.Namespace) -> list[float]:
    """Return the seconds of each epoch except the first, measured in a new process."""
    options = ["--batch-sizes", cell.batch_size, "--precisions", cell.precision]
    options += ["--contenders", cell.contender, "--epochs", arguments.epochs]
    return run_in_new_process("--root", arguments.root.resolve(), *options, "--here")


def write_json(file: Path, seconds: Seconds, machine: dict[str, object]) -> None:
    """Write the raw seconds and a description of the machine."""
    rows = [{**cell._asdict(), "seconds": rounds} for cell, rounds in seconds.items()]
    file.write_text(json.dumps({"machine": machine, "epochs": rows}, indent=1) + "\n")


def main(arguments: argparse.Namespace) -> None:
    """Measure every cell in new processes, or one cell in this process."""
    remaining = cells(arguments)
    if arguments.here:
        (cell,) = remaining
        contender = CONTENDERS[cell.contender]
        epochs = min(arguments.epochs, contender.most_epochs)
        root = str(arguments.root)
        print(json.dumps(contender.measure(root, cell.batch_size, cell.precision, epochs)))
        return
    machine, seconds = hardware(), {cell: [] for cell in remaining}
    for number in range(arguments.rounds):
        for cell in remaining if number % 2 == 0 else reversed(remaining):
            seconds[cell].append(measure(cell, arguments))
            numbers = " ".join(f"{second:.2f}" for second in seconds[cell][-1])
            print(f"round {number + 1}: {', '.join(map(str, cell))}: {numbers}", file=sys.stderr)
        if arguments.json:
            write_json(arguments.json, seconds, machine)
    print(f"\n{hardware_line(machine)}\n")
    print(report(seconds))
    epochs = arguments.epochs - 1
    epochs_of_usual = min(arguments.epochs, CONTENDERS["usual"].most_epochs) - 1
    print(
        f"\n{IMAGES:,} images per epoch; {arguments.rounds} rounds of {epochs} epochs "
        f"({epochs_of_usual} of the usual loop).\n"
        "x GEMMs: the time divided by the time of the matrix products alone, with the same batch\n"
        "size and precision. Speed-up: the time of the usual loop divided by this time.\n"
        "Denormals are flushed except in the usual loop. Only this project evaluates, logs and\n"
        "saves a checkpoint every epoch."
    )


if __name__ == "__main__":
    main(parse_arguments())
