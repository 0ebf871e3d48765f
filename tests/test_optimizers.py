"""Optimizers, as their yaml files describe them."""

import math
from copy import deepcopy
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
def test_a_yaml_has_the_settings_of_torch(name):
    config = settings(name)
    (group,) = instantiate(config, _convert_="all").build(parameters()).param_groups
    defaults = TORCH[name](parameters()).defaults
    for key in ("betas", "eps", "weight_decay"):
        assert group[key] == defaults[key]
    assert group["lr"] == config["lr"] == 1e-3


@pytest.mark.parametrize("name", TORCH)
def test_every_setting_arrives(name):
    given = {"lr": 0.25, "betas": [0.5, 0.75], "eps": 0.125, "weight_decay": 0.375}
    (group,) = (
        instantiate(settings(name) | given, _convert_="all").build(parameters()).param_groups
    )
    expected = given | {"betas": (0.5, 0.75)}
    assert {key: group[key] for key in given} == expected


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
        for p in given:
            p.grad = None
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


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [[0.9, 0.999], [0.5, 0.9], [0.0, 0.99]])
@pytest.mark.parametrize("name", TORCH)
def test_it_is_that_of_torch(name, betas, decay, on_device):
    """Through the steps before RAdam is rectified, and a changing rate."""
    ours, theirs = (parameters() for _ in range(2))
    given = {"lr": 0.01, "betas": betas, "eps": 1e-3, "weight_decay": decay}
    built = instantiate(settings(name) | given, _convert_="all").build(ours, on_device)
    official = TORCH[name](theirs, **given | {"betas": tuple(betas)})
    for step in range(40):
        gradients = [torch.randn_like(p) for p in ours]
        rate = 0.01 / (1 + step)
        if on_device:
            built.param_groups[0]["lr"].fill_(rate)
        else:
            built.param_groups[0]["lr"] = rate
        official.param_groups[0]["lr"] = rate
        for optimizer, each in ((built, ours), (official, theirs)):
            for p, gradient in zip(each, gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
        assert built.param_groups[0]["lr"] == rate
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", TORCH)
def test_it_goes_on_from_a_state_of_torch_and_torch_from_ours(name):
    ours, theirs = (parameters() for _ in range(2))
    config = settings(name)
    built = instantiate(config, _convert_="all").build(ours)
    official = TORCH[name](theirs, lr=config["lr"], weight_decay=config["weight_decay"])

    def take(optimizer, each, gradient):
        for p in each:
            p.grad = torch.full_like(p, gradient)
        optimizer.step()

    for step in range(6):
        take(official, theirs, 0.5 + step)
    built.load_state_dict(official.state_dict())
    for p, other in zip(ours, theirs, strict=True):
        p.data.copy_(other.data)
    for step in range(6):
        if step == 3:
            official.load_state_dict(deepcopy(built.state_dict()))
        take(built, ours, 7.0 + step)
        take(official, theirs, 7.0 + step)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_the_state_of_other_parameters_is_refused():
    built = Adam(**VALID).build(parameters())
    wider = [nn.Parameter(torch.ones(1)), *parameters()[1:]]
    for other in (parameters()[:1], [*parameters(), *wider], wider):
        with pytest.raises(ValueError, match="other parameters"):
            built.load_state_dict(Adam(**VALID).build(other).state_dict())


def test_radam_goes_on_where_it_was_saved():
    given, again = parameters(), parameters()
    first, second = (RAdam(**VALID).build(each) for each in (given, again))
    for step in range(12):
        if step == 7:
            second.load_state_dict(deepcopy(first.state_dict()))
            for a, b in zip(given, again, strict=True):
                b.data.copy_(a)
        for optimizer, each in ((first, given), (second, again)):
            for p in each:
                p.grad = torch.full_like(p, 0.5 + step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(given, again, strict=True))


@every_optimizer
def test_a_number_is_a_constant_learning_rate(kind):
    assert kind(**VALID | {"lr": 0.5}).lr == Constant(0.5)


@every_optimizer
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_scheduled_learning_rate_starts_at_its_start(kind, start):
    schedule = Linear(start=start, end=1.0, steps=10)
    optimizer = kind(**VALID | {"lr": schedule})
    assert optimizer.lr is schedule
    assert optimizer.build(parameters()).param_groups[0]["lr"] == start


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
    assert isinstance(built, torch.optim.SGD)
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
