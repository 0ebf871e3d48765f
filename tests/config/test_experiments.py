"""Published settings: what an experiment picks for an estimator, and what picks more than it."""

import math

import pytest
from omegaconf.errors import InterpolationResolutionError
from test_configs import CONFIGS, _no_data, composed, prepared  # noqa: F401
from torch import nn

from vae.config import describe as configuration
from vae.config import resolvers as published
from vae.config import load as run_folder
from vae.estimators import GumbelRao, MinimumVariance, ReinMax, StraightThrough
from vae.config.instantiate import build
from vae.objective import VIMCO, ConcreteELBO
from vae.optimizers import SGD, Adam, AdamW, RAdam
from vae.utils.errors import UserError

# By hand from the table of settings in the paper's replication: optimizer, rate, temperature.
REINMAX = {
    "reinmax_4x8": {
        "reinmax": (Adam, 5e-4, 1.3),
        "straight_through": (Adam, 1e-3, 1.3),
        "straight_through_gumbel": (Adam, 3e-4, 0.5),
        "gumbel_rao": (Adam, 5e-4, 0.5),
        "gapped_straight_through": (Adam, 5e-4, 1.0),
        "reinmax_rao": (Adam, 5e-4, 1.0),
        "reinforce": (Adam, 5e-4, None),
    },
    "reinmax_24x4": {
        "reinmax": (RAdam, 5e-4, 1.5),
        "straight_through": (RAdam, 1e-3, 1.5),
        "straight_through_gumbel": (RAdam, 5e-4, 0.3),
        "gumbel_rao": (RAdam, 5e-4, 0.3),
        "gapped_straight_through": (RAdam, 5e-4, 0.5),
        "reinmax_rao": (RAdam, 5e-4, 0.7),
        "reinforce": (RAdam, 5e-4, None),
    },
    "reinmax_16x8": {
        "reinmax": (RAdam, 7e-4, 1.5),
        "straight_through": (RAdam, 1e-3, 1.5),
        "straight_through_gumbel": (RAdam, 5e-4, 0.5),
        "gumbel_rao": (RAdam, 7e-4, 0.7),
        "gapped_straight_through": (RAdam, 7e-4, 0.5),
        "reinmax_rao": (RAdam, 7e-4, 1.0),
        "reinforce": (RAdam, 7e-4, None),
    },
    "reinmax_12x16": {
        "reinmax": (RAdam, 7e-4, 1.5),
        "straight_through": (Adam, 5e-4, 1.5),
        "straight_through_gumbel": (RAdam, 7e-4, 0.7),
        "gumbel_rao": (Adam, 5e-4, 1.0),
        "gapped_straight_through": (RAdam, 7e-4, 0.5),
        "reinmax_rao": (RAdam, 7e-4, 1.0),
        "reinforce": (RAdam, 7e-4, None),
    },
    "reinmax_8x64": {
        "reinmax": (RAdam, 5e-4, 1.5),
        "straight_through": (Adam, 5e-4, 1.5),
        "straight_through_gumbel": (RAdam, 7e-4, 0.7),
        "gumbel_rao": (Adam, 7e-4, 2.0),
        "gapped_straight_through": (RAdam, 7e-4, 0.7),
        "reinmax_rao": (RAdam, 7e-4, 1.0),
        "reinforce": (RAdam, 5e-4, None),
    },
    "reinmax_30x10": {
        "reinmax": (RAdam, 5e-4, 1.3),
        "straight_through": (RAdam, 7e-4, 1.4),
        "straight_through_gumbel": (RAdam, 5e-4, 0.5),
        "gumbel_rao": (RAdam, 5e-4, 1.0),
        "gapped_straight_through": (RAdam, 5e-4, 0.5),
        "reinmax_rao": (RAdam, 5e-4, 0.7),
        "reinforce": (RAdam, 5e-4, None),
    },
}
HERE = ["data=mnist_5k", "training.steps=9"]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "constant"])
def test_a_schedule_begins_at_the_published_rate(tmp_path, schedule):
    words = ["experiment=reinmax_16x8", "estimator=reinmax", f"optimizer/lr={schedule}"]
    words += ["optimizer.lr.warmup=0"] if schedule == "cosine" else []
    for rate, changed in ((7e-4, []), (1e-4, ["published.reinmax.lr=1e-4"])):
        folder = tmp_path / str(rate)
        folder.mkdir()
        assert prepared(folder, *words, *changed).optimizer.lr(0) == rate


