"""Build estimators from the names of their options, for the models of saved runs."""

from collections.abc import Iterable

import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.cli.messages import one_line
from vae.config.build import bind_schedules
from vae.config.compose import compose_config
from vae.config.describe import option_targets
from vae.config.instantiate import build
from vae.config.load import SavedRun
from vae.estimators import Estimator
from vae.evaluation.gradients import seeded_rng
from vae.utils.errors import UserError, close_match

_SEED = 60_000  # of the initial weights of learned baselines and control variates


def expand_names(names: Iterable[str]) -> list[str]:
    """Return the names of estimators; `all` stands for all options except `exact`.

    `exact` is left out because it is the reference of the comparison, and because it fails if the
    codes are too many to enumerate.

    Raises:
        UserError: There is no option with such a name.
    """
    options = list(option_targets("estimator"))
    measured = [option for option in options if option != "exact"]
    names = list(
        dict.fromkeys(n for name in names for n in (measured if name == "all" else [name]))
    )
    for name in names:
        option = name.partition(":")[0]
        if option not in options:
            suggestion = close_match(option, options)
            raise UserError(f"--estimators {name}: there is no such option{suggestion}")
    return names


def build_estimators(names: Iterable[str], run: SavedRun) -> dict[str, Estimator]:
    """Build new estimators for the codes of a run's model.

    Args:
        names: Options such as `reinmax`. Settings that differ from the option file follow the
            name: `reinmax:temperature=1:samples=2`.
        run: The run. Schedules that last for the whole run have its length.

    Returns:
        The estimators by name.

    Raises:
        UserError: A setting does not exist or is not valid, or an estimator cannot handle codes of
            this size.
    """
    sizes = [f"{key}={run.values[key]}" for key in ("latents", "categories")]
    estimators = {}
    for name in names:
        option, *settings = name.split(":")
        overrides = [f"estimator={option}", *(f"estimator.{word}" for word in settings)]
        try:
            config = compose_config([*overrides, *sizes])
            node = OmegaConf.to_container(config.estimator, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(one_line(error)) from error
        values = {"estimator": bind_schedules(node, run.total_steps())}
        with seeded_rng(torch.device("cpu"), _SEED):
            estimators[name] = build(values, "estimator", Estimator)
        try:
            estimators[name].check(run.values["latents"], run.values["categories"])
        except ValueError as error:
            raise UserError(f"--estimators {name}: {run.folder}: {error}") from error
    return estimators
