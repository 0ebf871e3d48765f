"""Categorical VAEs, and estimators of the gradient through a discrete code.

`vae.load(run_folder)` returns a trained model. `vae.estimators` has the estimators, `vae.model`
the model and `vae.evaluation` the bounds. To read the code, start with `vae.experiment`.

Importing `vae` alone imports no torch; the packages below are imported when they are used.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from vae.model import CategoricalVAE

__version__ = "0.1.0"

_SUBMODULES = [module.name for module in pkgutil.iter_modules(__path__)]


def load(folder: "str | Path", which: "Literal['best', 'last'] | None" = None) -> "CategoricalVAE":
    """Return the trained model of a run folder, on the CPU and in evaluation mode.

    Args:
        folder: A run folder, such as `outputs/RUN`.
        which: The best model by validation ELBO, or the last one. By default the best, if there
            is one.

    Raises:
        UserError: The folder is not a run folder, or its checkpoint is missing or damaged.
    """
    from vae.config.load import SavedRun

    return SavedRun(folder).model(which)


def __getattr__(name: str) -> ModuleType:
    """Import a submodule when it is first used, as in `vae.estimators.ReinMax`."""
    if name in _SUBMODULES:
        return importlib.import_module(f"vae.{name}")
    raise AttributeError(f"module 'vae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
