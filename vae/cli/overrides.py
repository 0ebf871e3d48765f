"""Overrides: quoting them in Hydra's grammar, and refusing those that would have no effect."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from vae.utils.errors import UserError

_KEYS_OF_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "sweep", "resume")
_ONLY_FOR_SWEEPS = (
    "sweep=",
    "on_failure=",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra.sweep",
)
_ONLY_FOR_SINGLE_RUNS = "hydra.run."


def override(key: str, value: str) -> str:
    """Return the override that sets a key to exactly this text.

    Hydra reads some values as numbers or lists, and refuses others: a path that contains a space,
    a bracket, an equals sign or an umlaut must be quoted. The shell needs another
    pair of quotes around the override.
    """
    word = f"{key}={value}"
    literal = value.replace("${", r"\${")  # OmegaConf would read an interpolation
    try:
        if OverridesParser.create().parse_override(word).value() == literal:
            return word
    except HydraException:
        pass
    return f"{key}={QuotedString(literal, Quote.double).with_quotes()}"


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether the arguments of the command line ask for a sweep."""
    return not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)


def refuse_ignored_overrides(overrides: Sequence[str], sweep: bool) -> None:
    """Refuse overrides that have no effect, and folders without a name.

    Args:
        overrides: The overrides of the command line.
        sweep: Whether the command is a sweep.

    Raises:
        UserError: There is such an override.
    """
    for word in overrides:
        word = word.lstrip("+")
        key, _, value = word.partition("=")
        if key in _KEYS_OF_FOLDERS and not value.strip("'\""):
            raise UserError(f"{key}= names no folder")
        if sweep and word.startswith(_ONLY_FOR_SINGLE_RUNS):
            raise UserError(f"{word} has no effect with -m; name the folder with sweep=NAME")
        if not sweep and word.startswith(_ONLY_FOR_SWEEPS) and value != "null":
            hint = "; name the folder with hydra.run.dir=FOLDER" if key == "sweep" else ""
            raise UserError(f"{word} has no effect without -m{hint}")
