"""The mean and band of replicas."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae.tracking import Spread


def shown(folder, values: list[float]) -> dict[str, float]:
    with Spread(folder) as spread:
        spread.scalars(1, [{"elbo/train": value} for value in values])
    events = EventAccumulator(str(folder)).Reload()
    return {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}


def test_the_band_is_a_sample_standard_deviation_wide(tmp_path):
    curves = shown(tmp_path, [-1.0, -2.0, -6.0])
    deviation = math.sqrt(7.0)
    assert curves["elbo/train"] == pytest.approx(-3)
    assert curves["elbo/train_low"] == pytest.approx(-3 - deviation)
    assert curves["elbo/train_high"] == pytest.approx(-3 + deviation)


@pytest.mark.parametrize("odd", [[math.nan], [-math.inf], [math.inf, -math.inf]])
def test_a_replica_whose_elbo_is_no_number_leaves_the_others_alone(tmp_path, odd):
    """Its objective may still be one: then it goes on, and so does the run."""
    curves = shown(tmp_path, [-1.0, *odd])
    assert not math.isfinite(curves["elbo/train"])
    assert math.isnan(curves["elbo/train_low"])
