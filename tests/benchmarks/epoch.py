"""Seconds an epoch on full MNIST: this project, the usual loop, a lean one, the GEMMs alone.

    python tests/benchmarks/epoch.py --root data

Architecture and settings of the ReinMax authors' MNIST-VAE: 784-512-256-32 and mirrored, ReLU,
8 categories x 4 latents, Adam 5e-4, grey pixels, 60,000 images, straight-through Gumbel.

    ours    `vae.training.train` with its evaluation, checkpoint and logging of every epoch
    usual   DataLoader, ToTensor, default Adam, `item()` at every step; denormals as they come
    lean    a gathered tensor, fused Adam, no `item()`, no logging, denormals flushed; eager
    gemms   every matrix product of a step, and nothing else

Every measurement is a process of its own whose first epoch is dropped. A round measures each once,
in turn, and the next round in the opposite order, so that a machine whose speed drifts is fair to
all. Ratios are of medians within a round, and of these the median over the rounds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common import alone, described, hardware, table
from torch import Tensor, nn

SIZES = (784, 512, 256, 32)
LATENTS, CATEGORIES = 4, 8
TEMPERATURE, LEARNING_RATE = 0.5, 5e-4
IMAGES = 60_000


def ours(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """From the scalars of one epoch to those of the next; pictures come every tenth, so never."""
    from vae.utils import runtime as machine
    from vae.data.source import Torchvision
    from vae.estimators import StraightThroughGumbel
    from vae.model import CategoricalVAE
    from vae.networks import MLP
    from vae.objective import NegativeELBO
    from vae.optimizers import Adam
    from vae.tracking.logger import Tracker, Tracking
    from vae.training.replica import Run
    from vae.training.loop import Training, train

    class Clocked(Tracker):
        """Notes when each epoch's scalars come: once an epoch, at the same place of it."""

        def log_scalars(self, step: int, epoch: int, values: dict[str, float]) -> None:
            super().log_scalars(step, epoch, values)
            ticks.append(time.perf_counter())

    machine.prepare()  # too late for how OpenMP's threads wait, which quiet cores do not show
    ticks: list[float] = []
    data = Torchvision(dataset="MNIST", binarize="none", validation=0, root=root)
    networks = MLP(encoder_sizes=[512, 256], decoder_sizes=[256, 512], activation="relu")
    model = CategoricalVAE(networks, latents=LATENTS, categories=CATEGORIES)
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        steps=None,
        clip=None,
        patience=None,
        precision=precision,
    )
    tracking = Tracking(
        pictures_every=10, pictures=20, train_images=5000, projected=0, gradient_every=0
    )
    with tempfile.TemporaryDirectory() as folder, Clocked(Path(folder)) as tracker:
        run = Run(
            NegativeELBO(model, StraightThroughGumbel(temperature=TEMPERATURE)),
            Adam(lr=LEARNING_RATE, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0),
            tracker,
            Path(folder),
            seed=0,
        )
        train([run], data.load(torch.device("cpu")), training, tracking)
    return [b - a for a, b in zip(ticks, ticks[1:], strict=False)]


