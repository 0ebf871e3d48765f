"""Downloading the files of a data set: complete, checked, and by one process at a time."""

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

from vae.utils.errors import UserError

_TIMEOUT = 6.0  # seconds to wait for the answer of a mirror


@contextmanager
def exclusive_access(folder: Path) -> Iterator[None]:
    """Create a folder for downloads, and wait until no other process downloads into it.

    On exit, folders that this call has created are removed again if nothing was downloaded.

    Raises:
        UserError: The folder cannot be written.
    """
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
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
        if created and {file.name for file in folder.iterdir()} <= {".lock"}:
            with suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)
                for parent in created:
                    parent.rmdir()


def download(name: str, md5: str, mirrors: list[str], folder: Path) -> None:
    """Download one file from the first mirror that has it undamaged.

    The file appears in the folder complete and checked, or not at all. A mirror that does not
    answer costs a few seconds.

    Raises:
        UserError: No mirror has the file, and the message holds the answer of each mirror; or the
            folder cannot be written.
    """
    from torchvision.datasets.utils import download_url

    answers = []
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # torchvision passes no timeout
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
    """Return the bytes of a gzipped IDX file of uint8, flat and without the header.

    Raises:
        UserError: The file cannot be read, or has a different MD5.
    """
    try:
        packed = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{file} is damaged: its MD5 is {found} and should be {md5}; delete it to download "
            "it again"
        )
    content = bytearray(gzip.decompress(packed))
    header = 4 + 4 * content[3]  # the magic number's last byte is the number of dimensions
    return torch.frombuffer(content, dtype=torch.uint8, offset=header)
