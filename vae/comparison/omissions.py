"""Say which runs do not count, or count only in a part of a table, and why."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vae.comparison.table import Comparison, Selection, numbers, part
from vae.comparison.text import heading

Omission = tuple[str, str | Path]
"""A reason, and the folder of a run."""

_REPORTED = ["training_objective", "seconds", "steps"]  # by the training itself


def by_reason(omissions: Iterable[Omission]) -> list[str]:
    """Return one line per reason, which names the folders of all runs that have this reason."""
    folders: dict[str, list[str]] = {}
    for reason, folder in omissions:
        folders.setdefault(reason, []).append(str(folder))
    return [f"{reason}: {', '.join(names)}" for reason, names in folders.items()]


def unread_runs(errors: Mapping[Path, Exception]) -> list[str]:
    """Return one line per error with which runs could not be read.

    Args:
        errors: The error of each run, by its folder.
    """
    named = {
        folder: str(error).startswith((f"{folder} ", f"{folder}{os.sep}"))
        for folder, error in errors.items()
    }
    lines = [str(errors[folder]) for folder, is_named in named.items() if is_named]
    return lines + by_reason(
        (f"not counted, {errors[folder]}", folder)
        for folder, is_named in named.items()
        if not is_named
    )


def excluded_runs(comparisons: Iterable[Comparison]) -> list[str]:
    """Return one line per reason for which runs do not count."""
    return by_reason(
        (f"not counted, {run['reason']}", run["folder"])
        for comparison in comparisons
        for run in comparison.excluded.to_dict("records")
    )


def partial_runs(
    comparisons: Mapping[str, Comparison], selection: Selection, baselines: Mapping[str, str]
) -> list[str]:
    """Return one line per reason for which runs that count lack a number or a pair.

    Args:
        comparisons: The comparison of each data set, by title.
        selection: The bound by which groups are ordered.
        baselines: The label of the baseline group, for each title that has one.
    """
    lines = []
    omissions: list[Omission] = []
    for title, comparison in comparisons.items():
        bound, baseline = selection.rank_by, baselines.get(title)
        name = heading(bound)
        lacks_bound = numbers(comparison.runs, bound).isna().to_numpy()
        if lacks_bound.size and lacks_bound.all():
            lines.append(f"{title}: no run has the {name}, so groups are ordered by the ELBO")
        else:
            for folder in comparison.runs[lacks_bound]["run", "folder"]:
                omissions.append((f"without the {name}, so its group has no mean of it", folder))
        costs = part(comparison.runs, "run").set_index("folder")[_REPORTED]
        for folder, is_missing in costs.isna().iterrows():
            if is_missing.any():
                names = ", ".join(heading(cost) for cost in is_missing.index[is_missing])
                omissions.append((f"not in the mean of {names}", str(folder)))
        if baseline is not None:
            omissions += _unpaired_runs(comparison, baseline)
    return lines + by_reason(omissions)


def _unpaired_runs(comparison: Comparison, baseline: str) -> Iterator[Omission]:
    """Yield the runs whose seed the other group of a difference lacks."""
    others = comparison.runs_of(baseline)["run"]
    for label in comparison.labels():
        if label == baseline:
            continue
        runs = comparison.runs_of(label)["run"]
        for folder in runs[~runs["seed"].isin(others["seed"])]["folder"]:
            yield f"not in a difference, because {baseline} lacks the seed", folder
        for folder in others[~others["seed"].isin(runs["seed"])]["folder"]:
            yield f"not in a difference, because {label} lacks the seed", folder
