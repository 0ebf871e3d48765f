"""Runs grouped over their seeds and put side by side: statistics of numbers that are there.

Groups are those runs that share every setting but the seed; what a group is called follows from
the settings that differ, never from the name of a folder.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy import stats

from .checkpoint import Which
from .data import DataSet
from .validation import UserError

Setting = bool | str | int | float

Bound = Literal["elbo", "importance_weighted", "log_likelihood"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
"""Of these a table shows the spread over seeds; of the other numbers the mean."""


class View(NamedTuple):
    """Which of a run's models is looked at, by default the best, and by which bound."""

    model: Which | None = None
    by: Bound = "elbo"


ELBO = View()
"""The usual one."""

ENOUGH = 3
"""Seeds below which a group is flagged, and no interval is given."""

_NO_SETTINGS = (
    *("seed", "device", "training.capture", "data.root", "data.mirror"),
    *("importance_samples", "tracking"),
)


@dataclass(frozen=True)
class Run:
    """A run as far as comparing it goes."""

    folder: str
    data: str  # what its numbers are measured on
    method: str
    settings: dict[str, Setting]
    seed: int
    status: str  # finished, or why not
    measured: dict[Which, dict[str, float | None]]  # of its best and its last model
    objective: float | None  # what training minimised, mean over its last epoch
    steps: int | None
    seconds: float | None
    made_with: dict[str, frozenset[str]]  # revisions, versions, devices: what is known of them

    def numbers(self, model: Which | None) -> dict[str, float | None] | None:
        """Of one of its models, by default the best that there is; None where there is none."""
        if model is None:
            return self.measured.get("best") or self.measured.get("last")
        return self.measured.get(model)


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in their seed alone, and what was left out of them."""

    settings: dict[str, Setting | None]  # those in which it differs from the other groups
    method: str
    runs: list[Run]
    left_out: list[str]

    @property
    def label(self) -> str:
        """Short and, among the groups that it was made with, unique."""
        if set(self.settings) <= {"estimator"}:
            return self.method
        words = [
            str(value) if key == "estimator" else f"{key}={value}"
            for key, value in self.settings.items()
            if value is not None
        ]
        return " ".join(words) or self.method

    def note(self) -> str:
        few = [f"n < {ENOUGH}"] if len(self.runs) < ENOUGH else []
        return ", ".join(few + self.left_out + self._mixed())

    def _mixed(self) -> list[str]:
        """What the runs were made with, where that is not one thing."""
        kinds = dict.fromkeys(kind for run in self.runs for kind in run.made_with)
        numbers = {
            kind: len({each for run in self.runs for each in run.made_with.get(kind, ())})
            for kind in kinds
        }
        return [f"{number} {kind}" for kind, number in numbers.items() if number > 1]


def title(data: DataSet, importance_samples: int) -> str:
    """What the numbers of a table are measured on, and whether their bounds bound a likelihood."""
    grey = "" if data.binary else " (grey pixels: no likelihood)"
    measured_on = f"{data.name}, test, {len(data.test):,} images, in nats per image{grey}"
    return f"{measured_on}, IW bound at m = {importance_samples:,}"


# Grouping


def group(runs: list[Run], view: View = ELBO) -> dict[str, list[Group]]:
    """The groups of every data set, the best first; by title, never two data sets in one list.

    A run that is not finished, or that has no such model, counts in no mean; of two runs with the
    same settings and seed only the first does.
    """
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data, []).append(run)
    return {data: _groups(members, view) for data, members in by_data.items()}


def _groups(runs: list[Run], view: View) -> list[Group]:
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    settings = [_settings(members[0]) for members in same.values()]
    shown = differing(settings)
    groups = []
    for own, members in zip(settings, same.values(), strict=True):
        counted: dict[int, Run] = {}
        left_out = Counter()
        for run in members:
            if run.status != "finished":
                left_out[run.status] += 1
            elif run.numbers(view.model) is None:
                left_out[" ".join(filter(None, ("without a", view.model, "model")))] += 1
            elif not _is_number(run.numbers(view.model).get("elbo")):
                left_out["whose ELBO is no number"] += 1
            elif run.seed in counted:
                left_out[f"a second time seed {run.seed}"] += 1
            else:
                counted[run.seed] = run
        notes = [f"{number} {why}" for why, number in left_out.items()]
        ordered = [counted[seed] for seed in sorted(counted)]
        named = {key: own.get(key) for key in shown}
        groups.append(Group(named, members[0].method, ordered, notes))
    first_by = lambda each: [-mean(each, bound, view.model) for bound in (view.by, "elbo")]
    return sorted(groups, key=first_by)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _settings(run: Run) -> dict[str, Setting]:
    return {
        key: value
        for key, value in run.settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in _NO_SETTINGS)
    }


def differing(settings: list[dict[str, Setting]]) -> list[str]:
    """The keys that tell the settings apart.

    A key below another, as estimator.temperature below estimator, counts only where it differs
    between settings that agree in all keys above it: another estimator has another temperature,
    and the estimator says so. One that repeats a key of its own name, as model.latents repeats
    latents, is left out.
    """
    keys = list(dict.fromkeys(key for each in settings for key in each))
    shown = []
    for key in keys:
        above = [other for other in keys if key.startswith(f"{other}.")]
        values: dict[tuple, set] = {}
        for each in settings:
            context = tuple(each.get(other) for other in above)
            values.setdefault(context, set()).add(each.get(key))
        if any(len(different) > 1 for different in values.values()):
            shown.append(key)
    return [key for key in shown if not _repeats(key, settings)]


def _repeats(key: str, settings: list[dict[str, Setting]]) -> bool:
    group, _, name = key.rpartition(".")
    return bool(group) and all(name in each and each[name] == each.get(key) for each in settings)


def find(groups: list[Group], description: str) -> Group:
    """The one group that has these settings: `reinmax`, or `estimator=reinmax,latents=8`.

    A setting may also be one that all groups share.

    Raises UserError where it is not exactly one.
    """
    words = [word.partition("=") for word in description.split(",")]

    def fits(group: Group) -> bool:
        differing = group.settings
        shared = group.runs[0].settings if group.runs else {}
        return description == group.label or all(
            _same((shared | differing).get(key), value)
            if equals
            else key == group.method or any(_same(own, key) for own in differing.values())
            for key, equals, value in words
        )

    found = [each for each in groups if fits(each)]
    if len(found) != 1:
        number = len(found) or "none"
        labels = "; ".join(each.label for each in found or groups)
        raise UserError(f"baseline {description}: {number} of the groups fit: {labels}")
    return found[0]


def _same(held: Setting | None, word: str) -> bool:
    """Whether a setting is what a word says; of numbers, however they are written."""
    if isinstance(held, int | float) and not isinstance(held, bool):
        try:
            return held == float(word)
        except ValueError:
            return False
    return str(held) == word


# Statistics


def values(group: Group, name: str, model: Which | None = None) -> np.ndarray:
    """A number of each run, by seed; nan where it cannot be had."""
    held = [(run.numbers(model) or {}).get(name) for run in group.runs]
    return np.array([math.nan if value is None else value for value in held], dtype=float)


def lacking(groups: list[Group], view: View) -> bool:
    """Whether there are runs and none has the bound to compare by: log p(x) is for few codes."""
    held = np.concatenate([values(group, view.by, view.model) for group in groups])
    return bool(len(held) and np.isnan(held).all())


def mean(group: Group, name: str, model: Which | None = None) -> float:
    """nan-free order: a group without a number comes last."""
    held = values(group, name, model)
    return float(held.mean()) if len(held) and not np.isnan(held).any() else -math.inf


def interval(sample: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; nan for fewer than three values.

    It covers what it says where the values are normal. (A percentile bootstrap of three values is
    their range, which covers the mean three times in four.) Student (1908), The probable error of
    a mean.
    """
    if len(sample) < ENOUGH:
        return math.nan, math.nan
    error = sample.std(ddof=1) / math.sqrt(len(sample))
    low, high = sample.mean() + error * stats.t.ppf([0.025, 0.975], len(sample) - 1)
    return float(low), float(high)


def difference(group: Group, baseline: Group, view: View = ELBO) -> np.ndarray:
    """Its test bound less the baseline's, at each seed that both have: positive is better."""
    ours, theirs = (
        dict(zip((run.seed for run in each.runs), values(each, view.by, view.model), strict=True))
        for each in (group, baseline)
    )
    return np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
