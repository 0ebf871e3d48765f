"""Batches of training images, by indexing one tensor: there is no DataLoader."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vae.data.source import DataSet, to_float
from vae.schedules import Step


class Batches:
    """Batches of training images for R replicas, each replica in an order of its own.

    Every batch is full. The images that are left over at the end of the permutation are not shown
    in that epoch. Each replica draws its order (and, with dynamic binarisation, its pixels) from
    its own generator, so neither other replicas nor any other random draw changes its batches.
    """

    def __init__(
        self, data: DataSet, batch_size: int, generators: Sequence[torch.Generator]
    ) -> None:
        """Take one generator per replica, on the device of the data."""
        self.generators, self.redraw = generators, data.redraw
        self._images, self._size = data.train.images, batch_size
        count, device = len(self._images), self._images.device
        self._order = torch.zeros(len(generators), count, dtype=torch.long, device=device)
        self._offsets = torch.arange(batch_size, device=device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._order.shape[1] // self._size

    def shuffle(self) -> None:
        """Draw a new order of the images for each replica."""
        for order, generator in zip(self._order, self.generators, strict=True):
            torch.randperm(len(order), generator=generator, out=order)

    def get(self, number: Step) -> Tensor:
        """Return the images (R, B, D) of a batch, in [0, 1].

        With dynamic binarisation, each call draws the pixels anew.

        Args:
            number: The batch's number in the epoch, from 0. If it is a 0-dim tensor, the device is
                not synchronised.
        """
        if isinstance(number, Tensor):
            index = self._order.index_select(1, number * self._size + self._offsets)
        else:
            index = self._order[:, number * self._size : (number + 1) * self._size]
        x = self._images.index_select(0, index.flatten())  # five times as fast as images[index]
        x = to_float(x).unflatten(0, index.shape)
        if not self.redraw:
            return x
        pairs = zip(x, self.generators, strict=True)
        return torch.stack(
            [torch.bernoulli(grey, generator=generator) for grey, generator in pairs]
        )


def training_batches(
    data: DataSet, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the batches (batch_size, D) of one epoch in a new order, in [0, 1]."""
    batches = Batches(data, batch_size, [generator])
    batches.shuffle()
    for number in range(len(batches)):
        yield batches.get(number).squeeze(0)
