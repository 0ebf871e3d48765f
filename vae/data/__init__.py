"""Data sets as uint8 tensors on the device, one data set per file, and batches of their images.

A source is cheap to construct and knows its name and its sizes; `Source.load` does the work. The
name of a data set holds everything that a number measured on it depends on: the source, the
binarisation and the split.
"""

from vae.data.batches import Batches, training_batches
from vae.data.mnist import Torchvision
from vae.data.mnist_5k import Mnist5k
from vae.data.one_batch import OneBatch, elbo_without_code
from vae.data.source import (
    Binarize,
    DataSet,
    Source,
    Split,
    digest,
    evaluation_images,
    pixel_means,
    to_float,
)

__all__ = [
    "Batches",
    "Binarize",
    "DataSet",
    "Mnist5k",
    "OneBatch",
    "Source",
    "Split",
    "Torchvision",
    "digest",
    "elbo_without_code",
    "evaluation_images",
    "pixel_means",
    "to_float",
    "training_batches",
]
