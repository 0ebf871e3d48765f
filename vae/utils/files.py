"""Writing files so that a crash leaves either the old content or the new content."""

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a temporary file, synchronise it with the disk, and rename it to `path`.

    A crash leaves the old file or the new file, never a part of one.

    Args:
        path: The file.
        *parts: The content, in order.

    Raises:
        OSError: The file cannot be written. No temporary file is left behind.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # minus the umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)  # missing_ok: the rename may already have happened
        raise


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file, with null for every number that is not finite.

    Raises:
        OSError: The file cannot be written.
    """
    text = json.dumps(replace_nonfinite(content), indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def replace_nonfinite(content: Any) -> Any:
    """Return the same nested content with None for NaN and infinities, which JSON lacks."""
    match content:
        case dict():
            return {key: replace_nonfinite(value) for key, value in content.items()}
        case list() | tuple():
            return [replace_nonfinite(value) for value in content]
        case float():
            return content if math.isfinite(content) else None
    return content
