"""Which settings may change when a run is resumed, and which folders hold the same run."""

from pathlib import Path

import pytest

from tests.helpers import build_run, compose_config
from vae.config.build import build_experiment
from vae.config.load import read_config, to_yaml
from vae.config.resume import holds_complete_run, resumed_config
from vae.runs.folder import CONFIG, REPLICAS
from vae.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def run(tmp_path) -> Path:
    """Return a folder with the configuration of a run."""
    (tmp_path / CONFIG).write_text(to_yaml(build_run("data=mnist_5k").values))
    return tmp_path


def holds(run: Path, *overrides: str) -> bool:
    config = build_run("data=mnist_5k", *overrides)
    return holds_complete_run(run, CONFIG, config.values, config.total_steps)


def test_an_empty_folder_holds_no_run(tmp_path):
    assert not holds(tmp_path)


def test_a_folder_holds_the_run_with_its_configuration_on_any_device(run):
    assert holds(run)
    assert holds(run, "device=cpu")


def test_a_longer_run_is_the_same_run_and_is_not_finished(run):
    assert not holds(run, "training.epochs=101")


def test_a_run_that_is_older_than_the_options_of_the_data_mean_is_still_the_same_run(run):
    values = read_config(run)
    for key in ("output_bias", "center_input"):
        del values["model"][key]
    (run / CONFIG).write_text(to_yaml(values))
    assert holds(run, "model.output_bias=default", "model.center_input=false")
    with pytest.raises(UserError, match="its model.output_bias is default, not data_mean"):
        holds(run, "model.output_bias=data_mean")


@pytest.mark.parametrize(
    "override", ["seed=1", "optimizer.lr=0.1", "training.epochs=99", "latents=5"]
)
def test_a_run_with_another_value_is_refused_with_its_key(run, override):
    with pytest.raises(UserError, match=override.partition("=")[0]):
        holds(run, override)


def test_a_run_and_replicas_do_not_share_a_folder(run):
    experiment = build_experiment(compose_config("data=mnist_5k", "seeds=2"))
    with pytest.raises(UserError, match="its config.yaml describes a single run"):
        steps = experiment.runs[0].total_steps
        holds_complete_run(run, REPLICAS, experiment.shared_values, steps)


def test_a_resumed_run_that_becomes_longer_keeps_its_schedules(tmp_path):
    words = ["data=mnist_5k", "estimator/temperature=linear", "training.epochs=2"]
    (tmp_path / CONFIG).write_text(to_yaml(build_run(*words).values))
    overrides = ["training.epochs=5"]
    config = resumed_config(tmp_path, compose_config(*overrides), overrides)
    (run,) = build_experiment(config).runs
    assert run.total_steps == 5 * 40
    assert run.objective.estimator.temperature.steps == 2 * 40


def test_resuming_with_another_value_is_refused_with_its_key(run):
    overrides = ["latents=5"]
    with pytest.raises(UserError, match="^latents cannot change when a run is resumed"):
        resumed_config(run, compose_config(*overrides), overrides)
