"""What is kept of a run: its weights, written so that no crash can lose them."""

import io
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .files import write_atomically
from .objective import TrainingObjective
from .validation import UserError

Which = Literal["best", "last"]
WHICH: tuple[Which, ...] = get_args(Which)

_FORMAT = 1


def path(run: Path, which: Which) -> Path:
    return run / f"{which}.pt"


def save(run: Path, which: Which, objective: TrainingObjective, epoch: int, step: int) -> None:
    """Model and estimator, and where in training they stand. Whole or not at all."""
    buffer = io.BytesIO()
    content = {"format": _FORMAT, "epoch": epoch, "step": step}
    torch.save(content | {"objective": objective.state_dict()}, buffer)
    write_atomically(path(run, which), buffer.getvalue())


def load(run: Path, which: Which) -> dict[str, Any]:
    """What `save` wrote: format, epoch, step and objective. Executes nothing that it reads.

    Raises UserError where the file is missing, damaged or of another format.
    """
    file = path(run, which)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{run} has no {file.name}: its first epoch never ended") from error
    except Exception as error:  # torch.load raises what it likes on bytes that are not its own
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file} is damaged or no checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{file} is of another format than {_FORMAT}")
    return content
