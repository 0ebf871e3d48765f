"""What a door prints when its work is done, to a reader who may be gone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Unread(Exception):
    """It could not be printed: the pipe is closed, or the disk behind it full."""


def say(text: str) -> None:
    """Prints at once. Raises Unread."""
    try:
        print(text, flush=True)
    except OSError as error:
        _give_up()
        raise Unread(f"what was to be printed: {error.strerror}") from error


@contextmanager
def settled() -> Iterator[None]:
    """On leaving, what nobody reads is dropped: the interpreter would complain of it later."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            _give_up()


def _give_up() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
