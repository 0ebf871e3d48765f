"""Categorical VAEs, and how to get a gradient through their codes.

`vae.load(run_folder)` gives a trained model. Estimators are in `vae.estimators`, the model in
`vae.model`, what its numbers mean in `vae.evaluation`.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from .model import CategoricalVAE


def load(run: "str | Path", which: "Literal['best', 'last'] | None" = None) -> "CategoricalVAE":
    """The model of a run folder: `encode`, `decode`, `sample`. See `vae.run_folder.load`."""
    from . import run_folder  # importing vae alone imports no torch

    return run_folder.load(run, which)
