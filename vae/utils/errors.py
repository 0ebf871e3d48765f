"""The errors that end a run, and the suggestion that goes with an unknown name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct, described in one line.

    The commands print the line, without a traceback, and exit with status 2.
    """


class Diverged(Exception):
    """The training objective, or the ELBO, is not finite any more."""


def close_match(name: str, known_names: Iterable[str]) -> str:
    """Return "; did you mean X?" if a known name is similar, else a list of all known names."""
    known_names = sorted(known_names)
    similar = difflib.get_close_matches(name, known_names, n=1)
    if similar:
        return f"; did you mean {similar[0]}?"
    return f"; there are {', '.join(known_names)}"
