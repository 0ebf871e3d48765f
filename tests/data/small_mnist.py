"""A small data set in the format of MNIST, servers of its files, and ways to damage files."""

import gzip
import hashlib
import math
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from vae.data import DataSet, Torchvision

CPU = torch.device("cpu")

FILES = {
    "train-images-idx3-ubyte.gz": (60, 28, 28),
    "train-labels-idx1-ubyte.gz": (60,),
    "t10k-images-idx3-ubyte.gz": (10, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (10,),
}
"""The names of MNIST's files, and the shapes of the small data set in them."""

TRAIN = 40
"""Training images of `small_source`; the other 20 are validation images."""


def small_source(
    root: Path, binarize: str = "none", train: int = TRAIN, mirror: str | None = None
) -> Torchvision:
    """Return the source of the small MNIST, of whose 60 images `train` are training images."""
    return Torchvision("MNIST", binarize, 60_000 - train, str(root), mirror)


def raw_folder(root: Path) -> Path:
    """Return the folder of the four files in a torchvision root."""
    return root / "MNIST" / "raw"


def cache_file(root: Path) -> Path:
    """Return the file in which the images are cached."""
    return root / "MNIST.tensors"


def md5_of(file: Path) -> str:
    """Return the MD5 of a file, in hexadecimal digits."""
    return hashlib.md5(file.read_bytes()).hexdigest()


# Assertions


def assert_is_official(data: DataSet, official: Path) -> None:
    """Assert that a data set has the images and labels of the official files, in three splits."""
    images, labels, test_images, test_labels = (_read(official / name) for name in FILES)
    for split, expected_images, expected_labels in [
        (data.train, images[:TRAIN], labels[:TRAIN]),
        (data.valid, images[TRAIN:], labels[TRAIN:]),
        (data.test, test_images, test_labels),
    ]:
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert torch.equal(split.images, expected_images)
        assert torch.equal(split.labels, expected_labels.long())


def assert_is_one_line(error: pytest.ExceptionInfo[Exception]) -> None:
    """Assert that the message of an error is a single line."""
    assert len(str(error.value).splitlines()) == 1


def _read(file: Path) -> torch.Tensor:
    shape = FILES[file.name]
    values = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)[-math.prod(shape) :]
    return torch.from_numpy(values.reshape(shape[0], -1).squeeze().copy())


# Servers


def closed_address() -> str:
    """Return an address at which no server listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/"


class Handler(SimpleHTTPRequestHandler):
    """Sends the files of a folder.

    Attributes:
        delay: Seconds before an answer.
        requested: A list to which the path of each request is added, or None.
    """

    delay: float = 0.0
    requested: list[str] | None = None

    def do_GET(self) -> None:
        """Answer a request after a delay."""
        time.sleep(self.delay)
        super().do_GET()

    def log_request(self, *_: object) -> None:
        """Record the path of a request."""
        if self.requested is not None:
            self.requested.append(self.path)


class Server:
    """Serves the files of a folder at `url` until `stop`; a context manager."""

    def __init__(self, folder: Path, **attributes: object) -> None:
        """Start the server; `attributes` replace attributes of Handler."""
        handler = type("Handler", (Handler,), attributes)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Stop the server, and wait for its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "Server":
        """Return the server."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()


# Damage


def flip_bit(file: Path) -> None:
    """Change one bit in the middle of a file."""
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


def shorten(file: Path) -> None:
    """Remove the last byte of a file."""
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    """Add a byte to a file."""
    file.write_bytes(file.read_bytes() + b"0")


def make_empty(file: Path) -> None:
    """Remove the content of a file."""
    file.write_bytes(b"")


def replace_by_another_size(file: Path) -> None:
    """Write a cache file with a correct checksum and a body of another size."""
    file.write_bytes(hashlib.sha256(b"another").digest() + b"another")
