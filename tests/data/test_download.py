"""Downloads: mirrors that fail or send damaged files, concurrent processes, error messages.

The files are small ones in the format of MNIST, on a server that the tests start.
"""

import os
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.data.small_mnist import (
    CPU,
    FILES,
    Handler,
    Server,
    assert_is_official,
    assert_is_one_line,
    cache_file,
    closed_address,
    flip_bit,
    md5_of,
    raw_folder,
    small_source,
)
from vae.data.download import read_idx
from vae.utils.errors import UserError


@pytest.fixture
def corrupt(official, tmp_path) -> Path:
    """A copy of the official files, one of which has a changed bit."""
    folder = tmp_path / "corrupt"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((official / name).read_bytes())
    flip_bit(folder / next(iter(FILES)))
    return folder


# What is downloaded


def test_missing_files_are_downloaded(official, server, tmp_path):
    root = tmp_path / "new" / "root"
    assert_is_official(small_source(root).load(CPU), official)
    for name in FILES:
        assert md5_of(raw_folder(root) / name) == md5_of(official / name)


def test_files_that_exist_are_not_downloaded(official, root):
    assert_is_official(small_source(root).load(CPU), official)


def test_only_missing_files_are_downloaded(official, server, root):
    existing, missing = list(FILES)[:2]
    before = (raw_folder(root) / existing).stat().st_mtime_ns
    (raw_folder(root) / missing).unlink()
    assert_is_official(small_source(root).load(CPU), official)
    assert (raw_folder(root) / existing).stat().st_mtime_ns == before


def test_concurrent_loads_download_each_file_once(official, small_mnist, tmp_path):
    data_sets, requested = [], []

    def load():
        torch.set_default_dtype(torch.float64)
        data_sets.append(small_source(tmp_path / "two", mirror=server.url).load(CPU))

    with Server(official, delay=0.1, requested=requested) as server:
        small_source(tmp_path / "one", mirror=server.url).load(CPU)
        requests_of_one = len(requested)
        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(data_sets) == 2
    for data in data_sets:
        assert_is_official(data, official)
    assert len(requested) == 2 * requests_of_one
    assert set(os.listdir(raw_folder(tmp_path / "two"))) - {".lock"} == set(FILES)
    assert sorted(os.listdir(tmp_path / "two")) == ["MNIST", "MNIST.tensors"]


@pytest.mark.parametrize("timeout", [None, 123.0])
def test_download_restores_the_default_timeout(server, tmp_path, timeout):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        small_source(tmp_path).load(CPU)
        assert socket.getdefaulttimeout() == timeout
    finally:
        socket.setdefaulttimeout(before)


# Mirrors


@pytest.mark.parametrize("slash", ["", "/"])
def test_configured_mirror_is_tried_first(official, small_mnist, tmp_path, monkeypatch, slash):
    requested, requested_of_default = [], []
    with (
        Server(official, requested=requested) as server,
        Server(official, requested=requested_of_default) as default,
    ):
        monkeypatch.setattr(small_mnist, "mirrors", [default.url])
        source = small_source(tmp_path, mirror=server.url.rstrip("/") + slash)
        assert_is_official(source.load(CPU), official)
    assert set(requested) == {f"/{name}" for name in FILES}
    assert requested_of_default == []


def test_next_mirror_is_tried_if_one_does_not_answer(official, server, tmp_path):
    source = small_source(tmp_path, mirror=closed_address())
    assert_is_official(source.load(CPU), official)


def test_next_mirror_is_tried_if_one_has_a_corrupt_file(corrupt, official, server, tmp_path):
    with Server(corrupt) as corrupt_server:
        source = small_source(tmp_path / "root", mirror=corrupt_server.url)
        assert_is_official(source.load(CPU), official)


class Truncating(Handler):
    """Promises a whole file, and sends half of it."""

    def do_GET(self) -> None:
        body = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])


class Chunking(Handler):
    """Stops in the middle of a chunk."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ffff\r\nnot so long")
        self.close_connection = True


class NotHttp(Handler):
    """Answers in another protocol."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"220 mail.example.org ESMTP\r\n")


@pytest.mark.parametrize("handler", [Truncating, Chunking, NotHttp])
def test_next_mirror_is_tried_if_one_breaks_the_protocol(handler, official, server, tmp_path):
    with Server(official, **vars(handler)) as broken_server:
        source = small_source(tmp_path, mirror=broken_server.url)
        assert_is_official(source.load(CPU), official)


# Errors


def test_corrupt_download_is_refused_and_leaves_no_file(corrupt, small_mnist, tmp_path):
    with Server(corrupt) as server, pytest.raises(UserError) as error:
        small_source(tmp_path / "root", mirror=server.url).load(CPU)
    assert_is_one_line(error)
    assert not [path for path in (tmp_path / "root").rglob("[!.]*") if not path.is_dir()]


@pytest.mark.parametrize("mirror", ["no address", "http://127.0.0.1:port/", "http://[::1/", "/"])
def test_invalid_address_of_a_mirror_is_a_user_error(mirror, small_mnist, tmp_path):
    with pytest.raises(UserError) as error:
        small_source(tmp_path, mirror=mirror).load(CPU)
    assert_is_one_line(error)


def test_unreachable_mirrors_are_one_line_that_says_what_to_do(small_mnist, tmp_path):
    start = time.perf_counter()
    with pytest.raises(UserError) as error:
        small_source(tmp_path).load(CPU)
    assert time.perf_counter() - start < 20
    assert_is_one_line(error)
    for words in (
        str(raw_folder(tmp_path)),
        "data.root=",
        "data=mnist_5k",
        small_mnist.mirrors[0],
    ):
        assert words in str(error.value)


def test_failed_download_writes_no_cache(small_mnist, tmp_path):
    with pytest.raises(UserError):
        small_source(tmp_path).load(CPU)
    assert not cache_file(tmp_path).exists()


def test_folder_that_cannot_be_created_is_a_user_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written") as error:
        small_source(tmp_path / "file").load(CPU)
    assert_is_one_line(error)


def test_missing_idx_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {tmp_path}"):
        read_idx(tmp_path / "missing.gz", "0" * 32)
