"""The mean over replicas, and the band around it, as TensorBoard reads them."""

import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae.tracking import ReplicaMeanWriter


def write_and_read(folder: Path, values: list[float]) -> dict[str, float]:
    """Return the curves that are written if the ELBO of each replica has the given value."""
    with ReplicaMeanWriter(folder) as writer:
        writer.log_scalars(1, [{"elbo/train": value} for value in values])
    events = EventAccumulator(str(folder)).Reload()
    return {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}


def test_band_is_the_mean_plus_and_minus_the_sample_standard_deviation(tmp_path):
    curves = write_and_read(tmp_path, [-1.0, -2.0, -6.0])
    deviation = math.sqrt(7.0)
    assert curves["elbo/train"] == pytest.approx(-3)
    assert curves["elbo/train_low"] == pytest.approx(-3 - deviation)
    assert curves["elbo/train_high"] == pytest.approx(-3 + deviation)


@pytest.mark.parametrize("nonfinite", [[math.nan], [-math.inf], [math.inf, -math.inf]])
def test_elbo_that_is_not_finite_makes_mean_and_band_not_finite(tmp_path, nonfinite):
    """The writer must not raise: the training objective may be finite all the same."""
    curves = write_and_read(tmp_path, [-1.0, *nonfinite])
    assert not math.isfinite(curves["elbo/train"])
    assert math.isnan(curves["elbo/train_low"])
