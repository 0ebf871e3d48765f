"""Fixtures of the tests of data sets: digits without a download, and a small MNIST on a server."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.small_mnist import FILES, Server, closed_address, md5_of, raw_folder
from vae.data import DataSet, Mnist5k, mnist


@pytest.fixture(scope="module")
def mnist_5k() -> dict[str, DataSet]:
    """The data set mnist_5k with each binarisation."""
    binarisations = ["none", "threshold", "dynamic", "static"]
    return {name: Mnist5k(name).load(torch.device("cpu")) for name in binarisations}


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four files of a small MNIST: 60 training and 10 test images."""
    folder, random = tmp_path_factory.mktemp("official"), np.random.default_rng(0)
    for name, shape in FILES.items():
        values = random.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
        sizes = b"".join(size.to_bytes(4, "big") for size in shape)
        header = bytes([0, 0, 8, len(shape)]) + sizes
        (folder / name).write_bytes(gzip.compress(header + values.tobytes()))
    return folder


@pytest.fixture
def small_mnist(official: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """torchvision's MNIST class, changed to the small files and a mirror that never answers."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", [(name, md5_of(official / name)) for name in FILES])
    monkeypatch.setattr(MNIST, "mirrors", [closed_address()])
    shapes = tuple((shape[0], 784) if len(shape) == 3 else shape for shape in FILES.values())
    monkeypatch.setattr(mnist, "_SHAPES", shapes)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    return MNIST


@pytest.fixture
def server(official: Path, small_mnist: type, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the small files, which is torchvision's only mirror."""
    with Server(official) as server:
        monkeypatch.setattr(small_mnist, "mirrors", [server.url])
        yield server


@pytest.fixture
def root(official: Path, small_mnist: type, tmp_path: Path) -> Path:
    """A torchvision root that contains the small files."""
    raw_folder(tmp_path).mkdir(parents=True)
    for name in FILES:
        (raw_folder(tmp_path) / name).write_bytes((official / name).read_bytes())
    return tmp_path
