"""Reading and truncating metrics.jsonl: one line per epoch, each a JSON object."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from vae.runs.folder import METRICS
from vae.utils.errors import UserError
from vae.utils.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd


def read_metrics(folder: Path) -> "pd.DataFrame":
    """Return the metrics of a run, one row per epoch; an empty table if there are none yet.

    A last line that is still being written is left out.

    Raises:
        UserError: The file is damaged.
    """
    import pandas as pd  # imported here because it takes half a second

    file = folder / METRICS
    try:
        *lines, _ = file.read_bytes().split(b"\n")
        table = pd.DataFrame([json.loads(line) for line in lines], dtype=float)
    except FileNotFoundError:
        return pd.DataFrame()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    missing = [name for name in ("step", "objective/loss", "elbo/train") if name not in table]
    if lines and missing:
        raise UserError(f"{file} cannot be read: the key '{missing[0]}' is missing")
    return table


def truncate(metrics: Path, step: int) -> None:
    """Remove lines of steps after `step`, and lines that were only partly written."""
    try:
        lines = metrics.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_atomically(metrics, b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # only partly written
