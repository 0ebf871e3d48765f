"""Errors of Hydra, OmegaConf and launchers, each as one readable line with an exit status.

Exit status 2 means that the user can correct the error, and 1 that something else failed. This
module knows texts and module names of Hydra 1.3, hydra-optuna-sweeper 1.3, joblib and submitit; a
test covers each of them. It imports no torch, so that errors appear fast.
"""

import re
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from vae.config.describe import OPTIONS
from vae.utils.errors import close_match

# The value of an override that is a number, a list or null; in a sweep, one of its values.
_NOT_A_NAME = re.compile(r"[=,]([-+.\d\[]|(null|true|false|nan|inf)\b)")
_EXTRAS = {"submitit_local": "cluster", "submitit_slurm": "cluster", "optuna": "search"}


class Failure(NamedTuple):
    """An exit status and the line that explains it."""

    status: int
    message: str


def describe_hydra_error(error: Exception, arguments: Sequence[str]) -> Failure | None:
    """Return how to report an error of Hydra or of a launcher; None for any other error.

    Args:
        error: What was raised while Hydra composed configurations or ran jobs.
        arguments: The arguments of the command line.
    """
    text = str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return Failure(2, one_line(error))
    if isinstance(error, ValueError | TypeError):
        if text.startswith("No trials are completed"):
            return Failure(1, "no run of this search has a score")
        if text.startswith("Only one of --run"):
            return Failure(2, text)
        if is_group_value_error(error):
            words = [word for word in arguments if _is_group(word) and _NOT_A_NAME.search(word)]
            example = "a group takes the name of an option, as in estimator=reinmax"
            return Failure(2, f"{', '.join(words)}: {example}")
    if isinstance(error, OSError):  # from creating the folder of a run
        return Failure(1, text)
    if isinstance(error, RuntimeError):
        message = _launcher_error(error)
        return None if message is None else Failure(1, message)
    return None


def one_line(error: Exception) -> str:
    """Return what is wrong with an override or a yaml file, and the most similar valid name."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if option in _EXTRAS:
            return f"{group}={option} is in an extra: pip install -e '.[{_EXTRAS[option]}]'"
        if error.options:
            suggestion = close_match(option, error.options)
            return f"{group}={option}: there is no such option{suggestion}"
    unknown = re.match(r"Could not (?:override|append) '([^'@]+)[^']*'\.?\s*(.*)", message)
    if unknown:
        key, reason = unknown.groups()
        siblings = _sibling_keys(error.__cause__)
        if siblings:
            return f"{key}: there is no such key{close_match(key.rpartition('.')[2], siblings)}"
        if reason.startswith("No match in the defaults list"):
            return f"{key}: the chosen options have no such group"
        return f"{key}: {reason}"
    resolving = re.match(r"\w+ raised while resolving interpolation: (.*)", message)
    return " ".join((resolving.group(1) if resolving else message).split())


def is_group_value_error(error: Exception) -> bool:
    """Return whether Hydra failed because a group has a number, a list or null for its option."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    composing = frame.f_globals["__name__"] == "hydra._internal.defaults_list"
    return "Config group override" in str(error) or composing


def _launcher_error(error: RuntimeError) -> str | None:
    """Return a launcher's error as one line: no such cluster, or a job whose process died."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals["__name__"].partition(".")[0] not in ("joblib", "submitit"):
        return None
    message, _, _ = str(error).partition("---")  # the rest is the output of the job
    return " ".join(message.split()).removesuffix(" Error stream produced:")


def _sibling_keys(error: BaseException | None) -> list[str]:
    """Return the keys beside the one that an OmegaConf error is about."""
    parent = error.parent_node if isinstance(error, OmegaConfBaseException) else None
    return [] if parent is None else [str(key) for key in parent if key != "hydra"]


def _is_group(word: str) -> bool:
    return (OPTIONS / re.split("[@=]", word.lstrip("+~"))[0]).is_dir()
