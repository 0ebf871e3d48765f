"""What a door prints when its work is done, to a reader who may be gone."""

import os
import sys


class Unread(Exception):
    """It could not be printed: the pipe is closed, or the disk behind it full."""


def say(text: str) -> None:
    """Prints at once. Raises Unread."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at the end
        raise Unread(f"what was to be printed: {error.strerror}") from error
