"""Published settings: what an experiment chooses for each estimator, and what overrides it."""

import math

import pytest
from omegaconf.errors import InterpolationResolutionError
from torch import nn

from tests.helpers import build_run, compose_config, option_names, resolve_config
from vae.config.describe import option_targets
from vae.config.instantiate import build
from vae.config.load import read_config, to_yaml
from vae.config.resolvers import is_class_of
from vae.config.resume import holds_complete_run
from vae.estimators import Estimator, GumbelRao, MinimumVariance, ReinMax, StraightThrough
from vae.objective import VIMCO, ConcreteELBO
from vae.optimizers import SGD, Adam, AdamW, OptimizerConfig, RAdam
from vae.runs.folder import CONFIG

pytestmark = pytest.mark.usefixtures("float32")

# Copied by hand from the table of settings in the replication of the paper: optimizer, learning
# rate and temperature.
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
SHORT = ["data=mnist_5k", "training.steps=9"]


def test_every_estimator_option_is_named_like_its_class():
    for name, target in option_targets("estimator").items():
        assert is_class_of(target, name)


# The settings


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "constant"])
def test_a_schedule_starts_at_the_published_rate(schedule):
    words = ["experiment=reinmax_16x8", "estimator=reinmax", f"optimizer/lr={schedule}"]
    words += ["optimizer.lr.warmup=0"] if schedule == "cosine" else []
    assert build_run(*words).optimizer.lr(0) == 7e-4
    assert build_run(*words, "published.reinmax.lr=1e-4").optimizer.lr(0) == 1e-4


@pytest.mark.parametrize(
    ("experiment", "estimator"), [(size, name) for size, rows in REINMAX.items() for name in rows]
)
def test_every_estimator_has_its_published_settings(experiment, estimator):
    run = build_run(f"experiment={experiment}", f"estimator={estimator}")
    optimizer, lr, temperature = REINMAX[experiment][estimator]
    assert type(run.optimizer) is optimizer
    assert run.optimizer.lr(0) == run.optimizer.lr(10**6) == lr
    schedules = run.objective.schedules()
    assert (schedules["temperature"](0) if "temperature" in schedules else None) == temperature
    assert experiment == f"reinmax_{run.top_level.latents}x{run.top_level.categories}"
    assert run.values["data"]["binarize"] == "none" and run.values["data"]["validation"] == 0
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
def test_jang_categorical_is_the_published_model_and_schedule(estimator, temperatures):
    run = build_run("experiment=jang_categorical", f"estimator={estimator}")
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
    assert run.top_level.importance_samples == 1000
    assert run.source.name == "MNIST, binarize=static, validation=10000"


@pytest.mark.parametrize(
    ("categories", "latents", "prior_temperature", "temperature"),
    [(2, 240, 1 / 2, 2 / 3), (4, 120, 2 / 3, 1), (8, 80, 2 / 5, 2 / 3)],
)
def test_maddison_240_is_the_published_model_for_each_number_of_categories(
    categories, latents, prior_temperature, temperature
):
    run = build_run("experiment=maddison_240", f"categories={categories}")
    model, schedules = run.objective.model, run.objective.schedules()
    assert isinstance(run.objective, ConcreteELBO)
    assert (model.latents, model.categories) == (latents, categories)
    assert latents * math.log2(categories) == 240
    assert widths(model.encoder) == [784, 240, 240, latents * categories]
    assert widths(model.decoder) == [latents * categories, 240, 240, 784]
    expected = {"prior_temperature": prior_temperature, "temperature": temperature}
    for name, value in expected.items():
        assert schedules[name](0) == schedules[name](10**7) == pytest.approx(value)
    assert model.prior_logits.requires_grad and model.mean_logits is not None
    assert type(run.optimizer) is Adam and run.optimizer.lr(0) == 1e-4
    assert run.optimizer.weight_decay == 0
    assert (run.values["training"]["steps"], run.training.batch_size) == (10**7, 64)
    assert run.source.name == "MNIST, binarize=static, validation=10000"


