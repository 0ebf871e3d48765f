"""Optimizers, built from their yaml files and compared with the optimizers of torch."""

import math
from copy import deepcopy

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pydantic import ValidationError
from torch import nn

from tests.helpers import CONFIGS, option_names
from vae.config.resolvers import register_resolvers
from vae.optimizers import SGD, Adam, AdamW, RAdam
from vae.schedules import Constant, Linear

TORCH_CLASSES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}
VALID = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}

every_optimizer = pytest.mark.parametrize("optimizer_class", [Adam, AdamW, RAdam])


def yaml_settings(name: str) -> dict[str, object]:
    """Return the content of an option file, without its defaults list."""
    register_resolvers()
    file = CONFIGS / "optimizer" / f"{name}.yaml"
    content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    del content["defaults"]
    return content


def new_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


def test_every_option_file_is_tested():
    tested_otherwise = {"sgd", "published"}  # below, and with the published settings
    assert set(option_names("optimizer")) == {*TORCH_CLASSES, *tested_otherwise}


@pytest.mark.parametrize("name", TORCH_CLASSES)
def test_option_file_has_the_default_settings_of_torch(name):
    settings = yaml_settings(name)
    (group,) = instantiate(settings, _convert_="all").build(new_parameters()).param_groups
    defaults = TORCH_CLASSES[name](new_parameters()).defaults
    for key in ("betas", "eps", "weight_decay"):
        assert group[key] == defaults[key]
    assert group["lr"] == settings["lr"] == 1e-3


@pytest.mark.parametrize("name", TORCH_CLASSES)
def test_every_setting_reaches_the_optimizer(name):
    values = {"lr": 0.25, "betas": [0.5, 0.75], "eps": 0.125, "weight_decay": 0.375}
    config = instantiate(yaml_settings(name) | values, _convert_="all")
    (group,) = config.build(new_parameters()).param_groups
    expected = values | {"betas": (0.5, 0.75)}
    assert {key: group[key] for key in values} == expected


@every_optimizer
def test_all_parameters_are_optimized(optimizer_class):
    trained = new_parameters()
    optimizer = optimizer_class(**VALID).build(iter(trained))
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    assert list(map(id, optimized)) == list(map(id, trained))


@every_optimizer
def test_a_step_without_any_gradient_changes_nothing(optimizer_class):
    trained = new_parameters()
    before = [p.detach().clone() for p in trained]
    optimizer_class(**VALID).build(trained).step()
    assert all(torch.equal(p, old) for p, old in zip(trained, before, strict=True))


@every_optimizer
def test_steps_lower_a_quadratic_loss(optimizer_class):
    trained = new_parameters()
    optimizer = optimizer_class(**VALID | {"lr": 0.1}).build(trained)
    for _ in range(100):
        for p in trained:
            p.grad = None
        loss = sum(p.square().sum() for p in trained)
        loss.backward()
        optimizer.step()
    assert loss < 1


@pytest.mark.parametrize("optimizer_class, after_one_step", [(Adam, 1 - 0.1), (AdamW, 0.95 - 0.1)])
def test_adamw_decouples_the_weight_decay_and_adam_does_not(optimizer_class, after_one_step):
    """The first step of Adam has length lr whatever the gradient; AdamW shrinks the weight too."""
    p = nn.Parameter(torch.ones(3))
    optimizer = optimizer_class(**VALID | {"lr": 0.1, "weight_decay": 0.5}).build([p])
    p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    assert p.tolist() == pytest.approx([after_one_step] * 3, rel=1e-6)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [[0.9, 0.999], [0.5, 0.9], [0.0, 0.99]])
