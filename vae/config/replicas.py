"""Expand a configuration into replicas: its seeds, and lists of rates, betas, temperatures."""

from collections.abc import Mapping
from copy import deepcopy
from itertools import product
from math import prod
from typing import Any, NamedTuple

from vae.utils.errors import UserError

_GROUPS = ("optimizer", "objective", "estimator")
_KEYS = (
    "lr",
    "beta",
    "temperature",
    "prior_temperature",
    "forward_temperature",
    "backward_temperature",
)
_MOST_REPLICAS = 1000  # each of them has its own folder with an open event file


class ReplicaValues(NamedTuple):
    """The configuration of one replica, and its names."""

    name: str  # of its folder, such as seed_0_lr_0.001; empty if there is one replica alone
    name_without_seed: str  # which replicas that differ only in their seed share
    values: dict[str, Any]


def expand_replicas(values: Mapping[str, Any]) -> list[ReplicaValues]:
    """Return the configurations of all replicas: every combination of seeds and lists.

    Without `seeds` and without lists, there is one configuration.

    Args:
        values: A configuration. Its key `seeds` is a number of seeds, counted from `seed`, or a
            list of seeds.

    Raises:
        UserError: The seeds or a list are not valid.
    """
    values = dict(values)
    axes: dict[str, list[Any]] = {}
    seeds = _seeds(values.pop("seeds", None), values.get("seed"))
    if seeds is not None:
        axes["seed"] = seeds
    for group in _GROUPS:
        node = values.get(group)
        for key, value in node.items() if isinstance(node, Mapping) else ():
            if key in _KEYS and isinstance(value, list):
                axes[f"{group}.{key}"] = _distinct(f"{group}.{key}", value)
    count = prod(len(choices) for choices in axes.values())
    if count > _MOST_REPLICAS:
        raise UserError(f"one run trains at most {_MOST_REPLICAS} replicas, and not {count}")
    return [
        _replica(values, dict(zip(axes, choice, strict=True)))
        for choice in product(*axes.values())
    ]


def _replica(values: Mapping[str, Any], choice: Mapping[str, Any]) -> ReplicaValues:
    """Return the configuration in which the keys of `choice` have their values."""
    replica_values = deepcopy(dict(values))
    words = {}
    for key, value in choice.items():
        *group, name = key.split(".")
        (replica_values[group[0]] if group else replica_values)[name] = value
        words[name] = f"{name}_{_short(value)}"
    without_seed = "_".join(word for name, word in words.items() if name != "seed")
    return ReplicaValues("_".join(words.values()), without_seed, replica_values)


def _seeds(seeds: object, first: object) -> list[Any] | None:
    if seeds is None:
        return None
    if isinstance(seeds, list):
        return _distinct("seeds", seeds)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UserError(f"seeds={seeds}: give the number of seeds, or a list of them")
    if isinstance(first, bool) or not isinstance(first, int):
        raise UserError(f"seed={first}: seeds={seeds} counts from seed, which must be a number")
    return list(range(first, first + seeds))


def _distinct(key: str, values: list[Any]) -> list[Any]:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise UserError(f"{key}={values}: the values of a list must be numbers")
    if not values or len({_short(value) for value in values}) < len(values):
        raise UserError(f"{key}={values}: a list needs values, all of them different")
    return values


def _short(value: float) -> str:
    """Return the shortest text that converts back to exactly this number."""
    short = f"{value:g}"
    return short if float(short) == value else str(value)
