"""Composing a configuration from Python, as `train.py` does on the command line."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from vae.config.describe import OPTIONS
from vae.config.resolvers import register_resolvers


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that `python train.py OVERRIDES` composes.

    Raises:
        HydraException: An override names an unknown key or option.
    """
    register_resolvers()
    with hydra.initialize_config_dir(str(OPTIONS), version_base="1.3"):
        return hydra.compose("train", list(overrides))