@pytest.mark.parametrize("name", TORCH_CLASSES)
def test_steps_are_those_of_torch(name, betas, decay, on_device):
    """The learning rate changes, and the first steps of RAdam are not rectified."""
    ours, theirs = (new_parameters() for _ in range(2))
    values = {"lr": 0.01, "betas": betas, "eps": 1e-3, "weight_decay": decay}
    optimizer = instantiate(yaml_settings(name) | values, _convert_="all").build(ours)
    if on_device:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.01)  # float32, as the kernels need it
    official = TORCH_CLASSES[name](theirs, **values | {"betas": tuple(betas)})
    for step in range(40):
        gradients = [torch.randn_like(p) for p in ours]
        rate = 0.01 / (1 + step)
        if on_device:
            optimizer.param_groups[0]["lr"].fill_(rate)
        else:
            optimizer.param_groups[0]["lr"] = rate
        official.param_groups[0]["lr"] = rate
        for stepping, trained in ((optimizer, ours), (official, theirs)):
            for p, gradient in zip(trained, gradients, strict=True):
                p.grad = gradient.clone()
            stepping.step()
        assert optimizer.param_groups[0]["lr"] == rate
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", TORCH_CLASSES)
def test_state_dict_can_be_exchanged_with_torch(name):
    ours, theirs = (new_parameters() for _ in range(2))
    settings = yaml_settings(name)
    optimizer = instantiate(settings, _convert_="all").build(ours)
    official = TORCH_CLASSES[name](
        theirs, lr=settings["lr"], weight_decay=settings["weight_decay"]
    )

    def take_step(stepping, trained, gradient):
        for p in trained:
            p.grad = torch.full_like(p, gradient)
        stepping.step()

    for step in range(6):
        take_step(official, theirs, 0.5 + step)
    optimizer.load_state_dict(official.state_dict())
    for p, other in zip(ours, theirs, strict=True):
        p.data.copy_(other.data)
    for step in range(6):
        if step == 3:
            official.load_state_dict(deepcopy(optimizer.state_dict()))
        take_step(optimizer, ours, 7.0 + step)
        take_step(official, theirs, 7.0 + step)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_state_of_other_parameters_is_refused():
    optimizer = Adam(**VALID).build(new_parameters())
    wider = [nn.Parameter(torch.ones(1)), *new_parameters()[1:]]
    for other in (new_parameters()[:1], [*new_parameters(), *wider], wider):
        with pytest.raises(ValueError, match="other parameters"):
            optimizer.load_state_dict(Adam(**VALID).build(other).state_dict())


def test_radam_continues_exactly_from_its_state_dict():
    uninterrupted, resumed = new_parameters(), new_parameters()
    first, second = (RAdam(**VALID).build(trained) for trained in (uninterrupted, resumed))
    for step in range(12):
        if step == 7:
            second.load_state_dict(deepcopy(first.state_dict()))
            for a, b in zip(uninterrupted, resumed, strict=True):
                b.data.copy_(a)
        for optimizer, trained in ((first, uninterrupted), (second, resumed)):
            for p in trained:
                p.grad = torch.full_like(p, 0.5 + step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, resumed, strict=True))


@every_optimizer
def test_number_is_a_constant_learning_rate(optimizer_class):
    assert optimizer_class(**VALID | {"lr": 0.5}).lr == Constant(0.5)


@every_optimizer
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_scheduled_learning_rate_begins_at_its_start(optimizer_class, start):
    schedule = Linear(start=start, end=1.0, steps=10)
    config = optimizer_class(**VALID | {"lr": schedule})
    assert config.lr is schedule
    assert config.build(new_parameters()).param_groups[0]["lr"] == start


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
def test_invalid_setting_is_refused(name, wrong):
    for optimizer_class in (Adam, AdamW, RAdam):
        with pytest.raises(ValidationError):
            optimizer_class(**VALID | {name: wrong})


@pytest.mark.parametrize("name", VALID)
def test_missing_setting_is_refused(name):
    for optimizer_class in (Adam, AdamW, RAdam):
        with pytest.raises(ValidationError):
            optimizer_class(**{key: value for key, value in VALID.items() if key != name})


def test_sgd_has_the_settings_of_its_option_file():
    optimizer = instantiate(yaml_settings("sgd"), _convert_="all").build(new_parameters())
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (1e-3, 0.9)
    assert not optimizer.defaults["weight_decay"] and not optimizer.defaults["nesterov"]


def test_sgd_applies_momentum_and_weight_decay():
    p = nn.Parameter(torch.ones(3))
    optimizer = SGD(lr=0.1, momentum=0.5, weight_decay=0.25).build([p])
    for _ in range(2):
        p.grad = torch.full_like(p, 7.0)
        optimizer.step()
    first = 1 - 0.1 * 7.25
    second = first - 0.1 * (0.5 * 7.25 + 7 + 0.25 * first)
    assert p.tolist() == pytest.approx([second] * 3)


@pytest.mark.parametrize(
    "wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}, {"betas": [0.9, 0.9]}]
)
def test_invalid_setting_of_sgd_is_refused(wrong):
    with pytest.raises(ValidationError):
        SGD(**{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | wrong)
