"""Which replicas a configuration asks for."""

import pytest

from vae.config.replicas import expand_replicas
from vae.utils.errors import UserError


def values(**changed: object) -> dict[str, object]:
    """Return a configuration with lists, none of which asks for replicas."""
    return {
        "seed": 4,
        "latents": 2,
        "model": {"networks": {"encoder_sizes": [8, 8]}},
        "optimizer": {"lr": 0.001, "betas": [0.9, 0.999]},
        "objective": {"beta": 1.0},
        "estimator": {"temperature": 0.5},
    } | changed


def names(**changed: object) -> list[tuple[str, str]]:
    """Return the name and the setting of each replica."""
    replicas = expand_replicas(values(**changed))
    return [(replica.name, replica.name_without_seed) for replica in replicas]


def test_without_seeds_and_lists_the_configuration_stays_as_it_is():
    (replica,) = expand_replicas(values(seeds=None))
    assert replica == ("", "", values())


def test_a_number_of_seeds_is_counted_from_the_seed():
    replicas = expand_replicas(values(seeds=3))
    assert [(replica.name, replica.name_without_seed) for replica in replicas] == [
        ("seed_4", ""),
        ("seed_5", ""),
        ("seed_6", ""),
    ]
    for seed, replica in zip((4, 5, 6), replicas, strict=True):
        assert replica.values == values(seed=seed)  # the configuration of a run alone


def test_seeds_may_be_a_list():
    replicas = expand_replicas(values(seeds=[7, 3]))
    assert [(replica.name, replica.values["seed"]) for replica in replicas] == [
        ("seed_7", 7),
        ("seed_3", 3),
    ]


def test_one_seed_makes_one_replica_with_a_name():
    assert names(seeds=1) == [("seed_4", "")]


def test_each_learning_rate_is_a_setting():
    assert names(optimizer={"lr": [0.1, 1e-3, 1]}) == [
        ("lr_0.1", "lr_0.1"),
        ("lr_0.001", "lr_0.001"),
        ("lr_1", "lr_1"),
    ]


def test_every_seed_is_combined_with_every_rate_beta_and_temperature():
    replicas = expand_replicas(
        values(
            seeds=2,
            optimizer={"lr": [0.1, 0.2], "betas": [0.9, 0.999]},
            objective={"beta": [1, 4]},
            estimator={"temperature": [0.5, 2.0]},
        )
    )
    assert len(replicas) == 2**4 == len({replica.name for replica in replicas})
    assert replicas[0].name == "seed_4_lr_0.1_beta_1_temperature_0.5"
    assert replicas[0].name_without_seed == "lr_0.1_beta_1_temperature_0.5"
    assert replicas[-1].name == "seed_5_lr_0.2_beta_4_temperature_2"
    assert replicas[-1].values == values(
        seed=5,
        optimizer={"lr": 0.2, "betas": [0.9, 0.999]},
        objective={"beta": 4},
        estimator={"temperature": 2.0},
    )
    settings = [replica.name_without_seed for replica in replicas]
    assert all(settings.count(setting) == 2 for setting in settings)


@pytest.mark.parametrize(
    "group, key",
    [
        ("objective", "prior_temperature"),
        ("estimator", "forward_temperature"),
        ("estimator", "backward_temperature"),
    ],
)
def test_a_list_of_any_temperature_makes_replicas(group, key):
    changed = {group: {key: [1, 2]}}
    assert names(**changed) == [(f"{key}_1", f"{key}_1"), (f"{key}_2", f"{key}_2")]


def test_replicas_share_no_mutable_value():
    first, second = expand_replicas(values(seeds=2))
    first.values["model"]["networks"]["encoder_sizes"].append(9)
    assert second.values["model"] == values()["model"]


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"networks": {"encoder_sizes": [8, 16]}}},
        {"optimizer": {"lr": 0.001, "betas": [0.5, 0.9]}},
        {"latents": [2, 3]},  # building the run refuses it
        {"optimizer": {"lr": {"values": [0.1, 0.2], "boundaries": [5]}}},  # a schedule
        {"estimator": None},
        {"estimator": "reinmax"},
    ],
)
def test_any_other_list_makes_no_replicas(changed):
    (replica,) = expand_replicas(values(**changed))
    assert replica == ("", "", values(**changed))


@pytest.mark.parametrize("seeds", [0, -1, True, 1.5, "x", {"a": 1}])
def test_seeds_that_are_no_positive_number_are_refused(seeds):
    with pytest.raises(UserError, match="^seeds=.*give the number of seeds, or a list of them"):
        expand_replicas(values(seeds=seeds))


@pytest.mark.parametrize("replica_values", [[], [1, 1], [0.5, 1, 1.0]])
@pytest.mark.parametrize("key", ["seeds", "optimizer.lr", "estimator.temperature"])
def test_an_empty_list_and_a_list_with_equal_values_are_refused(key, replica_values):
    group, _, name = key.rpartition(".")
    changed = {group: {name: replica_values}} if group else {name: replica_values}
    with pytest.raises(UserError, match=f"^{key}=.*a list needs values, all of them different"):
        expand_replicas(values(**changed))


def test_rates_that_differ_in_a_late_digit_have_different_names():
    assert len(set(names(optimizer={"lr": [0.001, 0.0010000001]}))) == 2


@pytest.mark.parametrize("value", [None, "x/y", {"start": 1.0}, [1.0]])
def test_a_list_with_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(UserError, match="^optimizer.lr=.*numbers"):
        expand_replicas(values(optimizer={"lr": [0.1, value]}))


@pytest.mark.parametrize("seed", ["x", True, None])
def test_seeds_cannot_be_counted_from_a_seed_that_is_no_number(seed):
    with pytest.raises(UserError, match="^seed=.*must be a number"):
        expand_replicas(values(seed=seed, seeds=2))
