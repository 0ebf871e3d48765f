"""Files that are whole or not there."""

import json
import math
import os
import secrets
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside `path`, syncs to the disk and renames: a crash leaves the old file or the new.

    Raises OSError, and then leaves nothing behind.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)  # gone, where a signal came after the renaming
        raise


def write_json(path: Path, content: dict[str, object]) -> None:
    """With null for what is no number, which JSON has no word for. Raises OSError."""
    text = json.dumps(finite(content), indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def finite(content: Any) -> Any:
    """The same with None for each number that is none."""
    match content:
        case dict():
            return {key: finite(held) for key, held in content.items()}
        case list() | tuple():
            return [finite(held) for held in content]
        case float():
            return content if math.isfinite(content) else None
    return content
