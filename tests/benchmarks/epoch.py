"""Seconds an epoch on full MNIST: this project's loop, the usual loop, and the GEMMs alone.

    python tests/benchmarks/epoch.py --root data

Architecture and settings of the ReinMax authors' MNIST-VAE: 784-512-256-32 and mirrored, ReLU,
8 categories x 4 latents, batch 100, Adam 5e-4, grey pixels, 60,000 images. Every contender runs in
a process of its own, in turn, several rounds, so that a machine whose speed drifts is fair to all;
the first epoch of each process is dropped. `ours` is `vae.training.train` with its evaluation,
checkpoint and logging of every epoch; `usual` neither evaluates nor logs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SIZES = (784, 512, 256, 32)
LATENTS, CATEGORIES = 4, 8
IMAGES = 60_000


def ours(root: str, batch_size: int, epochs: int) -> list[float]:
    torch.set_flush_denormal(True)
    from vae.data import Torchvision
    from vae.estimators import StraightThroughGumbel
    from vae.model import CategoricalVAE
    from vae.networks import MLP
    from vae.objective import NegativeELBO
    from vae.optimizers import Adam
    from vae.tracking import Tracker, Tracking
    from vae.training import Training, train

    class Clocked(Tracker):
        """Notes when each epoch's scalars come: once an epoch, at the same place of it."""

        def scalars(self, step: int, epoch: int, values: dict[str, float]) -> None:
            super().scalars(step, epoch, values)
            ticks.append(time.perf_counter())

    ticks: list[float] = []
    data = Torchvision(dataset="MNIST", binarize="none", validation=0, root=root)
    networks = MLP(encoder_sizes=[512, 256], decoder_sizes=[256, 512], activation="relu")
    model = CategoricalVAE(networks, latents=LATENTS, categories=CATEGORIES)
    with tempfile.TemporaryDirectory() as folder, Clocked(Path(folder)) as tracker:
        train(
            NegativeELBO(model, StraightThroughGumbel(temperature=0.5)),
            data.load(torch.device("cpu")),
            Adam(lr=5e-4, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0),
            Training(
                epochs=epochs,
                batch_size=batch_size,
                steps=None,
                clip=None,
                patience=None,
                precision="float32",
            ),
            Tracking(
                pictures_every=10, pictures=20, train_images=5000, projected=0, gradient_every=0
            ),
            tracker,
            Path(folder),
            seed=0,
        )
    return [b - a for a, b in zip(ticks, ticks[1:], strict=False)]


def usual(root: str, batch_size: int, epochs: int) -> list[float]:
    """What public trainers do: DataLoader, ToTensor, default Adam, `item()` at every step."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

    def layers(sizes: tuple[int, ...]) -> nn.Sequential:
        pairs = zip(sizes, sizes[1:], strict=False)
        return nn.Sequential(*[m for a, b in pairs for m in (nn.Linear(a, b), nn.ReLU())][:-1])

    encoder, decoder = layers(SIZES), layers(SIZES[::-1])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-4)
    dataset = MNIST(root, train=True, download=True, transform=transforms.ToTensor())
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)
    seconds = []
    for _ in range(epochs):
        began, total = time.perf_counter(), 0.0
        for images, _ in loader:
            x = images.view(-1, 784)
            logits = encoder(x).view(-1, LATENTS, CATEGORIES)
            z = F.gumbel_softmax(logits, tau=0.5, hard=True)
            reconstruction = torch.sigmoid(decoder(z.flatten(1)))
            bce = F.binary_cross_entropy(reconstruction, x, reduction="sum")
            q = logits.softmax(-1)
            kl = (q * (torch.log(q + 1e-10) - torch.log(torch.tensor(1 / CATEGORIES)))).sum()
            loss = (bce + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def gemms(root: str, batch_size: int, epochs: int) -> list[float]:
    """Every matrix product of a training step and nothing else: no bias, no activation."""
    torch.set_flush_denormal(True)
    widths = [*SIZES, *SIZES[-2::-1]]
    layers = [
        (torch.randn(batch_size, a), torch.randn(b, a), torch.randn(batch_size, b))
        for a, b in zip(widths, widths[1:], strict=False)
    ]
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        for _ in range(IMAGES // batch_size):
            for depth, (x, weight, gradient) in enumerate(layers):
                x @ weight.T
                gradient.T @ x
                if depth:
                    gradient @ weight
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


CONTENDERS: dict[str, Callable[[str, int, int], list[float]]] = {
    contender.__name__: contender for contender in (ours, usual, gemms)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", required=True, help="a writable torchvision root")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="a process; the first is dropped")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contender = CONTENDERS[arguments.contender]
        print(json.dumps(contender(arguments.root, arguments.batch_size, arguments.epochs)))
        return
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(arguments.rounds):
        for name in CONTENDERS:
            command = [sys.executable, *sys.argv, "--contender", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            seconds[name] += json.loads(done.stdout.splitlines()[-1])
    floor = statistics.median(seconds["gemms"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"batch {arguments.batch_size}; seconds an epoch\n")
    print(f"{'':8}{'min':>8}{'median':>8}{'max':>8}{'x GEMMs':>9}")
    for name, all_seconds in seconds.items():
        row = min(all_seconds), statistics.median(all_seconds), max(all_seconds)
        print(f"{name:8}" + "".join(f"{s:8.2f}" for s in row) + f"{row[1] / floor:9.2f}")
    ratio = statistics.median(seconds["usual"]) / statistics.median(seconds["ours"])
    print(f"\nthe usual loop takes {ratio:.2f} x the time of ours")


if __name__ == "__main__":
    main()
