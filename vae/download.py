"""Files of a data set on the disk: fetched whole, checked, one process at a time."""

import gzip
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from .validation import UserError

_TIMEOUT = 6.0  # seconds of silence from a mirror


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits for every other process that fetches into a folder. Raises UserError.

    Where nothing was fetched, the folders that were made for it go again.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
        if made and {file.name for file in folder.iterdir()} <= {".lock"}:
            with suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)
                for each in made:
                    each.rmdir()


def download(name: str, md5: str, mirrors: list[str], folder: Path) -> None:
    """Fetches one file into `folder`, from the first mirror that has it whole.

    A file appears there complete and checked, or not at all. Raises UserError with every mirror's
    answer, after a few seconds of silence each.
    """
    from torchvision.datasets.utils import download_url

    answers = []
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for mirror in mirrors:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                try:
                    download_url(f"{mirror.rstrip('/')}/{name}", scratch, name, md5)
                except (OSError, RuntimeError, ValueError, HTTPException) as error:
                    answers.append(f"{mirror}: {str(error) or type(error).__name__}")
                    continue
                os.replace(Path(scratch) / name, folder / name)
                return
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    raise UserError("; ".join(answers))


def read_idx(file: Path, md5: str) -> Tensor:
    """The bytes of a gzipped IDX file of uint8, flat and without their header.

    Raises UserError where the file's MD5 is another.
    """
    try:
        packed = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{file} is damaged: its MD5 is {found} and should be {md5}; delete it to download "
            "it anew"
        )
    data = bytearray(gzip.decompress(packed))
    header = 4 + 4 * data[3]  # the magic number's last byte is the number of dimensions
    return torch.frombuffer(data, dtype=torch.uint8, offset=header)
