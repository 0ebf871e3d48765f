"""MNIST through torchvision: the cache, damaged files, splits and settings.

The files are small ones in the format of MNIST.
"""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from pydantic import ValidationError

from tests.data.small_mnist import (
    CPU,
    FILES,
    TRAIN,
    assert_is_official,
    assert_is_one_line,
    cache_file,
    flip_bit,
    lengthen,
    make_empty,
    md5_of,
    raw_folder,
    replace_by_another_size,
    shorten,
    small_source,
)
from vae.data import Torchvision, mnist
from vae.utils.errors import UserError

SPLITS = ["train", "valid", "test"]

every_binarisation = pytest.mark.parametrize(
    "binarize", ["none", "threshold", "dynamic", "static"]
)


# The cache


def test_second_load_needs_neither_files_nor_server_nor_torchvision(
    official, server, tmp_path, monkeypatch
):
    small_source(tmp_path).load(CPU)
    server.stop()
    for name in FILES:
        (raw_folder(tmp_path) / name).unlink()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert_is_official(small_source(tmp_path).load(CPU), official)


@pytest.mark.parametrize(
    "damage", [flip_bit, shorten, lengthen, make_empty, replace_by_another_size]
)
def test_damaged_cache_is_reported_and_written_anew(official, root, damage, caplog):
    small_source(root).load(CPU)
    undamaged = cache_file(root).read_bytes()
    damage(cache_file(root))
    assert cache_file(root).read_bytes() != undamaged
    with caplog.at_level(logging.WARNING):
        assert_is_official(small_source(root).load(CPU), official)
    assert "MNIST.tensors is damaged" in caplog.text
    assert cache_file(root).read_bytes() == undamaged


def test_root_that_cannot_be_written_is_read_without_a_cache(official, root, monkeypatch):
    def fail(path, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(mnist, "write_atomically", fail)
    assert_is_official(small_source(root).load(CPU), official)
    assert_is_official(small_source(root).load(CPU), official)
    assert sorted(os.listdir(root)) == ["MNIST"]


# The files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_bit, shorten, make_empty])
def test_damaged_file_is_a_user_error_with_its_path_and_both_checksums(root, name, damage):
    file = raw_folder(root) / name
    expected_md5 = md5_of(file)
    damage(file)
    with pytest.raises(UserError) as error:
        small_source(root).load(CPU)
    assert_is_one_line(error)
    for words in (str(file), md5_of(file), expected_md5):
        assert words in str(error.value)
    assert not cache_file(root).exists()


def test_tilde_in_root_is_the_home_folder(official, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert_is_official(small_source(Path("~")).load(CPU), official)
    assert cache_file(root).exists()


# Names and splits


@every_binarisation
def test_name_contains_everything_that_numbers_depend_on(root, binarize):
    source = small_source(root, binarize)
    assert source.name == f"MNIST, binarize={binarize}, validation={60_000 - TRAIN}"
    assert source.load(CPU).name == source.name


@every_binarisation
def test_splits_are_binarised_except_for_dynamic_training_images(root, binarize):
    data, grey = small_source(root, binarize).load(CPU), small_source(root).load(CPU)
    assert data.redraw == (binarize == "dynamic")
    for split in SPLITS:
        images, grey_images = getattr(data, split).images, getattr(grey, split).images
        stays_grey = binarize == "none" or (binarize == "dynamic" and split == "train")
        assert torch.equal(images, grey_images) == stays_grey
        assert stays_grey or set(images.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("binarize", ["dynamic", "static"])
def test_test_images_do_not_depend_on_the_number_of_validation_images(root, binarize):
    first, second = (small_source(root, binarize, train).load(CPU) for train in (40, 60))
    assert torch.equal(first.test.images, second.test.images)


def test_validation_split_may_be_empty(root):
    data = small_source(root, train=60).load(CPU)
    assert (len(data.train), len(data.valid), len(data.test)) == (60, 0, 10)
    assert data.valid.images.shape == (0, 784)


def test_train_size_is_known_before_anything_is_read(tmp_path):
    assert Torchvision("MNIST", "none", 10_000, str(tmp_path)).train_size == 50_000


# Settings


@pytest.mark.parametrize("dataset", get_args(get_type_hints(Torchvision)["dataset"]))
def test_torchvision_has_a_data_set_of_each_name_with_the_same_files(dataset):
    from torchvision import datasets

    official = getattr(datasets, dataset)
    names = sorted(name for name, _ in official.resources)
    assert names == sorted(mnist._FILES) == sorted(FILES)
    assert official.mirrors


@pytest.mark.parametrize(
    "name, wrong",
    [
        *(("dataset", wrong) for wrong in ("mnist", "CIFAR10", None)),
        *(("binarize", wrong) for wrong in ("Static", True, None)),
        *(("validation", wrong) for wrong in (-1, 60_000, 0.1, "5000", True, None)),
        *(("root", wrong) for wrong in (None, 3)),
        ("mirror", 3),
        ("download", True),
    ],
)
def test_invalid_setting_is_refused(name, wrong):
    valid = {"dataset": "MNIST", "binarize": "none", "validation": 0, "root": "data"}
    with pytest.raises(ValidationError):
        Torchvision(**valid | {name: wrong})


def test_building_a_source_does_not_import_torchvision():
    program = (
        "import sys, vae.data; vae.data.Torchvision('MNIST', 'none', 0, 'data'); "
        "assert 'torch' in sys.modules; assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
