"""Run a command whose standard streams may be closed, full, or unable to encode a character."""

import codecs
import io
import os
import shutil
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO


class OutputClosed(Exception):
    """The results could not be printed: the pipe is closed, or the disk is full."""


def run_command(program: str, main: Callable[[], int]) -> NoReturn:
    """Run the main function of a command with usable standard streams, and end the process.

    - A character that the encoding of a stream lacks is replaced: ± becomes +-, and any other
      character becomes its escape sequence. The bytes of a file name stay as they are.
    - If stdout is closed, printing to it raises an OSError. If stderr is closed, messages are
      lost. In both cases no other file gets the file descriptor of the stream.
    - What is left in the buffer of stdout is flushed. If that fails, it is reported.

    Args:
        program: The name with which error messages begin.
        main: Returns the exit status, or raises SystemExit.

    Raises:
        SystemExit: Always. The status is that of `main`, or 1 if `main` succeeded and its output
            could not be printed.
    """
    _make_streams_usable()
    status: str | int | None
    try:
        status = main()
    except SystemExit as end:  # from argparse or Hydra, after --help
        status = end.code
    finally:
        error = _flush(sys.stdout)
        _flush(sys.stderr)
    if error and not status:
        print_error(program, f"the results could not be printed: {error.strerror}")
        status = 1
    sys.exit(status)


def print_or_raise(text: str) -> None:
    """Print a text and flush it.

    Raises:
        OutputClosed: The text could not be written.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        _redirect_to_null(sys.stdout)
        raise OutputClosed(f"the results could not be printed: {error.strerror}") from error


def terminal_width() -> int | None:
    """Return how many characters fit in a line of stdout.

    Returns:
        The value of the environment variable COLUMNS if it is set, and otherwise the width of the
        terminal. None if stdout is not a terminal, where lines may have any length.
    """
    return shutil.get_terminal_size(fallback=(0, 0)).columns or None


def print_error(program: str, message: object) -> None:
    """Print an error message to stderr as one line that begins with the name of the program."""
    print_to_stderr(f"{program}: {message}")


def print_to_stderr(text: str) -> None:
    """Print a text to stderr. If that fails, this text and all later ones are lost."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _redirect_to_null(sys.stderr)


def _make_streams_usable() -> None:
    # The interpreter sets a stream to None if its file descriptor is closed. Writing to a
    # descriptor that is open for reading is an error, as writing to a closed one is.
    if sys.stdout is None:
        sys.stdout = _open_null(1, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _open_null(2, os.O_WRONLY)
    codecs.register_error("vae.readable", _replace_character)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vae.readable")


def _open_null(descriptor: int, flags: int) -> TextIO:
    """Return a text stream on a file descriptor, which is opened on /dev/null."""
    _open_null_as(descriptor, flags)
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def _open_null_as(descriptor: int, flags: int) -> None:
    null = os.open(os.devnull, flags)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def _redirect_to_null(stream: TextIO) -> None:
    """Discard what is in the buffer of a stream, and everything that is written to it later.

    Otherwise the interpreter would fail at shutdown, when it flushes the stream.
    """
    _open_null_as(stream.fileno(), os.O_WRONLY)


def _flush(stream: TextIO) -> OSError | None:
    """Flush a stream. If that fails, redirect the stream to /dev/null and return the error."""
    try:
        stream.flush()
    except OSError as error:
        _redirect_to_null(stream)
        return error
    return None


def _replace_character(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace the first character that cannot be encoded, as an error handler of `codecs`."""
    assert isinstance(error, UnicodeEncodeError)
    character, end = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that could not be decoded
        return character.encode("utf-8", "surrogateescape"), end
    if character == "±":
        return "+-", end
    return character.encode("ascii", "backslashreplace"), end
