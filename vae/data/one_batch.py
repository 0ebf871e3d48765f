"""A single batch of another source, to check that a model can fit it."""

from dataclasses import dataclass

from torch import Tensor

from vae.data.source import Binarize, Source, Split, pixel_means

_REPEATS = 50  # steps in an epoch; with one step, each step would be followed by an evaluation


@dataclass(frozen=True)
class OneBatch(Source):
    """The first training images of another source, as training images and as test images.

    Attributes:
        source: The other source.
        size: The number of images, at most as many as the source has. In an epoch, each of them is
            shown 50 times.
    """

    source: Source
    size: int

    @property
    def binarize(self) -> Binarize:  # type: ignore[override]
        return self.source.binarize

    @property
    def name(self) -> str:
        return f"{self.source.name}, first {self.size} training images"

    @property
    def train_size(self) -> int:
        return self.size * _REPEATS

    @property
    def valid_size(self) -> int:
        return 0

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.source.image_shape

    def read(self) -> tuple[Split, Split, Split]:
        train, _, _ = self.source.read()
        images, labels = train.images[: self.size], train.labels[: self.size]
        repeated = Split(images.repeat(_REPEATS, 1), labels.repeat(_REPEATS))
        return repeated, Split(images[:0], labels[:0]), Split(images, labels)


def elbo_without_code(images: Tensor) -> float:
    """Return the best ELBO that a model without a code can have on some images.

    Such a model gives every image the same pixel probabilities. The best ones are the means of the
    pixels, and the ELBO is then the negated entropy of D Bernoulli variables with these means.

    Args:
        images: uint8 (n, D).

    Returns:
        The ELBO, in nats per image.
    """
    mean = pixel_means(images).double()
    return (mean.xlogy(mean) + (1 - mean).xlogy(1 - mean)).sum().item()
