"""The errors that end a run, and what their messages have in common."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct, described in one line.

    The commands print the line, without a traceback, and exit with status 2.
    """


class Diverged(Exception):
    """The training objective or the ELBO has become infinite or NaN."""


class NotFitted(Exception):
    """With `+debug=overfit`: the model has not fitted the batch."""


def close_match(name: str, known_names: Iterable[str]) -> str:
    """Return "; did you mean X?" if a known name is similar, else "; choose from" all of them."""
    known_names = sorted(known_names)
    similar = difflib.get_close_matches(name, known_names, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return f"; choose from {', '.join(known_names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without a colon at its end."""
    return str(error).partition("\n")[0].rstrip(":")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be allocated, on the CPU or on a GPU.

    Torch raises plain RuntimeErrors for most of them.
    """
    memory_texts = (
        "allocate memory",
        "out of memory",
        "Storage size calculation overflowed",
        "bad_alloc",
    )
    is_torch_error = isinstance(error, RuntimeError) and any(t in str(error) for t in memory_texts)
    return isinstance(error, MemoryError) or is_torch_error
