"""What constructors accept, said in their signatures and checked by pydantic.

What is wrong on the user's side ends as a UserError.

Strict: no string becomes a number and no bool an integer, so that a slip on the command line is an
error and not a different experiment.
"""

from typing import Annotated

from pydantic import ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(
    strict=True,
    allow_inf_nan=False,
    arbitrary_types_allowed=True,
    validate_default=True,
    extra="forbid",
)

validated = validate_call(config=_STRICT)
"""Decorates the constructor of an nn.Module, or a function."""

value = dataclass(frozen=True, config=_STRICT)
"""Decorates a class that is nothing but its fields."""

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # torch takes no more
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class UserError(Exception):
    """Something that the user can mend, said in one line. The doors exit with status 2 on it."""
