"""Files that are whole or not there."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside `path`, syncs to the disk and renames: a crash leaves the old file or the new.

    Raises OSError, and then leaves nothing behind.
    """
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)  # mkstemp's 0o600 would hide a shared run from its readers
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
