"""Encoders and decoders, from plain tensors to plain tensors.

A family describes a pair of networks and builds it. The encoder maps images (B, D) to (B, L), and
the decoder maps flat codes (M, L) to pixel logits (M, D), with L = N * K. (The encoder of a catnat
posterior has L = N * (K - 1).) No layer mixes the rows of a batch (no BatchNorm): f(z)[s, b] must
depend on z[s, b] alone, or score functions and enumeration are wrong.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import nn

from vae.utils.validation import Count, frozen

Activation = Literal["relu", "leaky_relu", "leaky_relu_0.3", "tanh", "elu", "gelu", "silu"]

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    # In place to save memory: no backward pass needs the input of the ReLU.
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "leaky_relu_0.3": lambda: nn.LeakyReLU(0.3),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
"""How to build the module of each activation."""


def mlp(sizes: list[int], activation: Activation) -> nn.Sequential:
    """Build linear layers of these sizes with the activation between them, but not at the end."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class Networks(ABC):
    """A family of encoders and decoders.

    `image_shape` is (height, width) with D = height * width, and `code_size` is L.
    """

    @abstractmethod
    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        """Build a module from images (B, D) to scores (B, L)."""

    @abstractmethod
    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        """Build a module from flat codes (M, L) to pixel logits (M, D)."""


@frozen
class MLP(Networks):
    """Fully connected networks with hidden layers of `encoder_sizes` and `decoder_sizes` units."""

    encoder_sizes: list[Count]
    decoder_sizes: list[Count]
    activation: Activation

    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = image_shape
        return mlp([height * width, *self.encoder_sizes, code_size], self.activation)

    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = image_shape
        return mlp([code_size, *self.decoder_sizes, height * width], self.activation)


@frozen
class Linear(Networks):
    """One linear map in each direction."""

    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        return nn.Linear(image_shape[0] * image_shape[1], code_size)

    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        return nn.Linear(code_size, image_shape[0] * image_shape[1])


@frozen
class Conv(Networks):
    """Two strided convolutions and one hidden layer of `hidden` units; the decoder mirrors them.

    The first convolution has `channels` channels, the second twice as many. Height and width of
    the images must be multiples of 4.
    """

    channels: Count
    hidden: Count
    activation: Activation

    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = self._check(image_shape)
        activation = ACTIVATIONS[self.activation]
        return nn.Sequential(
            nn.Unflatten(1, (1, height, width)),
            nn.Conv2d(1, self.channels, 4, stride=2, padding=1),
            activation(),
            nn.Conv2d(self.channels, 2 * self.channels, 4, stride=2, padding=1),
            activation(),
            nn.Flatten(),
            nn.Linear(self.channels * height * width // 8, self.hidden),
            activation(),
            nn.Linear(self.hidden, code_size),
        )

    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = self._check(image_shape)
        activation = ACTIVATIONS[self.activation]
        return nn.Sequential(
            nn.Linear(code_size, self.hidden),
            activation(),
            nn.Linear(self.hidden, self.channels * height * width // 8),
            activation(),
            nn.Unflatten(1, (2 * self.channels, height // 4, width // 4)),
            nn.ConvTranspose2d(2 * self.channels, self.channels, 4, stride=2, padding=1),
            activation(),
            nn.ConvTranspose2d(self.channels, 1, 4, stride=2, padding=1),
            nn.Flatten(),
        )

    @staticmethod
    def _check(image_shape: tuple[int, int]) -> tuple[int, int]:
        if any(side % 4 for side in image_shape):
            raise ValueError(f"convolutions need sides that are multiples of 4, not {image_shape}")
        return image_shape
