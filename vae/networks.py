"""Encoders and decoders: plain tensors in, plain tensors out.

A family describes a pair and builds it: the encoder maps images (B, D) to (B, L), the decoder maps
flat codes (M, L) to pixel logits (M, D), L = N * K. Nothing here mixes the rows of a batch (no
BatchNorm): f(z)[s, b] must depend on z[s, b] alone, or score functions and enumeration are wrong.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from .validation import Count, value

Activation = Literal["relu", "leaky_relu", "tanh", "elu", "gelu", "silu"]

_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),  # a layer does not need what it gave
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def mlp(sizes: list[int], activation: Activation) -> nn.Sequential:
    """Linear layers of these sizes, the activation between them and none at the end."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class Networks(ABC):
    @abstractmethod
    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        """A module from (B, D) to (B, code_size), D = height * width."""

    @abstractmethod
    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        """A module from (M, code_size) to (M, D)."""


@value
class MLP(Networks):
    """Fully connected; `encoder` and `decoder` are the sizes of the hidden layers."""

    encoder_sizes: list[Count]
    decoder_sizes: list[Count]
    activation: Activation

    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = image_shape
        return mlp([height * width, *self.encoder_sizes, code_size], self.activation)

    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = image_shape
        return mlp([code_size, *self.decoder_sizes, height * width], self.activation)


@value
class Linear(Networks):
    """One linear map each way."""

    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        return nn.Linear(image_shape[0] * image_shape[1], code_size)

    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        return nn.Linear(code_size, image_shape[0] * image_shape[1])


class _Reshape(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)


@value
class Conv(Networks):
    """Two strided convolutions and one hidden layer, mirrored. Sides must be multiples of 4."""

    channels: Count
    hidden: Count
    activation: Activation

    def encoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = self._check(image_shape)
        act = _ACTIVATIONS[self.activation]
        return nn.Sequential(
            _Reshape(1, height, width),
            nn.Conv2d(1, self.channels, 4, stride=2, padding=1),
            act(),
            nn.Conv2d(self.channels, 2 * self.channels, 4, stride=2, padding=1),
            act(),
            nn.Flatten(),
            nn.Linear(self.channels * height * width // 8, self.hidden),
            act(),
            nn.Linear(self.hidden, code_size),
        )

    def decoder(self, image_shape: tuple[int, int], code_size: int) -> nn.Module:
        height, width = self._check(image_shape)
        act = _ACTIVATIONS[self.activation]
        return nn.Sequential(
            nn.Linear(code_size, self.hidden),
            act(),
            nn.Linear(self.hidden, self.channels * height * width // 8),
            act(),
            _Reshape(2 * self.channels, height // 4, width // 4),
            nn.ConvTranspose2d(2 * self.channels, self.channels, 4, stride=2, padding=1),
            act(),
            nn.ConvTranspose2d(self.channels, 1, 4, stride=2, padding=1),
            nn.Flatten(),
        )

    @staticmethod
    def _check(image_shape: tuple[int, int]) -> tuple[int, int]:
        if any(side % 4 for side in image_shape):
            raise ValueError(f"convolutions need sides that are multiples of 4, not {image_shape}")
        return image_shape
