"""The errors that end a run, and the hint that follows an unknown name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct, described in one line.

    The commands print the line, without a traceback, and exit with status 2.
    """


class Diverged(Exception):
    """The training objective or the ELBO has become infinite or NaN."""


def close_match(name: str, known_names: Iterable[str]) -> str:
    """Return "; did you mean X?" if a known name is similar, else "; choose from" all of them."""
    known_names = sorted(known_names)
    similar = difflib.get_close_matches(name, known_names, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return f"; choose from {', '.join(known_names)}"
