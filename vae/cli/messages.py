"""Errors of Hydra, OmegaConf and launchers, each as one readable line with an exit status.

Exit status 2 means that the user can correct the error, and 1 that something else failed. This
module knows texts and module names of Hydra 1.3, hydra-optuna-sweeper 1.3, joblib and submitit; a
test covers each of them. It imports no torch, so that errors appear fast.
"""

import re
import shlex
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from vae.cli.overrides import is_sweep, override
from vae.config.describe import OPTIONS
from vae.utils.errors import close_match, first_line

# The value of an override that is a number, a list or null; in a sweep, one of its values.
_NOT_A_NAME = re.compile(r"[=,]([-+.\d\[]|(null|true|false|nan|inf)\b)")
_UNKNOWN_KEY = re.compile(r"Could not (?:override|append) '([^'@]+)[^']*'\.?\s*(.*)")
_LAUNCHING = ("hydra.launcher", "hydra.sweeper", "hydra/launcher", "hydra/sweeper")
_LAUNCHING_MODULES = ("joblib", "submitit", "hydra_plugins", "hydra._internal.core_plugins")
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
        return Failure(2, _swept_group(error, arguments) or one_line(error))
    settings = [word for word in arguments if word.lstrip("+").startswith(_LAUNCHING)]
    is_of_launcher = _raised_in(error).startswith(_LAUNCHING_MODULES)
    if isinstance(error, RuntimeError) and is_of_launcher:
        message, _, _ = text.partition("---")  # the rest is the output of the job
        return Failure(1, " ".join(message.split()).removesuffix(" Error stream produced:"))
    if settings and is_of_launcher:
        reason = text or type(error).__name__
        return Failure(2, f"{', '.join(settings)}: {' '.join(reason.split())}")
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
    return None


def one_line(error: Exception) -> str:
    """Return what is wrong with an override or a yaml file, and the most similar valid name."""
    message = str(error)
    if isinstance(error, OverrideParseException):
        return _parse_error(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if option in _EXTRAS:
            return f"{group}={option} is in an extra: pip install -e '.[{_EXTRAS[option]}]'"
        if error.options:
            suggestion = close_match(option, error.options)
            return f"{group}={option}: there is no such option{suggestion}"
    unknown = _UNKNOWN_KEY.match(message)
    if unknown:
        key, reason = unknown.groups()
        siblings = _sibling_keys(error.__cause__)
        if siblings:
            return f"{key}: there is no such key{close_match(key.rpartition('.')[2], siblings)}"
        if reason.startswith("No match in the defaults list"):
            return f"{key}: the chosen options have no such group"
        if reason.startswith("To append to your config"):
            return _no_group(key)
        return f"{key}: {reason}"
    ambiguous = re.match(r"Ambiguous value for argument '(.*?)'\n", message)
    if ambiguous:
        return f"{ambiguous.group(1)}: several values need -m, and a list needs brackets"
    if message.startswith("Error merging override") and error.__cause__ is not None:
        return f"{message.removeprefix('Error merging override ')}: {first_line(error.__cause__)}"
    resolving = re.match(r"\w+ raised while resolving interpolation: (.*)", message)
    return " ".join((resolving.group(1) if resolving else message).split())


def is_group_value_error(error: Exception) -> bool:
    """Return whether Hydra failed because a group has a number, a list or null for its option."""
    composing = _raised_in(error) == "hydra._internal.defaults_list"
    return "Config group override" in str(error) or composing


def _parse_error(error: OverrideParseException) -> str:
    """Return why an override cannot be parsed, and how to quote its value."""
    key, equals, value = error.override.partition("=")
    reason = str(error).partition("\n")[0]
    if not equals:
        return f"{error.override}: an override needs a value, as in {key}=VALUE"
    return f"{error.override}: {reason}; as text: {shlex.quote(override(key, value))}"


def _swept_group(error: Exception, arguments: Sequence[str]) -> str | None:
    """Explain an unknown key of a group for which a sweep has several options.

    Hydra composes the sweep without these options at first, and so with the default one.
    """
    unknown = _UNKNOWN_KEY.match(str(error))
    if unknown is None or not is_sweep(arguments):
        return None
    key = unknown.group(1)
    word = next((word for word in arguments if word.startswith(f"{key}=")), None)
    groups = [word.partition("=")[0] for word in arguments if _is_group(word) and "," in word]
    for group in groups:
        if word is not None and key.startswith(f"{group}."):
            return f"{key}: {group} is varied, and its default has no such key; write ++{word}"
    return None


def _no_group(key: str) -> str:
    """Explain an override of a key below a value that is not a group of keys."""
    parent = key.rpartition(".")[0]
    folder = OPTIONS / parent.replace(".", "/")
    if folder.is_dir():
        option = parent.replace(".", "/")
        schedules = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        return f"{key}: {parent} is a number; choose a schedule first: {option}={schedules}"
    return f"{key}: {parent} is not a group of keys"


def _raised_in(error: Exception) -> str:
    """Return the name of the module that raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"]


def _sibling_keys(error: BaseException | None) -> list[str]:
    """Return the keys beside the one that an OmegaConf error is about."""
    parent = error.parent_node if isinstance(error, OmegaConfBaseException) else None
    return [] if parent is None else [str(key) for key in parent if key != "hydra"]


def _is_group(word: str) -> bool:
    return (OPTIONS / re.split("[@=]", word.lstrip("+~"))[0]).is_dir()
