"""Any overrides, valid or not: one step with a finite loss, or one line that names the key."""

import contextlib
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.config import build as door
from vae.config.describe import flat
from vae.data.source import DataSet, Source, Split
from vae.cli.messages import is_of_groups, one_line
from vae.utils.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ["latents=2", "categories=3", "training.batch_size=8", "model=linear"]


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


GROUPS = ["data", "model", "estimator", "objective", "optimizer", "experiment"]
NESTED = ["estimator/temperature", "objective/beta", "optimizer/lr"]


def keys() -> list[str]:
    """Every key of every option."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = [compose("train", [f"{g}={o}"]) for g in GROUPS[1:5] for o in options(g)]
    found = {}
    for config in composed:
        found |= flat(OmegaConf.to_container(config, resolve=False))
    return sorted(key for key in found if "_target_" not in key)


VALUES = st.one_of(
    st.integers(-2, 12),
    st.sampled_from([0.0, 1e-3, 0.5, 1.0, 1e9, -1.0, "nan", "inf", "1e400", 2**70]),
    st.sampled_from(["null", "true", "word", "''", "[]", "[4,4]", "[0]", "{a:1}", "???"]),
)
OVERRIDES = st.one_of(
    st.sampled_from(GROUPS).flatmap(
        lambda group: st.sampled_from([f"{group}={o}" for o in [*options(group), "nonesuch"]])
    ),
    st.sampled_from(NESTED).flatmap(
        lambda group: st.sampled_from([f"{group}={o}" for o in options(group)])
    ),
    st.builds("{}={}".format, st.sampled_from(keys()), VALUES),
    st.builds("+{}.{}=1".format, st.sampled_from(GROUPS), st.sampled_from(["x", "_target_"])),
    st.sampled_from(GROUPS).map("~{}".format),
)
COSTLY = ("inner_samples", "samples", "hidden", "sizes", "latents", "categories", "channels")


def bearable(override: str) -> bool:
    """Nobody waits for a billion samples: that is a wish, and not a mistake."""
    key, _, word = override.partition("=")
    with contextlib.suppress(ValueError, OverflowError):
        return not (key.endswith(COSTLY) and float(word) > 100)
    return True


@pytest.fixture
def no_data(monkeypatch):
    pixels = torch.randint(0, 256, (16, 784), dtype=torch.uint8)
    split = Split(pixels, torch.arange(16) % 10)
    monkeypatch.setattr(
        Source,
        "load",
        lambda self, device: DataSet(self.name, split, split, split, False, False),
    )
    torch.set_default_dtype(torch.float32)


def tried(overrides: list[str], folder: Path) -> None:
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", [*SMALL, *overrides])
        (experiment,) = door.prepare(config, folder, contextlib.ExitStack())
    except (ValueError, TypeError) as error:  # Hydra's, where a group is given a number, or some
        assert is_of_groups(error)  # train.py words it
        return
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = str(error) if isinstance(error, UserError) else one_line(error)
        assert line and "\n" not in line
        chosen = any(override.startswith("experiment=") for override in overrides)
        given = [*SMALL, *overrides] if chosen else overrides  # an experiment may not suit SMALL
        keys = [override.lstrip("+~").partition("=")[0] for override in given]
        parts = {part for key in keys for part in key.replace("/", ".").split(".")}
        assert any(part in line for part in parts), line
        assert not list(folder.iterdir())
        event("refused")
        return
    step = experiment.optimizer.build(experiment.objective.parameters())
    x = experiment.data.train.images[:8] / 255
    terms = experiment.objective(x, 0)
    terms.loss.mean().backward()
    step.step()
    assert terms.loss.isfinite().all()
    event("trained")


def fuzz(examples: int):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


CASES = given(overrides=st.lists(OVERRIDES.filter(bearable), min_size=1, max_size=3))


@fuzz(30)
@CASES
def test_thirty(overrides, no_data, tmp_path_factory):
    tried(overrides, tmp_path_factory.mktemp("run"))


@pytest.mark.slow
@fuzz(400)
@CASES
def test_four_hundred(overrides, no_data, tmp_path_factory):
    tried(overrides, tmp_path_factory.mktemp("run"))
