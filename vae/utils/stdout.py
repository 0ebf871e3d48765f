"""Print errors, and results to a standard output that may be a closed pipe or a full disk."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class OutputClosed(Exception):
    """The results could not be printed: the pipe is closed, or the disk is full."""


def print_or_raise(text: str) -> None:
    """Print a text and flush it.

    Raises:
        OutputClosed: The text could not be written.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        _redirect_to_null()
        raise OutputClosed(f"the results could not be printed: {error.strerror}") from error


def print_error(program: str, message: object) -> None:
    """Print an error message to stderr as one line that begins with the name of the program."""
    print(f"{program}: {message}", file=sys.stderr)


@contextmanager
def flush_quietly() -> Iterator[None]:
    """Flush stdout on exit, and ignore the error if that fails.

    If the reader has closed the pipe, stdout is redirected to /dev/null. Otherwise the
    interpreter would print an error at shutdown.
    """
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            _redirect_to_null()


def _redirect_to_null() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