@pytest.mark.parametrize(
    ("experiment", "estimator"), [(size, name) for size, rows in REINMAX.items() for name in rows]
)
def test_every_estimator_gets_what_it_was_published_with(tmp_path, experiment, estimator):
    run = prepared(tmp_path, f"experiment={experiment}", f"estimator={estimator}")
    optimizer, lr, temperature = REINMAX[experiment][estimator]
    assert type(run.optimizer) is optimizer
    assert run.optimizer.lr(0) == run.optimizer.lr(10**6) == lr
    schedules = run.objective.schedules()
    assert (schedules["temperature"](0) if "temperature" in schedules else None) == temperature
    assert f"{run.settings.categories}x{run.settings.latents}" in experiment
    assert run.config["data"]["binarize"] == "none" and run.config["data"]["validation"] == 0
    assert (run.training.epochs, run.training.batch_size) == (160, 100)


@pytest.mark.parametrize(
    ("estimator", "temperatures"),
    [
        ("gumbel_softmax", (1.0, 0.5)),
        ("straight_through_gumbel", (1.0, 0.5)),
        ("straight_through", (1.0, 1.0)),
        ("reinforce_learned_baseline", None),
    ],
)
def test_jang(tmp_path, estimator, temperatures):
    run = prepared(tmp_path, "experiment=jang_categorical", f"estimator={estimator}")
    assert type(run.optimizer) is SGD and run.optimizer.momentum == 0.9
    assert run.optimizer.lr(0) in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    schedule = run.objective.schedules().get("temperature")
    assert (schedule and (schedule(0), schedule(10**6))) == temperatures
    if temperatures == (1.0, 0.5):
        assert schedule(999) == 1.0
        assert 1e-5 <= -math.log(schedule(1000)) / 1000 <= 1e-4
    model = run.objective.model
    assert widths(model.encoder) == [784, 200] and widths(model.decoder) == [200, 200, 784]
    assert (model.latents, model.categories) == (20, 10)
    assert run.settings.importance_samples == 1000
    assert run.data.name == "MNIST, binarize=static, validation=10000"


@pytest.mark.parametrize(
    ("categories", "latents", "prior", "posterior"),
    [(2, 240, 1 / 2, 2 / 3), (4, 120, 2 / 3, 1), (8, 80, 2 / 5, 2 / 3)],
)
def test_maddison(tmp_path, categories, latents, prior, posterior):
    run = prepared(tmp_path, "experiment=maddison_240", f"categories={categories}")
    model, schedules = run.objective.model, run.objective.schedules()
    assert isinstance(run.objective, ConcreteELBO)
    assert (model.latents, model.categories) == (latents, categories)
    assert latents * math.log2(categories) == 240
    assert widths(model.encoder) == [784, 240, 240, latents * categories]
    assert widths(model.decoder) == [latents * categories, 240, 240, 784]
    for name, value in (("prior_temperature", prior), ("temperature", posterior)):
        assert schedules[name](0) == schedules[name](10**7) == pytest.approx(value)
    assert type(run.optimizer) is Adam and run.optimizer.lr(0) in (1e-4, 3e-4, 1e-3)
    assert (run.config["training"]["steps"], run.training.batch_size) == (10**7, 64)
    assert run.data.name == "MNIST, binarize=static, validation=10000"


def test_maddison_against_other_objectives(tmp_path):
    experiment = prepared(tmp_path, "experiment=maddison_240", "objective=vimco")
    assert isinstance(experiment.objective, VIMCO) and experiment.optimizer.lr(0) == 3e-4
    with pytest.raises(InterpolationResolutionError, match="categories=10: .* 2, 4, 8"):
        prepared(tmp_path, "experiment=maddison_240", "categories=10")


