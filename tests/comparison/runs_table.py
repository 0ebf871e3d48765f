"""A table of made-up runs, as `vae.comparison.collect` returns it of run folders."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

Rows = list[dict[str, dict[str, Any]]]
"""The rows of one run, one per model; each row has the four parts of the table."""


def run(
    method: str = "reinmax",
    seed: int = 0,
    elbo: float | None = -100.0,
    status: str = "finished",
    data: str = "digits",
    models: dict[str | None, dict[str, float | None]] | None = None,
    revisions: Iterable[str] = "a",
    measured: dict[str, float | None] | None = None,
    **settings: object,
) -> Rows:
    """Return the rows of one run, which has only a last model unless `models` says otherwise.

    Args:
        method: The estimator, which is also a setting.
        seed: The seed, which is also a setting.
        elbo: The ELBO of the last model.
        status: finished, diverged or unfinished.
        data: The title of the data set.
        models: The numbers of each model; the model None stands for a run without a model.
        revisions: The revisions of the code that the run was made with.
        measured: More numbers of the last model.
        settings: More settings.
    """
    numbers = {"elbo": elbo, "rate": 5.0, "log_likelihood": None} | (measured or {})
    facts = {
        "folder": f"{method}/{seed}",
        "data": data,
        "method": method,
        "seed": seed,
        "status": status,
        "training_objective": 120.0 + seed,
        "steps": 100,
        "seconds": 2.5,
    }
    return [
        {
            "run": facts | {"model": model},
            "setting": {"estimator": method, "seed": seed, "latents": 4} | settings,
            "measured": model_numbers,
            "made_with": {"revisions": frozenset(revisions), "devices": frozenset()},
        }
        for model, model_numbers in (models or {"last": numbers}).items()
    ]


def runs_table(*runs: Rows) -> pd.DataFrame:
    """Return the tidy table of some runs: one row per run and model, two levels of columns."""
    # The folder identifies a run: runs with the same settings have different folders.
    rows = [
        row | {"run": row["run"] | {"folder": f"{number}/{row['run']['folder']}"}}
        for number, rows_of_run in enumerate(runs)
        for row in rows_of_run
    ]
    parts = {
        part: pd.DataFrame([row[part] for row in rows], dtype=object)
        for part in ("run", "setting", "measured", "made_with")
    }
    table = pd.concat(parts, axis="columns")
    return table.where(table.notna(), None)