def usual(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """What public trainers do: DataLoader, ToTensor, default Adam, `item()` at every step."""
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
    """As little as eager torch allows: what a loop of this model alone would be."""
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
    """Every matrix product of a training step and nothing else: no bias, no activation."""
    torch.set_flush_denormal(True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    widths = [*SIZES, *SIZES[-2::-1]]
    layers = [
        tuple(
            torch.randn(shape, dtype=dtype) for shape in ((batch_size, a), (b, a), (batch_size, b))
        )
        for a, b in zip(widths, widths[1:], strict=False)
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
    pairs = zip(sizes, sizes[1:], strict=False)
    return nn.Sequential(*[m for a, b in pairs for m in (nn.Linear(a, b), nn.ReLU())][:-1])


def _timed(epoch: Callable[[], None], epochs: int) -> list[float]:
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


class Contender(NamedTuple):
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
    """One thing to measure."""

    batch_size: int
    precision: str
    contender: str


Seconds = dict[Cell, list[list[float]]]  # of each round, each epoch


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """All that is asked for, in such an order that what is compared lies close together."""
    return [
        Cell(batch_size, precision, name)
        for batch_size in arguments.batch_sizes
        for precision in arguments.precisions
        for name, contender in CONTENDERS.items()
        if name in arguments.contenders and precision in contender.precisions
    ]


def ratio(above: list[list[float]] | None, below: list[list[float]] | None) -> str:
    """Median over the rounds of the medians' ratio within a round."""
    if not above or not below:
        return "-"
    return f"{median(median(a) / median(b) for a, b in zip(above, below, strict=True)):.2f}"


def report(seconds: Seconds) -> str:
    batch_sizes = dict.fromkeys(cell.batch_size for cell in seconds)
    rows = dict.fromkeys((cell.contender, cell.precision) for cell in seconds)
    header = ["seconds an epoch"]
    for size in batch_sizes:
        header += [f"batch {size}: min", "median", "x GEMMs", "speed-up"]
    lines = []
    for name, precision in sorted(rows, key=lambda row: list(CONTENDERS).index(row[0])):
        line = [f"{CONTENDERS[name].title}, {precision}"]
        for size in batch_sizes:
            own = seconds[Cell(size, precision, name)]
            epochs = [second for one_round in own for second in one_round]
            floor = seconds.get(Cell(size, precision, "gemms"))
            slow = seconds.get(Cell(size, "float32", "usual"))
            line += [f"{min(epochs):.2f}", f"{median(epochs):.2f}"]
            line += [ratio(own, floor), ratio(slow, own)]
        lines.append(line)
    return table(header, lines)


def parse() -> argparse.Namespace:
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
    add("--epochs", type=int, default=4, help="of a process, 2 or more; the first is dropped")
    add("--json", type=Path, metavar="FILE", help="keep the raw seconds there")
    add("--here", action="store_true", help=argparse.SUPPRESS)  # one cell, in this process
    return parser.parse_args()


def measure(cell: Cell, arguments: argparse.Namespace) -> list[float]:
    """Of one process: the seconds of each epoch but the first."""
    options = ["--batch-sizes", cell.batch_size, "--precisions", cell.precision]
    options += ["--contenders", cell.contender, "--epochs", arguments.epochs]
    return alone("--root", arguments.root.resolve(), *options, "--here")


def keep(file: Path, seconds: Seconds, measured_on: dict[str, object]) -> None:
    rows = [{**cell._asdict(), "seconds": rounds} for cell, rounds in seconds.items()]
    file.write_text(json.dumps({"machine": measured_on, "epochs": rows}, indent=1) + "\n")


def main(arguments: argparse.Namespace) -> None:
    todo = cells(arguments)
    if arguments.here:
        (cell,) = todo
        contender = CONTENDERS[cell.contender]
        epochs = min(arguments.epochs, contender.most_epochs)
        root = str(arguments.root)
        print(json.dumps(contender.measure(root, cell.batch_size, cell.precision, epochs)))
        return
    here, seconds = hardware(), {cell: [] for cell in todo}
    for number in range(arguments.rounds):
        for cell in todo if number % 2 == 0 else reversed(todo):
            seconds[cell].append(measure(cell, arguments))
            said = " ".join(f"{second:.2f}" for second in seconds[cell][-1])
            print(f"round {number + 1}: {', '.join(map(str, cell))}: {said}", file=sys.stderr)
        if arguments.json:
            keep(arguments.json, seconds, here)
    print(f"\n{described(here)}\n")
    print(report(seconds))
    kept = arguments.epochs - 1
    kept_of_usual = min(arguments.epochs, CONTENDERS["usual"].most_epochs) - 1
    print(
        f"\n{IMAGES:,} images an epoch; {arguments.rounds} rounds of {kept} epochs, of the usual "
        f"loop {kept_of_usual}.\nx GEMMs: the time over that of the matrix products alone, of the "
        "same batch size and\nprecision; speed-up: the usual loop's time over this one. Denormals "
        "are flushed\neverywhere but in the usual loop. This project evaluates, logs and keeps a "
        "checkpoint\nevery epoch, and no other does."
    )


if __name__ == "__main__":
    main(parse())
