"""The name of a run's folder."""

import pytest

from tests.helpers import compose_config
from vae.config.resolvers import hash_suffix, run_name


def name_of(*overrides: str) -> str:
    """Return the name of the run that these overrides describe."""
    config = compose_config(*overrides)
    return run_name(_root_=with_choices(config))


def with_choices(config):
    config._set_flag("struct", False)
    config.hydra = {"runtime": {"choices": {"objective": "vimco", "estimator": "reinmax"}}}
    return config


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["latents=4", "categories=8"], "vimco_reinmax_4x8_seed0"),
        (["seeds=10"], "vimco_reinmax_20x10_seeds10"),
        (["seeds=10", "seed=20"], "vimco_reinmax_20x10_seed20_seeds10"),
        (["seeds=[3,7]"], "vimco_reinmax_20x10_seeds3-7"),
        (["latents=../../x"], "vimco_reinmax_..-..-xx10_seed0"),
    ],
)
def test_a_name_holds_method_size_and_seeds(overrides, name):
    assert name_of(*overrides) == name


def test_long_names_fit_into_a_folder_and_differ():
    names = {name_of(f"seeds={list(range(start, 500))}") for start in (0, 1)}
    names |= {name_of(f"latents={'9' * 300}{digit}") for digit in (1, 2)}
    assert len(names) == 4
    assert all(len(name + hash_suffix("x")) < 200 for name in names)