@pytest.mark.parametrize(
    ("estimator", "kind", "start", "end"),
    [
        ("reinmax", ReinMax, 1.2, 1.2),
        ("straight_through", StraightThrough, 1.0, 1.0),
        ("gumbel_rao", GumbelRao, 1.0, 0.1),
        ("minimum_variance", MinimumVariance, 1.0, 1e6),
    ],
)
@pytest.mark.parametrize(("latents", "categories"), [(8, 64), (32, 16), (128, 4)])
def test_modern(tmp_path, latents, categories, estimator, kind, start, end):
    chosen = [f"experiment=modern_{latents}x{categories}", f"estimator={estimator}"]
    run = prepared(tmp_path, *chosen)
    model, temperature = run.objective.model, run.objective.schedules()["temperature"]
    assert (model.latents, model.categories) == (latents, categories)
    assert widths(model.encoder) == [784, 512, 256, latents * categories]
    assert {type(m) for m in model.encoder} == {nn.Linear, nn.LeakyReLU}
    assert model.encoder[1].negative_slope == 0.2
    steps = 500 * 60_000 // 200
    assert isinstance(run.objective.estimator, kind)
    assert (temperature(0), temperature(steps)) == pytest.approx((start, end))
    assert temperature(steps // 2) == pytest.approx((start * end) ** 0.5)  # by equal factors
    assert type(run.optimizer) is AdamW and run.optimizer.weight_decay == 0.01
    rates = [run.optimizer.lr(step) for step in (0, 1500, 3000, (3000 + steps) // 2, steps)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0], abs=1e-5)
    assert run.config["data"]["binarize"] == "none" and run.config["data"]["validation"] == 0
    if estimator == "gumbel_rao":
        assert run.objective.estimator.inner_samples == 20


def widths(network: nn.Module) -> list[int]:
    layers = [network] if isinstance(network, nn.Linear) else list(network)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


def test_the_command_line_wins(tmp_path):
    chosen = ["experiment=reinmax_8x64", "estimator=gumbel_rao", *HERE]  # Adam, 7e-4, 2.0

    def picked(*overrides: str) -> tuple[type, float, float]:
        config = composed(*chosen, *overrides)
        config.training.steps = 9
        optimizer = build(config, "optimizer")
        return type(optimizer), optimizer.lr(0), build(config, "estimator").temperature(9)

    assert picked() == (Adam, 7e-4, 2.0)
    assert picked("optimizer=radam") == (RAdam, 7e-4, 2.0)
    assert picked("optimizer.lr=0.1") == (Adam, 0.1, 2.0)
    assert picked("optimizer/lr=linear") == (Adam, 7e-4, 2.0)  # from the published rate on
    assert picked("estimator.temperature=0.7") == (Adam, 7e-4, 0.7)
    assert picked("estimator/temperature=linear") == (Adam, 7e-4, 0.5)
    assert picked("published.gumbel_rao.lr=0.2") == (Adam, 0.2, 2.0)
    assert picked("~published") == (Adam, 1e-3, 0.5)  # as without an experiment


@pytest.mark.parametrize(
    ("overrides", "optimizer", "start"),
    [
        ("experiment=modern_8x64 optimizer.lr.start=3e-3", AdamW, 3e-3),
        ("experiment=modern_8x64 optimizer.lr=3e-3", AdamW, 3e-3),
        ("experiment=modern_8x64 optimizer=adam optimizer/lr=linear", Adam, 1e-3),
        ("experiment=jang_categorical optimizer=adam", Adam, 3e-3),
        ("experiment=jang_categorical optimizer=adam optimizer.lr=3e-4", Adam, 3e-4),
        ("experiment=maddison_240 optimizer=sgd optimizer/lr=exponential", SGD, 3e-4),
    ],
)
def test_so_it_does_over_schedules(tmp_path, overrides, optimizer, start):
    run = prepared(tmp_path, *overrides.split())
    assert type(run.optimizer) is optimizer
    assert max(run.optimizer.lr(step) for step in (0, 3000)) == start


def test_a_run_says_what_was_picked_and_not_from_where(tmp_path):
    plain = prepared(tmp_path, *HERE).config
    other = tmp_path / "other"
    other.mkdir()
    same = ["experiment=reinmax_24x4", "estimator=gumbel_rao", *HERE]
    run = prepared(other, *same)
    assert run.config.keys() == plain.keys()
    assert run.config["optimizer"].keys() == plain["optimizer"].keys()
    assert "${" not in (other / run_folder.CONFIG).read_text()
    config = run_folder.read_config(other)
    assert config.optimizer.lr == 5e-4 and config.estimator.temperature == 0.3
    by_hand = [
        *same[1:],
        *("data.validation=0", "latents=24", "categories=4", "training.epochs=160"),
        *("optimizer=radam", "optimizer.lr=5e-4", "estimator.temperature=0.3"),
    ]
    prepared(other, *by_hand)  # the same run, or this is refused


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+published=3", "published must be a table"),
        ("+published.reinmx.lr=3", "published.reinmx: there is no such estimator"),
        ("+published.reinmax=3", "published.reinmax must be"),
        ("+published.reinmax.speed=3", "published.reinmax.speed"),
        ("+published.reinmax.lr=-1", "published.reinmax.lr"),
        ("+published.others.optimizer=adam", "published.others.optimizer=adam"),
    ],
)
def test_a_table_that_nobody_would_read_is_refused(tmp_path, override, expected):
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, "data=mnist_5k", override)


def test_every_estimator_is_called_as_its_class():
    for name, target in configuration.option_names(CONFIGS, "estimator").items():
        assert published.is_called(target, name)
