"""A node of a configuration becomes an object, and what is wrong with it one line.

That line is a UserError's, and names the key, the value and what is allowed.
"""

import inspect
import re
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from torch import nn

from .errors import close_match
from .validation import UserError


def build(config: DictConfig, key: str, kind: type = object, **extra: object) -> Any:
    """Instantiates the node at `key`, with extra arguments. Raises UserError."""
    try:
        built = hydra.utils.instantiate(config[key], _convert_="all", **extra)
    except InstantiationException as error:
        raise UserError(_explain(error, config)) from error
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    if not isinstance(built, kind):
        raise UserError(f"{key}._target_={config[key].get('_target_')} is no {kind.__name__}")
    return built


def _explain(error: InstantiationException, config: DictConfig) -> str:
    """Hydra's several lines as one; the full key of the node stands in them."""
    key = re.search(r"full_key: (\S+)", str(error))
    key = key.group(1) if key else ""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        target = hydra.utils.get_object(OmegaConf.select(config, f"{key}._target_"))
        return describe(cause, f"{key}.", target, list(inspect.signature(target).parameters))
    return f"{key}: {first_line(cause or error)}"


def describe(error: ValidationError, prefix: str, target: type, allowed: list[str]) -> str:
    """The first thing that pydantic found, in one line."""
    first = error.errors()[0]
    # A union's branches are not part of the key.
    names = [str(part) for part in first["loc"] if str(part) in allowed or isinstance(part, int)]
    key = prefix + ".".join(names or map(str, first["loc"][:1]))
    match first["type"]:
        case "unexpected_keyword_argument":
            known = [name for name in allowed if name != first["loc"][0]]
            return f"{key}: {target.__name__} has no such key{close_match(first['loc'][0], known)}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{key} is missing"
        case "value_error":
            return f"{key.rstrip('.')}: {first['ctx']['error']}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}={_word(first['input'])}: {message}"


def _word(given: object) -> str:
    """A value of a configuration as it stands there, and what was built of one by its class."""
    return type(given).__name__ if isinstance(given, nn.Module) else str(given)


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(":")
