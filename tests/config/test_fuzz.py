"""Random overrides: one step with a finite loss, or one line that names the key."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from hydra.errors import HydraException
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.helpers import build_run, compose_config, option_names
from vae.cli.messages import is_group_value_error, one_line
from vae.config.describe import flatten
from vae.utils.errors import UserError

SMALL = ["latents=2", "categories=3", "training.batch_size=8", "model=linear"]
GROUPS = ["data", "model", "estimator", "objective", "optimizer", "experiment"]
NESTED_GROUPS = ["estimator/temperature", "objective/beta", "optimizer/lr"]


@pytest.fixture
def unchanged_folder(tmp_path, monkeypatch):
    """Run a test in an empty folder, and assert that it is still empty at the end."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def all_keys() -> list[str]:
    """Return every key of every option."""
    keys = {}
    for group in GROUPS[1:5]:
        for option in option_names(group):
            config = compose_config(f"{group}={option}")
            keys |= flatten(OmegaConf.to_container(config, resolve=False))
    return sorted(key for key in keys if "_target_" not in key)


VALUES = st.one_of(
    st.integers(-2, 12),
    st.sampled_from([0.0, 1e-3, 0.5, 1.0, 1e9, -1.0, "nan", "inf", "1e400", 2**70]),
    st.sampled_from(["null", "true", "word", "''", "[]", "[4,4]", "[0]", "{a:1}", "???"]),
)
OVERRIDES = st.one_of(
    st.sampled_from(GROUPS).flatmap(
        lambda group: st.sampled_from(
            [f"{group}={option}" for option in [*option_names(group), "nonesuch"]]
        )
    ),
    st.sampled_from(NESTED_GROUPS).flatmap(
        lambda group: st.sampled_from([f"{group}={option}" for option in option_names(group)])
    ),
    st.builds("{}={}".format, st.sampled_from(all_keys()), VALUES),
    st.builds("+{}.{}=1".format, st.sampled_from(GROUPS), st.sampled_from(["x", "_target_"])),
    st.sampled_from(GROUPS).map("~{}".format),
)
SIZES = ("inner_samples", "samples", "hidden", "sizes", "latents", "categories", "channels")


def is_affordable(override: str) -> bool:
    """Return whether a step takes a short time. A billion samples are valid, but take too long."""
    key, _, word = override.partition("=")
    with contextlib.suppress(ValueError, OverflowError):
        return not (key.endswith(SIZES) and float(word) > 100)
    return True


def assert_trains_or_is_refused_in_one_line(overrides: list[str]) -> None:
    try:
        run = build_run(*SMALL, *overrides)
    except (ValueError, TypeError) as error:  # Hydra raises them if a group is given a number
        assert is_group_value_error(error)  # so that train.py prints one line
        return
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = str(error) if isinstance(error, UserError) else one_line(error)
        assert line and "\n" not in line
        with_experiment = any(override.startswith("experiment=") for override in overrides)
        words = [*SMALL, *overrides] if with_experiment else overrides  # SMALL may not fit it
        keys = [word.lstrip("+~").partition("=")[0] for word in words]
        parts = {part for key in keys for part in key.replace("/", ".").split(".")}
        assert any(part in line for part in parts), line
        event("refused")
        return
    optimizer = run.optimizer.build(run.objective.parameters())
    pixels = torch.randint(0, 256, (8, 784), dtype=torch.uint8) / 255
    terms = run.objective(pixels, 0)
    terms.loss.mean().backward()
    optimizer.step()
    assert terms.loss.isfinite().all()
    event("trained")


def examples(count: int) -> Callable:
    """Return a decorator that runs a test with so many lists of overrides, always the same."""
    run_settings = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    cases = given(overrides=st.lists(OVERRIDES.filter(is_affordable), min_size=1, max_size=3))
    return lambda test: run_settings(cases(test))


@examples(30)
def test_thirty_random_configurations_train_or_are_refused_in_one_line(
    overrides, float32, unchanged_folder
):
    assert_trains_or_is_refused_in_one_line(overrides)


@pytest.mark.slow
@examples(400)
def test_400_random_configurations_train_or_are_refused_in_one_line(
    overrides, float32, unchanged_folder
):
    assert_trains_or_is_refused_in_one_line(overrides)
