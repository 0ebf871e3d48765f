"""Estimators from the names of their options, for models of saved runs."""

from collections.abc import Iterable

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.cli.messages import one_line
from vae.config.build import bind_schedules
from vae.config.describe import OPTIONS, option_targets
from vae.config.instantiate import build
from vae.config.load import SavedRun
from vae.config.resolvers import register_resolvers
from vae.estimators import Estimator
from vae.evaluation.gradients import seeded_rng
from vae.utils.errors import UserError, close_match

_SEED = 60_000  # of the initial weights of learned baselines and control variates


def expand_names(names: Iterable[str]) -> list[str]:
    """Return the names of estimators; `all` stands for all options.

    Raises:
        UserError: A name is not that of an option.
    """
    options = list(option_targets("estimator"))
    names = options if list(names) == ["all"] else list(names)
    for name in names:
        option = name.partition(":")[0]
        if option not in options:
            suggestion = close_match(option, options)
            raise UserError(f"--estimators {name}: there is no such option{suggestion}")
    return names


def build_estimators(names: Iterable[str], run: SavedRun) -> dict[str, Estimator]:
    """Build new estimators for the codes of a run's model.

    Args:
        names: Options such as `reinmax`, perhaps with other settings than those of the option
            file: `reinmax:temperature=1:samples=2`.
        run: The run. Schedules that last for the whole run have its length.

    Returns:
        The estimators by name.

    Raises:
        UserError: A setting does not exist or is not valid.
    """
    register_resolvers()
    sizes = [f"{key}={run.values[key]}" for key in ("latents", "categories")]
    estimators = {}
    with hydra.initialize_config_dir(str(OPTIONS), version_base="1.3"):
        for name in names:
            option, *settings = name.split(":")
            overrides = [f"estimator={option}", *(f"estimator.{word}" for word in settings)]
            try:
                config = hydra.compose("train", [*overrides, *sizes])
                node = OmegaConf.to_container(config.estimator, resolve=True)
            except (HydraException, OmegaConfBaseException) as error:
                raise UserError(one_line(error)) from error
            values = {"estimator": bind_schedules(node, run.total_steps())}
            with seeded_rng(torch.device("cpu"), _SEED):
                estimators[name] = build(values, "estimator", Estimator)
    return estimators
