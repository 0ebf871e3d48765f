"""The curves of resumed runs in TensorBoard, and the mean over replicas with its band."""

import math
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from tests.helpers import TINY, subfolders
from vae.tracking import Logger, ReplicaMeanWriter


def read_all(folder: Path, tag: str) -> list[int]:
    """Return the steps of all points of a tag, as a reader finds them that discards none.

    TensorBoard's default reader discards a point only if a point of the same tag with an equal or
    smaller step follows.
    """
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    return [point.step for point in events.Scalars(tag)] if tag in events.scalars.Keys() else []


# Resumed runs


def test_an_extended_run_has_the_results_and_the_codes_of_its_end_alone(script, float32, tmp_path):
    words = [*TINY, "training.epochs=1", "training.steps=null", "hydra.run.dir=run"]
    assert script("train.py", *words, cwd=tmp_path)[0] == 0
    run = tmp_path / "run"
    assert (read_all(run, "elbo-test/last"), subfolders(run)) == ([41], ["00041"])
    status, _, errors = script("train.py", "resume=run", "training.epochs=2", cwd=tmp_path)
    assert status == 0, errors
    assert (read_all(run, "elbo-test/last"), subfolders(run)) == ([81], ["00081"])
    assert read_all(run, "elbo/train") == [40, 80]
    files = re.findall(r'path: "(.*)"', (run / "projector_config.pbtxt").read_text())
    assert len(files) == 3 and all((run / file).is_file() for file in files)


def test_results_are_gone_while_a_run_is_extended(tmp_path):
    with Logger(tmp_path) as logger:
        logger.log_scalars(2, 1, {"elbo/train": -1.0})
        logger.log_results(3, {"elbo-test/last": -1.0})
    assert read_all(tmp_path, "elbo-test/last") == [3]
    with Logger(tmp_path, 2):
        assert read_all(tmp_path, "elbo-test/last") == []
        assert read_all(tmp_path, "elbo/train") == [2]


def test_emptying_results_changes_no_file_outside_the_run(tmp_path):
    """The content of a run folder is not trusted: the file could be a link."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.write_text("precious")
    (run / "events.out.tfevents.1.host.2.0.results").symlink_to(outside)
    with Logger(run, 2):
        assert outside.read_text() == "precious"


def test_new_codes_remove_no_file_of_the_user(tmp_path):
    codes = torch.eye(4).reshape(1, 4, 4).repeat(3, 1, 1)
    images = torch.zeros(3, 1, 5, 5)
    with Logger(tmp_path) as logger:
        logger.log_embedding(41, codes, torch.arange(3), images)
    kept = ["00041/notes", "00041/codes/notes", "00007/codes/tensors.tsv"]
    for file in kept:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    with Logger(tmp_path, 40) as logger:
        logger.log_embedding(81, codes, torch.arange(3), images)
    names = {
        str(file.relative_to(tmp_path)) for file in tmp_path.glob("0*/**/*") if file.is_file()
    }
    new = [f"00081/codes/{name}" for name in ("metadata.tsv", "sprite.png", "tensors.tsv")]
    assert names == {*kept, *new}
    assert all((tmp_path / file).read_text() == "mine" for file in kept)


# The mean over replicas


def test_charts_of_several_curves_leave_out_the_bands_of_replicas(tmp_path):
    with Logger(tmp_path):
        pass
    (tensor,) = EventAccumulator(str(tmp_path)).Reload().Tensors("custom_scalars__config__")
    bounds = Layout.FromString(tensor.tensor_proto.string_val[0]).category[0]
    patterns = {chart.title: chart.multiline.tag for chart in bounds.chart}
    tags = ["elbo/train", "elbo-test/last", "evaluation/elbo_map/train", "seeds/elbo/train_low"]
    shown = [tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns["ELBO"])]
    assert shown == ["elbo/train"]


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
    assert curves["seeds/elbo/train_low"] == pytest.approx(-3 - deviation)
    assert curves["seeds/elbo/train_high"] == pytest.approx(-3 + deviation)


@pytest.mark.parametrize("nonfinite", [[math.nan], [-math.inf], [math.inf, -math.inf]])
def test_elbo_that_is_not_finite_makes_mean_and_band_not_finite(tmp_path, nonfinite):
    """The writer must not raise: the training objective may be finite all the same."""
    curves = write_and_read(tmp_path, [-1.0, *nonfinite])
    assert not math.isfinite(curves["elbo/train"])
    assert math.isnan(curves["seeds/elbo/train_low"])
