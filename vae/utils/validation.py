"""Argument checks: the types that constructors accept, verified by pydantic.

The checks are strict. A string never becomes a number and a bool never becomes an integer, so a
slip on the command line is an error and not a different experiment. Infinite and NaN numbers are
refused.
"""

from typing import Annotated, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(
    strict=True,
    allow_inf_nan=False,
    arbitrary_types_allowed=True,
    validate_default=True,
    extra="forbid",
)

_Class = TypeVar("_Class")

validated = validate_call(config=_STRICT)
"""Check the arguments of a function, or of the constructor of an nn.Module, at every call."""


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def frozen(cls: type[_Class]) -> type[_Class]:
    """Make a class an immutable dataclass whose fields are checked when it is built."""
    return cast(type[_Class], dataclass(frozen=True, config=_STRICT)(cls))


Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # torch accepts no larger seed
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
