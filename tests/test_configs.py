"""Every option of every group composes, is checked and can be built."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vae.config import build as door
from vae.data.source import DataSet, Mnist5k, Source, Split
from vae.config.instantiate import build
from vae.config.load import read_config
from vae.utils.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    """Nothing is read: these tests are about what comes before."""
    torch.set_default_dtype(torch.float32)
    nothing = Split(torch.zeros(0, 784, dtype=torch.uint8), torch.zeros(0, dtype=torch.long))

    def load(self: Source, device: torch.device) -> DataSet:
        return DataSet(self.name, nothing, nothing, nothing, False, False)

    monkeypatch.setattr(Source, "load", load)


def prepared(folder: Path, *overrides: str) -> door.Experiment:
    (experiment,) = door.prepare(composed(*overrides), folder, ExitStack())
    return experiment


@pytest.mark.parametrize("data", options("data"))
def test_data(tmp_path, data):
    assert prepared(tmp_path, f"data={data}").data.name


@pytest.mark.parametrize("prior", ["uniform", "learned"])
@pytest.mark.parametrize("model", options("model"))
def test_model(tmp_path, model, prior):
    experiment = prepared(tmp_path, f"model={model}", f"model.prior={prior}", "latents=3")
    logits = experiment.objective.model.encode(torch.zeros(2, 784))
    assert logits.shape == (2, 3, 10)


@pytest.mark.parametrize("estimator", options("estimator"))
def test_estimator(tmp_path, estimator):
    prepared(tmp_path, f"estimator={estimator}", "latents=2")


def has_temperature(estimator: str) -> bool:
    return "- temperature:" in (CONFIGS / "estimator" / f"{estimator}.yaml").read_text()


@pytest.mark.parametrize("temperature", options("estimator/temperature"))
@pytest.mark.parametrize("estimator", list(filter(has_temperature, options("estimator"))))
def test_every_schedule_of_every_temperature(tmp_path, estimator, temperature):
    choice = [f"estimator={estimator}", f"estimator/temperature={temperature}"]
    if estimator == "reinmax" and temperature not in {"constant", "geometric"}:
        with pytest.raises(UserError, match="at 1 or above"):
            prepared(tmp_path, *choice)
        return
    schedule = prepared(tmp_path, *choice).objective.estimator.temperature
    assert schedule.smallest > 0
    assert schedule(0) == pytest.approx(1.0)


@pytest.mark.parametrize("beta", options("objective/beta"))
@pytest.mark.parametrize("objective", options("objective"))
def test_beta(tmp_path, objective, beta):
    experiment = prepared(tmp_path, f"objective={objective}", f"objective/beta={beta}")
    assert experiment.objective.beta(10**6) == pytest.approx(1.0)


@pytest.mark.parametrize("lr", options("optimizer/lr"))
@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_learning_rate(tmp_path, optimizer, lr):
    experiment = prepared(tmp_path, f"optimizer={optimizer}", f"optimizer/lr={lr}")
    experiment.optimizer.build(experiment.objective.parameters())


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment(tmp_path, experiment):
    prepared(tmp_path, f"experiment={experiment}")


def test_a_whole_run_is_what_a_schedule_sees(tmp_path):
    schedule = ["estimator/temperature=linear", "training.epochs=7", "data=mnist_5k"]
    experiment = prepared(tmp_path, *schedule)
    assert experiment.objective.estimator.temperature.steps == 7 * 40
    assert experiment.config["estimator"]["temperature"]["steps"] == 7 * 40
    assert experiment.config["training"]["steps"] is None  # as it was asked for


def test_the_run_folder_gets_the_resolved_configuration(tmp_path):
    prepared(tmp_path, "latents=3", "data=mnist_5k")
    config = read_config(tmp_path)
    assert config.model.latents == 3
    assert isinstance(build(config, "data"), Mnist5k)


def test_a_run_folder_is_for_one_run(tmp_path):
    prepared(tmp_path, "data=mnist_5k")
    prepared(tmp_path, "data=mnist_5k", "device=cpu")  # the same one
    prepared(tmp_path, "data=mnist_5k", "training.epochs=101")  # and longer
    for different in ("seed=1", "optimizer.lr=0.1", "training.epochs=99", "latents=5"):
        with pytest.raises(UserError, match=different.partition("=")[0]):
            prepared(tmp_path, "data=mnist_5k", different)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    def weights(name: str, seed: int) -> torch.Tensor:
        folder = tmp_path / name
        folder.mkdir()
        experiment = prepared(folder, f"seed={seed}")
        return torch.cat([p.flatten() for p in experiment.objective.parameters()])

    assert torch.equal(weights("a", 0), weights("b", 0))
    assert not torch.equal(weights("c", 0), weights("d", 1))


def test_a_replica_begins_as_the_run_of_its_seed(tmp_path):
    with ExitStack() as locks:
        together = door.prepare(composed("seeds=3", "optimizer.lr=[0.1,0.2]"), tmp_path, locks)
    assert [each.folder.name for each in together] == [
        f"seed_{seed}_lr_{lr}" for seed in range(3) for lr in ("0.1", "0.2")
    ]
    for seed in range(3):
        (tmp_path / f"alone{seed}").mkdir()
        alone = prepared(tmp_path / f"alone{seed}", f"seed={seed}").objective.state_dict()
        for each in together[2 * seed : 2 * seed + 2]:
            begins = each.objective.state_dict()
            assert all(torch.equal(begins[name], held) for name, held in alone.items())
    first = [next(each.objective.parameters()) for each in together[::2]]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_a_model_takes_the_shape_of_its_images(tmp_path, monkeypatch):
    for name in ("usual", "small"):
        (tmp_path / name).mkdir()
    usual = prepared(tmp_path / "usual").config["model"]
    monkeypatch.setattr(Source, "image_shape", (16, 12))
    experiment = prepared(tmp_path / "small", "model=conv")
    assert experiment.objective.model.encode(torch.zeros(2, 16 * 12)).shape == (2, 20, 10)
    assert read_config(tmp_path / "small").model.image_shape == [16, 12]  # for those who load it
    assert "image_shape" not in usual
