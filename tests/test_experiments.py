"""Published settings: what an experiment picks for an estimator, and what picks more than it."""

import pytest
from test_configs import CONFIGS, _no_data, composed, prepared  # noqa: F401

from vae import door, published
from vae.optimizers import Adam, RAdam
from vae.validation import UserError

# By hand from the table of settings in the paper's replication: optimizer, rate, temperature.
REINMAX = {
    "reinmax_8x4": {
        "reinmax": (Adam, 5e-4, 1.3),
        "straight_through": (Adam, 1e-3, 1.3),
        "straight_through_gumbel": (Adam, 3e-4, 0.5),
        "gumbel_rao": (Adam, 5e-4, 0.5),
        "gapped_straight_through": (Adam, 5e-4, 1.0),
        "reinmax_rao": (Adam, 5e-4, 1.0),
        "reinforce": (Adam, 5e-4, None),
    },
    "reinmax_4x24": {
        "reinmax": (RAdam, 5e-4, 1.5),
        "straight_through": (RAdam, 1e-3, 1.5),
        "straight_through_gumbel": (RAdam, 5e-4, 0.3),
        "gumbel_rao": (RAdam, 5e-4, 0.3),
        "gapped_straight_through": (RAdam, 5e-4, 0.5),
        "reinmax_rao": (RAdam, 5e-4, 0.7),
        "reinforce": (RAdam, 5e-4, None),
    },
    "reinmax_8x16": {
        "reinmax": (RAdam, 7e-4, 1.5),
        "straight_through": (RAdam, 1e-3, 1.5),
        "straight_through_gumbel": (RAdam, 5e-4, 0.5),
        "gumbel_rao": (RAdam, 7e-4, 0.7),
        "gapped_straight_through": (RAdam, 7e-4, 0.5),
        "reinmax_rao": (RAdam, 7e-4, 1.0),
        "reinforce": (RAdam, 7e-4, None),
    },
    "reinmax_16x12": {
        "reinmax": (RAdam, 7e-4, 1.5),
        "straight_through": (Adam, 5e-4, 1.5),
        "straight_through_gumbel": (RAdam, 7e-4, 0.7),
        "gumbel_rao": (Adam, 5e-4, 1.0),
        "gapped_straight_through": (RAdam, 7e-4, 0.5),
        "reinmax_rao": (RAdam, 7e-4, 1.0),
        "reinforce": (RAdam, 7e-4, None),
    },
    "reinmax_64x8": {
        "reinmax": (RAdam, 5e-4, 1.5),
        "straight_through": (Adam, 5e-4, 1.5),
        "straight_through_gumbel": (RAdam, 7e-4, 0.7),
        "gumbel_rao": (Adam, 7e-4, 2.0),
        "gapped_straight_through": (RAdam, 7e-4, 0.7),
        "reinmax_rao": (RAdam, 7e-4, 1.0),
        "reinforce": (RAdam, 5e-4, None),
    },
    "reinmax_10x30": {
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


def test_the_command_line_wins(tmp_path):
    chosen = ["experiment=reinmax_64x8", "estimator=gumbel_rao", *HERE]  # Adam, 7e-4, 2.0

    def picked(*overrides: str) -> tuple[type, float, float]:
        config = composed(*chosen, *overrides)
        config.training.steps = 9
        optimizer = door.build(config, "optimizer")
        return type(optimizer), optimizer.lr(0), door.build(config, "estimator").temperature(9)

    assert picked() == (Adam, 7e-4, 2.0)
    assert picked("optimizer=radam") == (RAdam, 7e-4, 2.0)
    assert picked("optimizer.lr=0.1") == (Adam, 0.1, 2.0)
    assert picked("optimizer/lr=linear") == (Adam, 1e-3, 2.0)
    assert picked("estimator.temperature=0.7") == (Adam, 7e-4, 0.7)
    assert picked("estimator/temperature=linear") == (Adam, 7e-4, 0.5)
    assert picked("published.gumbel_rao.lr=0.2") == (Adam, 0.2, 2.0)
    assert picked("~published") == (Adam, 1e-3, 0.5)  # as without an experiment


def test_a_run_says_what_was_picked_and_not_from_where(tmp_path):
    plain = prepared(tmp_path, *HERE).config
    other = tmp_path / "other"
    other.mkdir()
    same = ["experiment=reinmax_4x24", "estimator=gumbel_rao", *HERE, "~data.validation"]
    run = prepared(other, *same)
    assert run.config.keys() == plain.keys()
    assert run.config["optimizer"].keys() == plain["optimizer"].keys()
    assert "${" not in (other / door.CONFIG).read_text()
    config = door.read_config(other)
    assert config.optimizer.lr == 5e-4 and config.estimator.temperature == 0.3
    by_hand = [
        *same[1:-1],
        *("latents=24", "categories=4", "training.epochs=160"),
        *("optimizer=radam", "optimizer.lr=5e-4", "estimator.temperature=0.3"),
    ]
    prepared(other, *by_hand)  # the same run, or this is refused


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+published=3", "published must be a table"),
        ("+published.reinmx.lr=3", "published.reinmx: there is no such estimator"),
        ("+published.reinmax=3", "published.reinmax must be"),
        ("+published.reinmax.rate=3", "published.reinmax.rate"),
        ("+published.reinmax.lr=-1", "published.reinmax.lr"),
        ("+published.others.optimizer=adam", "published.others.optimizer=adam"),
    ],
)
def test_a_table_that_nobody_would_read_is_refused(tmp_path, override, expected):
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, "data=mnist_5k", override)


def test_every_estimator_is_called_as_its_class():
    for name, target in door.option_names(CONFIGS, "estimator").items():
        assert published.is_called(target, name)
