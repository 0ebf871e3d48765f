"""Build the object that a group of a configuration describes.

An error is one line that names the key, the value and what is allowed.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from torch import nn

from vae.utils.errors import UserError, close_match, first_line, is_out_of_memory

Built = TypeVar("Built")


def build(values: dict[str, Any], key: str, expected: type[Built], **extra: object) -> Built:
    """Build the object that a resolved configuration describes at `key`.

    Args:
        values: The whole configuration.
        key: The key of a group, such as "model".
        expected: The type that the object must have.
        **extra: Further arguments of the constructor.

    Raises:
        UserError: The object cannot be built, or is of another type.
        RuntimeError: There is not enough memory for it.
    """
    config = OmegaConf.create(values)
    try:
        built = hydra.utils.instantiate(config[key], _convert_="all", **extra)
    except InstantiationException as error:
        if error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise error.__cause__ from error
        raise UserError(_explain(error, config)) from error
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    if not isinstance(built, expected):
        target = config[key].get("_target_")
        raise UserError(f"{key}._target_={target} is not a subclass of {expected.__name__}")
    return built


def describe_error(
    error: ValidationError, prefix: str, target: Any, allowed: Iterable[str]
) -> str:
    """Return the first thing that pydantic found wrong, in one line.

    Args:
        error: What pydantic raised.
        prefix: The key of the group with a dot, such as "estimator."; "" at the top level.
        target: The class that was to be built.
        allowed: The names of its arguments.
    """
    allowed = list(allowed)
    first = error.errors()[0]
    location = first["loc"]
    # A location also names the branches of a union, which are not a part of the key.
    names = [str(part) for part in location if str(part) in allowed or isinstance(part, int)]
    key = prefix + ".".join(names or map(str, location[:1]))
    match first["type"]:
        case "unexpected_keyword_argument":
            known = [name for name in allowed if name != location[0]]
            suggestion = close_match(str(location[0]), known)
            return f"{key}: {target.__name__} has no such key{suggestion}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{key} is missing"
        case "value_error":
            return f"{key.rstrip('.')}: {first['ctx']['error']}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}={_text_of(first['input'])}: {message}"


def _explain(error: InstantiationException, config: DictConfig) -> str:
    """Return one line for an error of Hydra, whose message has several lines."""
    match = re.search(r"full_key: (\S+)", str(error))
    key = match.group(1) if match else ""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        target = hydra.utils.get_object(OmegaConf.select(config, f"{key}._target_"))
        return describe_error(cause, f"{key}.", target, inspect.signature(target).parameters)
    return f"{key}: {first_line(cause or error)}"


def _text_of(value: object) -> str:
    """Return the text of a value; for a module, the name of its class."""
    return type(value).__name__ if isinstance(value, nn.Module) else str(value)
