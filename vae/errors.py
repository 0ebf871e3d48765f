"""Hydra's and OmegaConf's complaints in one line each. Imports no torch: errors come fast."""

import difflib
import re
import traceback
from collections.abc import Iterable

from hydra.errors import MissingConfigException
from omegaconf.errors import OmegaConfBaseException

_EXTRAS = {"submitit_local": "cluster", "submitit_slurm": "cluster", "optuna": "search"}


def one_line(error: Exception) -> str:
    """What is wrong with the command line or a yaml, and the nearest thing that would be right."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if option in _EXTRAS:
            return f"{group}={option} is in an extra: pip install -e '.[{_EXTRAS[option]}]'"
        if error.options:
            near = close_match(option, error.options)
            return f"{group}={option}: there is no such option{near}"
    unknown = re.match(r"Could not (?:override|append) '([^'@]+)[^']*'\.?\s*(.*)", message)
    if unknown:
        key, reason = unknown.groups()
        siblings = _siblings(error.__cause__)
        if siblings:
            return f"{key}: there is no such key{close_match(key.rpartition('.')[2], siblings)}"
        if reason.startswith("No match in the defaults list"):
            return f"{key}: nothing that was chosen has such a group"
        return f"{key}: {reason}"
    resolving = re.match(r"\w+ raised while resolving interpolation: (.*)", message)
    return " ".join((resolving.group(1) if resolving else message).split())


def is_of_groups(error: Exception) -> bool:
    """Whether Hydra stumbled over a group that was given a number, or a list of some."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    composing = frame.f_globals["__name__"] == "hydra._internal.defaults_list"
    return "Config group override" in str(error) or composing


def close_match(given: str, known: Iterable[str]) -> str:
    """The nearest known word, as a question, or all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _siblings(error: BaseException | None) -> list[str]:
    """The keys beside the one that an OmegaConf error is about."""
    parent = error.parent_node if isinstance(error, OmegaConfBaseException) else None
    return [] if parent is None else [str(key) for key in parent if key != "hydra"]
