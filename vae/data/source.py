"""The interface of a source of images, and the data set that a source loads."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Binarize = Literal["none", "threshold", "dynamic", "static"]

_DRAW_SEED = 20_000  # of pixels drawn once: all static images, dynamic held-out and test images


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set."""

    images: Tensor  # (n, D) uint8, 0 to 255
    labels: Tensor  # (n,) int64

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)


class DataSet(NamedTuple):
    """The three splits of a data set, on one device."""

    name: str
    train: Split
    valid: Split  # may be empty
    test: Split
    redraw: bool  # whether training images are binarised anew each time they are shown
    binary: bool  # whether every pixel is 0 or 1, so that the Bernoulli term is a likelihood


class Source(ABC):
    """A source of images, which also decides on their binarisation and on the validation split.

    Attributes:
        binarize: `none` keeps grey pixels, for which the Bernoulli term is not a likelihood.
            `threshold` cuts at one half. `static` draws each pixel once from Bernoulli(grey).
            `dynamic` draws training images anew each time they are shown, and validation and test
            images once, from a fixed seed.
    """

    binarize: Binarize

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the data set, with everything that a measured number depends on."""

    @property
    @abstractmethod
    def train_size(self) -> int:
        """The number of training images, known before anything is read."""

    @property
    @abstractmethod
    def valid_size(self) -> int:
        """The number of images held out for validation, known before anything is read."""

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images; the model is built for this shape."""
        return 28, 28

    @abstractmethod
    def read(self) -> tuple[Split, Split, Split]:
        """Return training, validation and test images with grey pixels.

        Raises:
            UserError: The images cannot be read.
        """

    def load(self, device: torch.device) -> DataSet:
        """Read the images, binarise those that are binarised once, and move all to the device.

        Raises:
            UserError: The images cannot be read.
        """
        generator = torch.Generator().manual_seed(_DRAW_SEED)
        redraw = self.binarize == "dynamic"

        def prepare(split: Split, binarize: Binarize) -> Split:
            images = _binarized(split.images, binarize, generator)
            return Split(images.to(device), split.labels.to(device))

        train, valid, test = self.read()
        # The test split is drawn first: its pixels do not depend on the number of held-out images.
        test = prepare(test, self.binarize)
        valid = prepare(valid, self.binarize)
        train = prepare(train, "none" if redraw else self.binarize)
        binary = self.binarize != "none"
        return DataSet(self.name, train, valid, test, redraw, binary)


def _binarized(images: Tensor, binarize: Binarize, generator: torch.Generator) -> Tensor:
    if binarize == "none":
        return images
    if binarize == "threshold":
        return (images > 127).to(torch.uint8) * 255
    binary = torch.empty_like(images)
    # In blocks, to save memory.
    for grey, out in zip(images.split(10_000), binary.split(10_000), strict=True):
        out.copy_(
            (torch.rand(grey.shape, generator=generator, dtype=torch.float32) * 255 < grey) * 255
        )
    return binary


def evaluation_images(data: DataSet, split: Split) -> Tensor:
    """Return the images of a split for evaluation, uint8 (n, D).

    Training images that are binarised anew each time they are shown are drawn once here, from a
    fixed seed. All other images are returned as they are.
    """
    if data.redraw and split is data.train:
        generator = torch.Generator().manual_seed(_DRAW_SEED + 1)
        return _binarized(split.images.cpu(), "static", generator).to(split.images.device)
    return split.images


def digest(data: DataSet) -> str:
    """Return the SHA-256 of all labels and of all images as they are stored.

    With dynamic binarisation, the stored training images are grey.
    """
    sha = hashlib.sha256()
    for split in (data.train, data.valid, data.test):
        sha.update(split.images.cpu().numpy().data)
        sha.update(split.labels.cpu().numpy().data)
    return sha.hexdigest()


def pixel_means(images: Tensor) -> Tensor:
    """Return the mean of each pixel over the images: uint8 (n, D) -> (D,) in [0, 1].

    The sums are integers and the division is done on the CPU, so the result is the same on every
    device.
    """
    total = torch.zeros(images.shape[1], dtype=torch.long, device=images.device)
    for part in images.split(1_000):  # to save memory: the sum first converts to int64
        total += part.sum(0)
    return (total.cpu().to(torch.float32) / (255 * len(images))).to(images.device)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [0, 1].

    Raises:
        TypeError: The pixels are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images are uint8 from 0 to 255, not {images.dtype}")
    return images.to(torch.float32).div_(255)
