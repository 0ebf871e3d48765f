"""Measure the seconds per epoch on MNIST: this project, other ways to train, and the GEMMs.

    python tests/benchmarks/epoch.py --root data

The architecture and the settings follow the ReinMax authors: 784-512-256-32 and mirrored,
ReLU, 4 latents of 8 categories, Adam with learning rate 5e-4, grey pixels, 60,000 images,
straight-through Gumbel.

    ours       `vae.training.train`, which evaluates, logs and saves a checkpoint every epoch
    usual      DataLoader, ToTensor, default Adam, `item()` every step; denormals are not flushed
    lean       an indexed tensor, fused Adam, no `item()`, no logging; denormals are flushed
    compiled   the lean loop, with forward and backward pass compiled by torch.compile
    jax        one jitted JAX function that scans over the batches of an epoch; Adam is from optax
    gemms      every matrix product of a step, and nothing else

JAX and optax are in the extra `benchmark` of this project (`pip install -e '.[benchmark]'`). A
contender whose package is missing is skipped.

Each measurement runs in a new process. Its first epoch is not counted. The warm-up, which includes
the compilation, is the time of the first epoch minus the median of the later epochs. A round
measures every contender once. The next round has the opposite order, so that a machine whose speed
drifts treats all of them alike. A ratio is computed from the medians within a round; the table has
its median over the rounds.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
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

    The first time begins when training does. Pictures are drawn in every tenth epoch and after the
    last one. With fewer than ten epochs, these times therefore contain none.
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
        images = data.load(torch.device("cpu"))
        times = [time.perf_counter()]
        train([run], images, training, logging)
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
    return _lean(root, batch_size, precision, epochs, compiled=False)


def compiled(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """Measure the lean loop with a compiled forward and backward pass."""
    return _lean(root, batch_size, precision, epochs, compiled=True)


def _lean(root: str, batch_size: int, precision: str, epochs: int, compiled: bool) -> list[float]:
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

    def loss(x: Tensor) -> Tensor:
        logits = run(encoder, x).view(-1, LATENTS, CATEGORIES)
        z = F.gumbel_softmax(logits, tau=TEMPERATURE, hard=True)
        pixels = run(decoder, z.flatten(1))
        bce = F.binary_cross_entropy_with_logits(pixels, x, reduction="sum")
        log_q = logits.log_softmax(-1)
        negative_entropy = (log_q.exp() * log_q).sum()  # the KL, up to a constant
        return (bce + negative_entropy) / len(x)

    if compiled:
        torch.compiler.config.force_disable_caches = True  # the warm-up is that of a first run
        loss = torch.compile(loss)

    def epoch() -> None:
        for index in torch.randperm(IMAGES).split(batch_size):
            x = images[index].float().div_(255)
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()

    return _timed(epoch, epochs)


def jax(root: str, batch_size: int, precision: str, epochs: int) -> list[float]:
    """Measure a loop in JAX. XLA, its compiler, flushes denormals by itself."""
    from jax_loop import build_epoch
    from torchvision.datasets import MNIST

    images = MNIST(root, train=True, download=True).data.flatten(1).numpy()
    code_shape = LATENTS, CATEGORIES
    epoch = build_epoch(images, batch_size, SIZES, code_shape, TEMPERATURE, LEARNING_RATE)
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
    return seconds


class Contender(NamedTuple):
    """A way to train, and how it is measured."""

    title: str
    measure: Callable[[str, int, str, int], list[float]]
    precisions: tuple[str, ...] = ("float32", "bf16")
    most_epochs: int = sys.maxsize
    packages: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Return the names of the packages that are needed and not installed."""
        return [name for name in self.packages if find_spec(name) is None]


CONTENDERS = {
    "usual": Contender("the usual loop", usual, ("float32",), most_epochs=3),  # it is slow
    "ours": Contender("this project, all included", ours),
    "lean": Contender("a lean loop", lean),
    "compiled": Contender("a lean loop, compiled", compiled, ("float32",)),
    "jax": Contender("JAX and optax", jax, ("float32",), packages=("jax", "optax")),
    "gemms": Contender("the matrix products alone", gemms),
}


class Cell(NamedTuple):
    """A contender with a batch size and a precision."""

    batch_size: int
    precision: str
    contender: str


Seconds = dict[Cell, list[list[float]]]
"""The seconds of each epoch in each round."""


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Return everything to measure. Cells that are compared with each other are neighbours."""
    return [
        Cell(batch_size, precision, name)
        for batch_size in arguments.batch_sizes
        for precision in arguments.precisions
        for name, contender in CONTENDERS.items()
        if name in arguments.contenders
        and precision in contender.precisions
        and not contender.missing()
    ]


def ratio(above: list[list[float]] | None, below: list[list[float]] | None) -> str:
    """Return the median over the rounds of the ratio of the medians within a round."""
    if not above or not below:
        return "-"
    pairs = zip(above, below, strict=True)
    return f"{median(median(a[1:]) / median(b[1:]) for a, b in pairs):.2f}"


def report(seconds: Seconds) -> str:
    """Return a table with a row per contender and precision."""
    batch_sizes = dict.fromkeys(cell.batch_size for cell in seconds)
    rows = dict.fromkeys((cell.contender, cell.precision) for cell in seconds)
    header = ["seconds per epoch"]
    for size in batch_sizes:
        header += [f"batch {size}: min", "median", "warm-up", "x GEMMs", "speed-up"]
    lines = []
    for name, precision in sorted(rows, key=lambda row: list(CONTENDERS).index(row[0])):
        line = [f"{CONTENDERS[name].title}, {precision}"]
        for size in batch_sizes:
            rounds = seconds[Cell(size, precision, name)]
            epochs = [second for _, *others in rounds for second in others]
            warm_up = median(first - median(others) for first, *others in rounds)
            gemm_rounds = seconds.get(Cell(size, precision, "gemms"))
            usual_rounds = seconds.get(Cell(size, "float32", "usual"))
            line += [f"{number:.2f}" for number in (min(epochs), median(epochs), warm_up)]
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
    """Return the seconds of each epoch, measured in a new process."""
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
    for name in arguments.contenders:
        if missing := CONTENDERS[name].missing():
            needed = f"install the extra `benchmark` (missing: {', '.join(missing)})"
            print(f"skipping {name}: {needed}", file=sys.stderr)
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
        "size and precision. Speed-up: the time of the usual loop divided by this time. Warm-up:\n"
        "the first epoch, which no other number contains, less the median of the other epochs.\n"
        "Denormals are flushed except in the usual loop. Only this project evaluates, logs and\n"
        "saves a checkpoint every epoch."
    )


if __name__ == "__main__":
    main(parse_arguments())
