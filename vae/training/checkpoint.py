"""Checkpoint files, written so that a crash always leaves a complete checkpoint.

A checkpoint is a file of `torch.save` followed by the SHA-256 of its bytes. `torch.load` can read
it, and damage is noticed. The previous checkpoint is kept beside the newest one.
"""

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vae.utils.errors import UserError
from vae.utils.files import write_atomically

log = logging.getLogger(__name__)

Which = Literal["best", "last"]
WHICH: tuple[Which, ...] = get_args(Which)
"""The two models of a run: best by validation ELBO, and last."""

Checkpoint = dict[str, Any]
"""The content of a checkpoint file, with its `digest` and its `file`."""

_FORMAT = 3
_DIGEST_BYTES = hashlib.sha256().digest_size


def path(folder: Path, which: Which) -> Path:
    """Return the file of the newest checkpoint."""
    return folder / f"{which}.pt"


def previous_path(folder: Path, which: Which) -> Path:
    """Return the file of the checkpoint before the newest one."""
    return folder / f"{which}.previous.pt"


def exists(folder: Path, which: Which) -> bool:
    """Return whether a run folder holds a checkpoint of this model."""
    return path(folder, which).exists() or previous_path(folder, which).exists()


def save(folder: Path, which: Which, content: Checkpoint) -> None:
    """Save tensors, numbers and strings by name, and keep the old file as *.previous.pt.

    At every moment, one of the two files is complete.

    Raises:
        OSError: The checkpoint cannot be written; the files are as they were before.
    """
    buffer = io.BytesIO()
    with _without_crc32():
        torch.save({"format": _FORMAT, **content}, buffer)
    body = buffer.getbuffer()
    file = path(folder, which)
    scratch = folder / f".{which}.next.pt"
    write_atomically(scratch, body, hashlib.sha256(body).digest())
    if file.exists():
        os.replace(file, previous_path(folder, which))
    os.replace(scratch, file)


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Let torch.save leave out its checksums: the SHA-256 covers the same bytes."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def load(folder: Path, which: Which) -> Checkpoint:
    """Return the newest checkpoint that is not damaged. Nothing that it contains is executed.

    If the newest file is missing or damaged, the previous one is loaded, with a warning.

    Raises:
        UserError: No undamaged checkpoint exists, or its format is another one.
    """
    for content in versions(folder, which):
        return content
    reason = "its first epoch never ended"
    if which == "best":
        reason += ", or no images were held out to judge it by"
    raise UserError(f"{folder} has no {path(folder, which).name}: {reason}")


def versions(folder: Path, which: Which) -> Iterator[Checkpoint]:
    """Yield the undamaged checkpoints, the newest first.

    Raises:
        UserError: There are checkpoints, and all of them are damaged.
    """
    complaints, found = [], False
    for file in (path(folder, which), previous_path(folder, which)):
        try:
            content = _read(file)
        except FileNotFoundError:
            continue
        except (_DamagedError, OSError) as error:
            complaints.append(f"{file} {error}")
            continue
        if complaints and not found:
            log.warning("%s; going back to %s", complaints[0], file.name)
        found = True
        yield content
    if complaints and not found:
        raise UserError("; ".join(complaints))


class _DamagedError(Exception):
    """A file is not a checkpoint, or not a complete one."""


def _read(file: Path) -> Checkpoint:
    content = file.read_bytes()
    body, checksum = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != checksum:
        raise _DamagedError("is damaged or no checkpoint: its SHA-256 does not match")
    try:
        checkpoint = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on what it refuses to execute
        reason = str(error).partition("\n")[0]
        raise _DamagedError(f"is damaged or no checkpoint: {reason}") from error
    checkpoint_format = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if checkpoint_format != _FORMAT:
        raise UserError(f"{file} has format {checkpoint_format}, and this version reads {_FORMAT}")
    return checkpoint | {"digest": checksum.hex(), "file": file}
