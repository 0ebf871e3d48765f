"""Which replicas a configuration asks for: its seeds, and lists of rates and temperatures."""

from collections.abc import Mapping
from copy import deepcopy
from itertools import product
from typing import Any, NamedTuple

_GROUPS = ("optimizer", "objective", "estimator")
_KEYS = (
    *("lr", "beta", "temperature", "prior_temperature"),
    *("forward_temperature", "backward_temperature"),
)


class Replica(NamedTuple):
    """One configuration of the product, and what tells it from the others."""

    name: str  # of its folder: seed_0_lr_0.001; empty where nothing varies
    setting: str  # the same without the seed
    config: dict[str, Any]


def replicas(config: Mapping[str, Any]) -> list[Replica]:
    """Every seed with every rate with every temperature; the one configuration if nothing varies.

    `seeds` is how many follow on `seed`, or a list of them. Raises ValueError, which names the
    key.
    """
    config = dict(config)
    axes = {"seed": _seeds(config.pop("seeds", None), config.get("seed"))}
    for group in _GROUPS:
        node = config.get(group)
        for key, held in node.items() if isinstance(node, Mapping) else ():
            if key in _KEYS and isinstance(held, list):
                axes[f"{group}.{key}"] = _distinct(f"{group}.{key}", held)
    axes = {key: values for key, values in axes.items() if values is not None}
    found = []
    for values in product(*axes.values()):
        own, words = deepcopy(config), []
        for key, value in zip(axes, values, strict=True):
            *group, name = key.split(".")
            (own[group[0]] if group else own)[name] = value
            words.append((name, f"{name}_{_word(value)}"))
        found.append(
            Replica(
                "_".join(word for _, word in words),
                "_".join(word for name, word in words if name != "seed"),
                own,
            )
        )
    return found


def _seeds(seeds: object, first: object) -> list[Any] | None:
    if seeds is None:
        return None
    if isinstance(seeds, list):
        return _distinct("seeds", seeds)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds={seeds}: how many, from seed on, or a list of them")
    if isinstance(first, bool) or not isinstance(first, int):
        raise ValueError(f"seed={first}: no number for seeds={seeds} to follow on")
    return list(range(first, first + seeds))


def _distinct(key: str, values: list[Any]) -> list[Any]:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise ValueError(f"{key}={values}: a list of replicas takes numbers")
    if not values or len({_word(value) for value in values}) < len(values):
        raise ValueError(f"{key}={values}: a list of replicas needs values that differ")
    return values


def _word(value: float) -> str:
    """As short as it can be without being another number's."""
    short = f"{value:g}"
    return short if float(short) == value else str(value)
