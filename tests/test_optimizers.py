"""Optimizers, as their yaml files describe them."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pydantic import ValidationError
from torch import nn

from vae.optimizers import SGD, Adam, AdamW, RAdam
from vae.schedules import Constant, Linear

YAML = Path(__file__).parents[1] / "configs" / "optimizer"
TORCH = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}
VALID = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}

every_optimizer = pytest.mark.parametrize("kind", [Adam, AdamW, RAdam])


def settings(name: str) -> dict[str, object]:
    config = OmegaConf.to_container(OmegaConf.load(YAML / f"{name}.yaml"), resolve=True)
    del config["defaults"]
    return config


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


def test_every_yaml_is_tested():
    others = {"sgd", "published"}  # below, and with the experiments
    assert {file.stem for file in YAML.glob("*.yaml")} == {*TORCH, *others}


@pytest.mark.parametrize("name", TORCH)
def test_a_yaml_builds_the_torch_class_with_its_settings(name):
    config = settings(name)
    built = instantiate(config, _convert_="all").build(parameters())
    assert type(built) is TORCH[name]
    assert built.defaults["lr"] == config["lr"]
    assert built.defaults["betas"] == tuple(config["betas"])
    assert built.defaults["eps"] == config["eps"]
    assert built.defaults["weight_decay"] == config["weight_decay"]


@pytest.mark.parametrize("name", TORCH)
def test_every_setting_arrives(name):
    given = {"lr": 0.25, "betas": [0.5, 0.75], "eps": 0.125, "weight_decay": 0.375}
    built = instantiate(settings(name) | given, _convert_="all").build(parameters())
    expected = given | {"betas": (0.5, 0.75)}
    assert {key: built.defaults[key] for key in given} == expected


@every_optimizer
def test_all_parameters_are_optimized(kind):
    given = parameters()
    built = kind(**VALID).build(iter(given))
    assert [id(p) for group in built.param_groups for p in group["params"]] == list(map(id, given))


@every_optimizer
def test_it_goes_downhill(kind):
    given = parameters()
    built = kind(**VALID | {"lr": 0.1}).build(given)
    for _ in range(100):
        built.zero_grad()
        loss = sum(p.square().sum() for p in given)
        loss.backward()
        built.step()
    assert loss < 1


@pytest.mark.parametrize("kind, decayed", [(Adam, 1 - 0.1), (AdamW, 0.95 - 0.1)])
def test_adamw_alone_decouples_the_decay(kind, decayed):
    """Adam's first step is of length lr whatever the gradient; AdamW shrinks first."""
    p = nn.Parameter(torch.ones(3))
    built = kind(**VALID | {"lr": 0.1, "weight_decay": 0.5}).build([p])
    p.grad = torch.full_like(p, 7.0)
    built.step()
    assert p.tolist() == pytest.approx([decayed] * 3, rel=1e-6)


@every_optimizer
def test_a_number_is_a_constant_learning_rate(kind):
    assert kind(**VALID | {"lr": 0.5}).lr == Constant(0.5)


@every_optimizer
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_scheduled_learning_rate_starts_at_its_start(kind, start):
    schedule = Linear(start=start, end=1.0, steps=10)
    optimizer = kind(**VALID | {"lr": schedule})
    assert optimizer.lr is schedule
    assert optimizer.build(parameters()).defaults["lr"] == start


WRONG = [
    *(("lr", lr) for lr in (-1e-3, "1e-3", True, None, math.nan, math.inf)),
    ("lr", Linear(start=1.0, end=-1.0, steps=10)),
    *(("betas", betas) for betas in ([0.9], [0.9, 0.99, 0.999], [], 0.9, None)),
    *(("betas", betas) for betas in ([0.9, 1.0], [-0.1, 0.9], ["0.9", 0.99], [0.9, math.nan])),
    *(("eps", eps) for eps in (0.0, -1e-8, "1e-8", math.nan)),
    *(("weight_decay", decay) for decay in (-0.1, "0", math.inf)),
    ("amsgrad", True),
]


@pytest.mark.parametrize("name, wrong", WRONG)
def test_a_wrong_setting_is_refused(name, wrong):
    for kind in (Adam, AdamW, RAdam):
        with pytest.raises(ValidationError):
            kind(**VALID | {name: wrong})


@pytest.mark.parametrize("name", VALID)
def test_a_missing_setting_is_refused(name):
    for kind in (Adam, AdamW, RAdam):
        with pytest.raises(ValidationError):
            kind(**{key: value for key, value in VALID.items() if key != name})


def test_sgd_is_what_its_yaml_says():
    built = instantiate(settings("sgd"), _convert_="all").build(parameters())
    assert type(built) is torch.optim.SGD
    assert (built.defaults["lr"], built.defaults["momentum"]) == (1e-3, 0.9)
    assert not built.defaults["weight_decay"] and not built.defaults["nesterov"]


def test_sgd_keeps_its_momentum_and_decays():
    p = nn.Parameter(torch.ones(3))
    built = SGD(lr=0.1, momentum=0.5, weight_decay=0.25).build([p])
    for _ in range(2):
        p.grad = torch.full_like(p, 7.0)
        built.step()
    first = 1 - 0.1 * 7.25
    second = first - 0.1 * (0.5 * 7.25 + 7 + 0.25 * first)
    assert p.tolist() == pytest.approx([second] * 3)


@pytest.mark.parametrize(
    "wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}, {"betas": [0.9, 0.9]}]
)
def test_a_wrong_setting_of_sgd_is_refused(wrong):
    with pytest.raises(ValidationError):
        SGD(**{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | wrong)
