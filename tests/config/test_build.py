"""Every option of every group can be built, and wrong configurations are refused."""

import copy

import pytest
import torch

from tests.helpers import CONFIGS, build_run, compose_config, option_names
from vae.config.build import bind_schedules, build_experiment
from vae.config.instantiate import build
from vae.config.load import read_config, to_yaml
from vae.data import DataSet, Mnist5k, Source
from vae.runs.folder import CONFIG
from vae.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture(autouse=True)
def _no_data_is_read(monkeypatch):
    def load(self: Source, device: torch.device) -> DataSet:
        raise AssertionError("building a run reads no data")

    monkeypatch.setattr(Source, "load", load)


# Options


@pytest.mark.parametrize("data", option_names("data"))
def test_every_data_set_can_be_built(data):
    assert build_run(f"data={data}").source.name


@pytest.mark.parametrize("prior", ["uniform", "learned"])
@pytest.mark.parametrize("model", option_names("model"))
def test_every_model_encodes_images(model, prior):
    run = build_run(f"model={model}", f"model.prior={prior}", "latents=3")
    logits = run.objective.model.encode(torch.zeros(2, 784))
    assert logits.shape == (2, 3, 10)


@pytest.mark.parametrize("model", option_names("model"))
def test_every_model_can_have_a_catnat_posterior(model):
    choice = [f"model={model}", "model.posterior=catnat", "latents=3"]
    built = build_run(*choice, "categories=8").objective.model
    assert built.posterior == "catnat" and built.encode(torch.zeros(2, 784)).shape == (2, 3, 8)
    with pytest.raises(UserError, match="model: posterior=catnat: categories=10 is not a power"):
        build_run(*choice, "categories=10")


@pytest.mark.parametrize("estimator", option_names("estimator"))
def test_every_estimator_can_be_built(estimator):
    build_run(f"estimator={estimator}", "latents=2")


def has_temperature(estimator: str) -> bool:
    return "- temperature:" in (CONFIGS / "estimator" / f"{estimator}.yaml").read_text()


@pytest.mark.parametrize("temperature", option_names("estimator/temperature"))
@pytest.mark.parametrize(
    "estimator", [name for name in option_names("estimator") if has_temperature(name)]
)
def test_every_temperature_schedule_starts_at_1_and_stays_positive(estimator, temperature):
    choice = [f"estimator={estimator}", f"estimator/temperature={temperature}"]
    if estimator == "reinmax" and temperature not in {"constant", "geometric"}:
        with pytest.raises(UserError, match="at 1 or above"):
            build_run(*choice)
        return
    schedule = build_run(*choice).objective.estimator.temperature
    assert schedule.smallest > 0
    assert schedule(0) == pytest.approx(1.0)


@pytest.mark.parametrize("beta", option_names("objective/beta"))
@pytest.mark.parametrize("objective", option_names("objective"))
def test_every_beta_schedule_ends_at_1(objective, beta):
    run = build_run(f"objective={objective}", f"objective/beta={beta}")
    assert run.objective.beta(10**6) == pytest.approx(1.0)


@pytest.mark.parametrize("lr", option_names("optimizer/lr"))
@pytest.mark.parametrize("optimizer", option_names("optimizer"))
def test_every_optimizer_is_built_with_every_learning_rate_schedule(optimizer, lr):
    run = build_run(f"optimizer={optimizer}", f"optimizer/lr={lr}")
    run.optimizer.build(run.objective.parameters())


@pytest.mark.parametrize("experiment", option_names("experiment"))
def test_every_experiment_can_be_built(experiment):
    build_run(f"experiment={experiment}")


# Schedules


def test_a_schedule_of_no_length_lasts_for_the_whole_run():
    run = build_run("estimator/temperature=linear", "training.epochs=7", "data=mnist_5k")
    assert run.total_steps == 7 * 40
    assert run.objective.estimator.temperature.steps == 7 * 40
    assert run.values["estimator"]["temperature"]["steps"] == 7 * 40


