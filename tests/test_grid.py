"""Which replicas a configuration asks for."""

import pytest

from vae.config import replicas as grid


def config(**given) -> dict:
    """As the door hands it over, with lists where none is a product."""
    return {
        "seed": 4,
        "latents": 2,
        "model": {"networks": {"encoder_sizes": [8, 8]}},
        "optimizer": {"lr": 0.001, "betas": [0.9, 0.999]},
        "objective": {"beta": 1.0},
        "estimator": {"temperature": 0.5},
    } | given


def names(**given) -> list[tuple[str, str]]:
    return [(each.name, each.setting) for each in grid.replicas(config(**given))]


def test_where_nothing_varies_there_is_the_one_configuration():
    (only,) = grid.replicas(config(seeds=None))
    assert only == ("", "", config())


def test_seeds_follow_on_the_seed():
    found = grid.replicas(config(seeds=3))
    assert [(each.name, each.setting) for each in found] == [
        ("seed_4", ""),
        ("seed_5", ""),
        ("seed_6", ""),
    ]
    for seed, each in zip((4, 5, 6), found, strict=True):
        assert each.config == config(seed=seed)  # what the run alone is made of


def test_seeds_may_be_listed():
    found = grid.replicas(config(seeds=[7, 3]))
    assert [(each.name, each.config["seed"]) for each in found] == [("seed_7", 7), ("seed_3", 3)]


def test_one_seed_is_a_replica_too():
    assert names(seeds=1) == [("seed_4", "")]


def test_rates_without_seeds_are_each_a_setting():
    assert names(optimizer={"lr": [0.1, 1e-3, 1]}) == [
        ("lr_0.1", "lr_0.1"),
        ("lr_0.001", "lr_0.001"),
        ("lr_1", "lr_1"),
    ]


def test_every_seed_goes_with_every_rate_with_every_temperature():
    found = grid.replicas(
        config(
            seeds=2,
            optimizer={"lr": [0.1, 0.2], "betas": [0.9, 0.999]},
            objective={"beta": [1, 4]},
            estimator={"temperature": [0.5, 2.0]},
        )
    )
    assert len(found) == 2**4 == len({each.name for each in found})
    assert found[0].name == "seed_4_lr_0.1_beta_1_temperature_0.5"
    assert found[0].setting == "lr_0.1_beta_1_temperature_0.5"
    assert found[-1].name == "seed_5_lr_0.2_beta_4_temperature_2"
    assert found[-1].config == config(
        seed=5,
        optimizer={"lr": 0.2, "betas": [0.9, 0.999]},
        objective={"beta": 4},
        estimator={"temperature": 2.0},
    )
    settings = [each.setting for each in found]
    assert all(settings.count(setting) == 2 for setting in settings)


@pytest.mark.parametrize(
    "group, key",
    [
        ("objective", "prior_temperature"),
        ("estimator", "forward_temperature"),
        ("estimator", "backward_temperature"),
    ],
)
def test_other_temperatures_multiply_too(group, key):
    given = {group: {key: [1, 2]}}
    assert names(**given) == [(f"{key}_1", f"{key}_1"), (f"{key}_2", f"{key}_2")]


def test_replicas_share_nothing_that_can_be_changed():
    one, other = grid.replicas(config(seeds=2))
    one.config["model"]["networks"]["encoder_sizes"].append(9)
    assert other.config["model"] == config()["model"]


@pytest.mark.parametrize(
    "given",
    [
        {"model": {"networks": {"encoder_sizes": [8, 16]}}},
        {"optimizer": {"lr": 0.001, "betas": [0.5, 0.9]}},
        {"latents": [2, 3]},  # its own check refuses it
        {"optimizer": {"lr": {"values": [0.1, 0.2], "boundaries": [5]}}},  # of a schedule
        {"estimator": None},
        {"estimator": "reinmax"},
    ],
)
def test_a_list_elsewhere_is_left_alone(given):
    (only,) = grid.replicas(config(**given))
    assert only == ("", "", config(**given))


@pytest.mark.parametrize("seeds", [0, -1, True, 1.5, "x", {"a": 1}])
def test_no_number_of_seeds_is_refused(seeds):
    with pytest.raises(ValueError, match="^seeds=.*how many, from seed on, or a list of them"):
        grid.replicas(config(seeds=seeds))


@pytest.mark.parametrize("values", [[], [1, 1], [0.5, 1, 1.0]])
@pytest.mark.parametrize("key", ["seeds", "optimizer.lr", "estimator.temperature"])
def test_a_list_of_none_or_twice_the_same_is_refused(key, values):
    group, _, name = key.rpartition(".")
    given = {group: {name: values}} if group else {name: values}
    with pytest.raises(ValueError, match=f"^{key}=.*needs values that differ"):
        grid.replicas(config(**given))


def test_rates_that_differ_in_their_last_digit_are_two():
    close = [0.001, 0.0010000001]
    assert len(set(names(optimizer={"lr": close}))) == 2


@pytest.mark.parametrize("value", [None, "x/y", {"start": 1.0}, [1.0]])
def test_what_is_no_number_makes_no_folder(value):
    with pytest.raises(ValueError, match="^optimizer.lr=.*numbers"):
        grid.replicas(config(optimizer={"lr": [0.1, value]}))


@pytest.mark.parametrize("seed", ["x", True, None])
def test_seeds_follow_on_a_number(seed):
    with pytest.raises(ValueError, match="^seed=.*no number"):
        grid.replicas(config(seed=seed, seeds=2))
