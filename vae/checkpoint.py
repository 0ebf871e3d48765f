"""What a run needs to continue exactly, written so that no crash can lose it.

A checkpoint is a file of torch.save with the SHA-256 of its bytes behind them: torch.load reads
it, and damage does not go unseen. The one before it is kept beside it.
"""

import hashlib
import io
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .files import write_atomically
from .validation import UserError

log = logging.getLogger(__name__)

Which = Literal["best", "last"]
WHICH: tuple[Which, ...] = get_args(Which)

_FORMAT = 2
_DIGEST = hashlib.sha256().digest_size


def path(run: Path, which: Which) -> Path:
    return run / f"{which}.pt"


def previous(run: Path, which: Which) -> Path:
    return run / f"{which}.previous.pt"


def exists(run: Path, which: Which) -> bool:
    return path(run, which).exists() or previous(run, which).exists()


def digest(run: Path, which: Which) -> str:
    """What identifies the checkpoint that `load` would give. Raises UserError."""
    return load(run, which)["digest"]


def steps(runs: Sequence[Path]) -> list[int]:
    """The step from which each of several runs that are kept one after the other goes on.

    Where that was cut short, some are one checkpoint ahead, and have the one before: they go on
    together from there, from 0 where one has none. A run that had left the others, as their
    checkpoints say, is behind. Raises UserError where one would lose more than that, having gone
    on without the others.
    """
    names = [run.name for run in runs]
    kept: list[dict[int, Collection[str]]] = []  # by step, the newest first: who had left
    epochs = []  # whole ones, of the newest
    for run in runs:
        own, epoch = {}, 0
        for content in _versions(run, "last"):
            if not own:
                epoch = content.get("epoch", 0)
                if len(runs) > 1 and content.get("together", names) != names:
                    raise _stands_apart(run, content["step"])
            own[content["step"]] = content.get("left", ())
        kept.append(own)
        epochs.append(epoch)
    left_at = {step: left for own in kept for step, left in own.items()}
    left = left_at[max(left_at)] if left_at else ()
    common = min(
        max(own, default=0) for run, own in zip(runs, kept, strict=True) if run.name not in left
    )
    found = []
    for run, own, epoch in zip(runs, kept, epochs, strict=True):
        step = max((step for step in own if step <= common), default=0)
        behind = step < common or (not common and epoch > 1)  # cut short, all are in their first
        if behind and run.name not in left:
            raise _stands_apart(run, max(own))
        found.append(step)
    return found


def _stands_apart(run: Path, step: int) -> UserError:
    return UserError(f"{run} is at step {step} without the others: they can each go on alone")


def save(run: Path, which: Which, content: dict[str, Any]) -> None:
    """Tensors, numbers and words, by name. Whole or not at all. Raises OSError.

    What was there before stays as the previous one: at every moment one of the two is whole.
    """
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **content}, buffer)
    blob = buffer.getvalue()
    file = path(run, which)
    scratch = run / f".{which}.next.pt"
    write_atomically(scratch, blob + hashlib.sha256(blob).digest())
    if file.exists():
        os.replace(file, previous(run, which))
    os.replace(scratch, file)


def load(run: Path, which: Which, step: int | None = None) -> dict[str, Any]:
    """What `save` wrote last, or last up to a step. Executes nothing that it reads.

    Where the file is missing or damaged, the previous one, with a warning. Raises UserError where
    that is no better, or where the format is another.
    """
    for content in _versions(run, which):
        if step is None or content["step"] <= step:
            return content
    ahead = "" if step is None else f" of step {step} or before"
    why = "its first epoch never ended"
    if which == "best":
        why += ", or no images were held out to judge it by"
    raise UserError(f"{run} has no {path(run, which).name}{ahead}: {why}")


def rewind(run: Path, step: int) -> None:
    """Puts what was kept up to a step in the place of what was kept later, or is damaged.

    What is kept next then leaves it whole, as the one before.
    """
    for which in WHICH:
        for content in _versions(run, which):
            if content["step"] <= step:
                if content["file"] != path(run, which):
                    os.replace(content["file"], path(run, which))
                break


def _versions(run: Path, which: Which) -> Iterator[dict[str, Any]]:
    """The checkpoints that are there, the newest first. Raises UserError where none is whole."""
    complaints, whole = [], False
    for file in (path(run, which), previous(run, which)):
        try:
            content = _read(file)
        except FileNotFoundError:
            continue
        except (_Damaged, OSError) as error:
            complaints.append(f"{file} {error}")
            continue
        if complaints and not whole:
            log.warning("%s; going back to %s", complaints[0], file.name)
        whole = True
        yield content
    if complaints and not whole:
        raise UserError("; ".join(complaints))


class _Damaged(Exception):
    pass


def _read(file: Path) -> dict[str, Any]:
    blob = file.read_bytes()
    body, digest = blob[:-_DIGEST], blob[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise _Damaged("is damaged or no checkpoint: its SHA-256 does not match")
    try:
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what it likes on what it refuses to execute
        reason = str(error).partition("\n")[0]
        raise _Damaged(f"is damaged or no checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{file} is of another format than {_FORMAT}")
    return content | {"digest": digest.hex(), "file": file}