def test_the_values_keep_the_training_steps_of_the_command_line():
    assert build_run("training.epochs=7", "data=mnist_5k").values["training"]["steps"] is None
    run = build_run("training.steps=9", "optimizer/lr=linear", "data=mnist_5k")
    assert run.values["training"]["steps"] == 9
    assert run.values["optimizer"]["lr"]["steps"] == 9


def test_replicas_share_schedules_that_last_for_the_whole_run():
    config = compose_config("seeds=2", "objective/beta=linear", "training.steps=9")
    config.objective.beta.steps = None
    experiment = build_experiment(config)
    assert experiment.shared_values["objective"]["beta"]["steps"] == 9
    assert [run.objective.beta.steps for run in experiment.runs] == [9, 9]
    assert config.objective.beta.steps is None  # the configuration is not written to


def schedule(name: str, **arguments: object) -> dict[str, object]:
    return {"_target_": f"vae.schedules.{name}", **arguments}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (schedule("Linear", steps=None), schedule("Linear", steps=50)),
        (schedule("Linear", steps=7), schedule("Linear", steps=7)),
        (schedule("Constant", value=1.0), schedule("Constant", value=1.0)),
        (
            {"optimizer": {"lr": schedule("Cosine", steps=None)}, "seed": 0},
            {"optimizer": {"lr": schedule("Cosine", steps=50)}, "seed": 0},
        ),
        (
            {"optimizer": {"lr": [schedule("Linear", steps=None), 0.1]}},
            {"optimizer": {"lr": [schedule("Linear", steps=50), 0.1]}},
        ),
        ({"training": {"steps": None}}, {"training": {"steps": None}}),
        (
            {"_target_": "vae.training.TrainingConfig", "steps": None},
            {"_target_": "vae.training.TrainingConfig", "steps": None},
        ),
    ],
)
def test_binding_schedules_sets_the_length_of_those_without_one(values, expected):
    before = copy.deepcopy(values)
    assert bind_schedules(values, total_steps=50) == expected
    assert values == before


# Values and seeds


def test_the_values_of_a_run_can_be_written_and_read_again(tmp_path):
    run = build_run("latents=3", "data=mnist_5k")
    (tmp_path / CONFIG).write_text(to_yaml(run.values))
    values = read_config(tmp_path)
    assert values == run.values
    assert values["model"]["latents"] == 3
    assert isinstance(build(values, "data", Source), Mnist5k)


def test_the_same_seed_gives_the_same_weights():
    def weights(seed: int) -> torch.Tensor:
        parameters = build_run(f"seed={seed}").objective.parameters()
        return torch.cat([parameter.flatten() for parameter in parameters])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_a_replica_starts_with_the_weights_of_a_run_with_its_seed():
    replicas = build_experiment(compose_config("seeds=3", "optimizer.lr=[0.1,0.2]")).runs
    assert [replica.name for replica in replicas] == [
        f"seed_{seed}_lr_{lr}" for seed in range(3) for lr in ("0.1", "0.2")
    ]
    for seed in range(3):
        alone = build_run(f"seed={seed}").objective.state_dict()
        for replica in replicas[2 * seed : 2 * seed + 2]:
            tensors = replica.objective.state_dict()
            assert all(torch.equal(tensors[name], tensor) for name, tensor in alone.items())
    first = [next(replica.objective.parameters()) for replica in replicas[::2]]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_a_model_takes_the_shape_of_its_images(monkeypatch):
    values_for_mnist = build_run().values["model"]
    monkeypatch.setattr(Source, "image_shape", (16, 12))
    run = build_run("model=conv")
    assert run.objective.model.encode(torch.zeros(2, 16 * 12)).shape == (2, 20, 10)
    assert run.values["model"]["image_shape"] == [16, 12]  # which loading the run needs
    assert "image_shape" not in values_for_mnist