def test_maddison_240_takes_another_objective_but_no_other_number_of_categories():
    run = build_run("experiment=maddison_240", "objective=vimco")
    assert isinstance(run.objective, VIMCO) and run.optimizer.lr(0) == 1e-4
    with pytest.raises(InterpolationResolutionError, match="categories=10: .* 2, 4, 8"):
        build_run("experiment=maddison_240", "categories=10")


@pytest.mark.parametrize(
    ("name", "estimator", "start", "end"),
    [
        ("reinmax", ReinMax, 1.2, 1.2),
        ("straight_through", StraightThrough, 1.0, 1.0),
        ("gumbel_rao", GumbelRao, 1.0, 0.1),
        ("minimum_variance", MinimumVariance, 1.0, 1e6),
    ],
)
@pytest.mark.parametrize(("latents", "categories"), [(8, 64), (32, 16), (128, 4)])
def test_modern_experiments_have_the_published_recipe(
    latents, categories, name, estimator, start, end
):
    run = build_run(f"experiment=modern_{latents}x{categories}", f"estimator={name}")
    model, temperature = run.objective.model, run.objective.schedules()["temperature"]
    assert (model.latents, model.categories) == (latents, categories)
    assert widths(model.encoder) == [784, 512, 256, latents * categories]
    assert {type(module) for module in model.encoder} == {nn.Linear, nn.LeakyReLU}
    assert model.encoder[1].negative_slope == 0.2
    steps = 500 * 60_000 // 200
    assert isinstance(run.objective.estimator, estimator)
    assert (temperature(0), temperature(steps)) == pytest.approx((start, end))
    assert temperature(steps // 2) == pytest.approx((start * end) ** 0.5)  # by equal factors
    assert type(run.optimizer) is AdamW and run.optimizer.weight_decay == 0.01
    rates = [run.optimizer.lr(step) for step in (0, 1500, 3000, (3000 + steps) // 2, steps)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4, 0], abs=1e-5)
    assert run.values["data"]["binarize"] == "none" and run.values["data"]["validation"] == 0
    if name == "gumbel_rao":
        assert run.objective.estimator.inner_samples == 20


@pytest.mark.parametrize("experiment", option_names("experiment"))
def test_only_published_protocols_do_without_the_data_mean(experiment):
    """The default uses it in both networks. maddison_240 publishes only the output bias."""
    default = build_run(*SHORT).objective.model
    assert default.mean_logits is not None and default.input_mean is not None
    published = build_run(f"experiment={experiment}", "data=mnist_5k").objective.model
    assert published.input_mean is None
    assert (published.mean_logits is not None) == (experiment == "maddison_240")


@pytest.mark.parametrize(("networks", "hidden"), [("linear", []), ("nonlinear", [200, 200])])
def test_binary_200_is_the_published_model_and_protocol(networks, hidden):
    words = [f"experiment=binary_200_{networks}", "estimator=reinforce", "estimator.samples=2"]
    run = build_run(*words)
    model = run.objective.model
    assert (model.latents, model.categories) == (200, 2)
    assert not model.uses_data_mean and not model.prior_logits.requires_grad
    assert widths(model.encoder) == [784, *hidden, 400]
    assert widths(model.decoder) == [400, *hidden, 784]
    activations = [m for m in model.modules() if isinstance(m, nn.LeakyReLU)]
    assert [a.negative_slope for a in activations] == [0.3] * 2 * len(hidden)
    assert type(run.optimizer) is Adam and run.optimizer.lr(0) == run.optimizer.lr(10**6) == 1e-3
    assert (run.total_steps, run.training.batch_size) == (10**6, 100)
    assert run.source.name == "MNIST, binarize=dynamic, validation=10000"
    assert run.objective.estimator.samples == 2


def test_binary_200_takes_the_settings_of_disarm():
    overrides = "optimizer.lr=1e-4 training.batch_size=50 training.epochs=1000 "
    overrides += "model.prior=learned model.output_bias=data_mean model.center_input=true"
    run = build_run("experiment=binary_200_nonlinear", "estimator=disarm", *overrides.split())
    model = run.objective.model
    assert model.mean_logits is not None and model.input_mean is not None
    assert (run.total_steps, run.optimizer.lr(0)) == (10**6, 1e-4)


def widths(network: nn.Module) -> list[int]:
    """Return the number of inputs, and of outputs of each linear layer."""
    layers = [network] if isinstance(network, nn.Linear) else list(network)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


# What overrides them


def test_the_command_line_overrides_published_settings():
    words = ["experiment=reinmax_8x64", "estimator=gumbel_rao", *SHORT]  # Adam, 7e-4, 2.0

    def settings(*overrides: str) -> tuple[type, float, float]:
        values = resolve_config(compose_config(*words, *overrides), total_steps=9)
        optimizer = build(values, "optimizer", OptimizerConfig)
        estimator = build(values, "estimator", Estimator)
        return type(optimizer), optimizer.lr(0), estimator.temperature(9)

    assert settings() == (Adam, 7e-4, 2.0)
    assert settings("optimizer=radam") == (RAdam, 7e-4, 2.0)
    assert settings("optimizer.lr=0.1") == (Adam, 0.1, 2.0)
    assert settings("optimizer/lr=linear") == (Adam, 7e-4, 2.0)  # starts at the published rate
    assert settings("estimator.temperature=0.7") == (Adam, 7e-4, 0.7)
    assert settings("estimator/temperature=linear") == (Adam, 7e-4, 0.5)
    assert settings("published.gumbel_rao.lr=0.2") == (Adam, 0.2, 2.0)
    assert settings("~published") == (Adam, 1e-3, 0.5)  # as without an experiment


@pytest.mark.parametrize(
    ("overrides", "optimizer", "start"),
    [
        ("experiment=modern_8x64 optimizer.lr.start=3e-3", AdamW, 3e-3),
        ("experiment=modern_8x64 optimizer.lr=3e-3", AdamW, 3e-3),
        ("experiment=modern_8x64 optimizer=adam optimizer/lr=linear", Adam, 1e-3),
        ("experiment=jang_categorical optimizer=adam", Adam, 3e-3),
        ("experiment=jang_categorical optimizer=adam optimizer.lr=3e-4", Adam, 3e-4),
        ("experiment=maddison_240 optimizer=sgd optimizer/lr=exponential", SGD, 1e-4),
    ],
)
def test_the_command_line_overrides_the_schedule_of_an_experiment(overrides, optimizer, start):
    run = build_run(*overrides.split())
    assert type(run.optimizer) is optimizer
    assert max(run.optimizer.lr(step) for step in (0, 3000)) == start


def test_the_values_of_a_run_hold_the_settings_and_not_the_table(tmp_path):
    plain = build_run(*SHORT).values
    run = build_run("experiment=reinmax_24x4", "estimator=gumbel_rao", *SHORT)
    assert run.values.keys() == plain.keys()
    assert run.values["optimizer"].keys() == plain["optimizer"].keys()
    (tmp_path / CONFIG).write_text(to_yaml(run.values))
    assert "${" not in (tmp_path / CONFIG).read_text()
    values = read_config(tmp_path)
    assert values["optimizer"]["lr"] == 5e-4 and values["estimator"]["temperature"] == 0.3
    by_hand = build_run(
        *("estimator=gumbel_rao", *SHORT),
        *("data.validation=0", "latents=24", "categories=4", "training.epochs=160"),
        *("optimizer=radam", "optimizer.lr=5e-4", "estimator.temperature=0.3"),
        *("model.output_bias=default", "model.center_input=false"),
    )
    assert holds_complete_run(tmp_path, CONFIG, by_hand.values, by_hand.total_steps)
