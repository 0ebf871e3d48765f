"""The settings of runs in TensorBoard, read with TensorBoard's own code for the HParams tab."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import get_experiment, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import (
    ORDER_ASC,
    STATUS_SUCCESS,
    STATUS_UNKNOWN,
    GetExperimentRequest,
    ListSessionGroupsRequest,
)
from tensorboard.plugins.hparams.backend_context import Context

from tests.helpers import TINY

NO_PICTURES = ["tracking.projected=0", "tracking.pictures_every=0"]
ONE_EPOCH = [*TINY, *NO_PICTURES, "training.epochs=1", "training.steps=null"]
TWO_STEPS = [*TINY, *NO_PICTURES, "training.steps=2"]
TWO_STEPS.remove("optimizer.lr=0.002")  # takes the place of a schedule

Train = Callable[..., None]


class HParams(NamedTuple):
    """The columns and rows of the HParams tab.

    Attributes:
        columns: The names of the settings that have a column.
        metrics: The names of the numbers that have a column.
        rows: The settings of each run.
    """

    columns: list[str]
    metrics: list[str]
    rows: dict[str, dict[str, object]]


def read_hparams(folder: Path, sort_by: str | None = None) -> HParams:
    """Return the HParams tab of the runs in a folder, with rows in the order of a column."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder))
    runs.Reload()
    backend = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder))))
    experiment = get_experiment.Handler(
        RequestContext(), backend, "", GetExperimentRequest()
    ).run()
    request = ListSessionGroupsRequest(slice_size=100)
    request.allowed_statuses.extend([STATUS_UNKNOWN, STATUS_SUCCESS])
    if sort_by is not None:
        request.col_params.add(hparam=sort_by, order=ORDER_ASC)
    groups = list_session_groups.Handler(RequestContext(), backend, "", request).run()
    return HParams(
        [column.name for column in experiment.hparam_infos],
        [metric.name.tag for metric in experiment.metric_infos],
        {
            group.name: {
                name: getattr(value, value.WhichOneof("kind"))
                for name, value in group.hparams.items()
            }
            for group in groups.session_groups
        },
    )


@pytest.fixture
def train(script, float32, tmp_path) -> Train:
    """Return a function that runs train.py in the temporary folder and asserts its status."""

    def run(*words: str, status: int = 0) -> None:
        exit_status, _, errors = script("train.py", *words, cwd=tmp_path)
        assert exit_status == status, errors

    return run


def test_every_setting_and_bound_of_every_run_has_a_column(train, tmp_path):
    """The first run has too many codes for log p(x), and other settings than the second run."""
    train(*TWO_STEPS, "latents=8", "hydra.run.dir=runs/first")
    vimco = ["objective=vimco", "training.clip=1.0"]
    train(*TWO_STEPS, *vimco, "seeds=2", "hydra.run.dir=runs/replicas")
    hparams = read_hparams(tmp_path / "runs")
    assert list(hparams.rows) == ["first", "replicas/seed_0", "replicas/seed_1"]
    first, replica, _ = hparams.rows.values()
    assert "estimator.temperature" in first and "estimator.temperature" not in replica
    clip, samples = replica["settings.training.clip"], replica["settings.objective.samples"]
    assert (clip, samples) == (1.0, 5.0)
    assert set(hparams.columns) == {*first, *replica}
    assert {"elbo-test/last", "evaluation/log_likelihood/test"} <= set(hparams.metrics)


def test_the_main_settings_and_the_test_elbo_come_first(train, tmp_path):
    """TensorBoard shows five columns of each kind. Settings that differ come before others."""
    main = ["categories", "estimator", "estimator.temperature", "latents", "optimizer.lr", "seed"]
    train(*ONE_EPOCH, "seed=0", "hydra.run.dir=runs/first")
    hparams = read_hparams(tmp_path / "runs")
    assert hparams.columns[:6] == main
    assert hparams.metrics[:3] == ["elbo-test/best", "elbo-test/last", "elbo/train"]
    train(*ONE_EPOCH, "seed=1", "training.batch_size=50", "hydra.run.dir=runs/second")
    differing = ["seed", "settings.training.batch_size", "settings.training.steps"]
    assert read_hparams(tmp_path / "runs").columns[:8] == [*differing, *main[:5]]


def test_a_setting_that_repeats_another_has_no_column(train, tmp_path):
    train(*TWO_STEPS, "latents=3", "hydra.run.dir=runs/run")
    row = read_hparams(tmp_path / "runs").rows["run"]
    assert [name for name, value in row.items() if name.endswith("latents")] == ["latents"]


def test_rows_can_be_sorted_by_every_setting(train, tmp_path):
    """In one run the settings that can be schedules are numbers, in the other run schedules."""
    schedules = [f"{key}=linear" for key in ("optimizer/lr", "objective/beta")]
    train(*TWO_STEPS, "hydra.run.dir=runs/numbers")
    train(*TWO_STEPS, *schedules, "estimator/temperature=linear", "hydra.run.dir=runs/schedules")
    hparams = read_hparams(tmp_path / "runs")
    for key in ("optimizer.lr", "settings.objective.beta", "estimator.temperature"):
        assert isinstance(hparams.rows["numbers"][key], float)
        assert hparams.rows["schedules"][f"{key}._target_"] == "Linear"
    for column in hparams.columns:
        assert len(read_hparams(tmp_path / "runs", sort_by=column).rows) == 2


def test_a_resumed_run_shows_its_new_settings(train, tmp_path):
    train(*ONE_EPOCH, "hydra.run.dir=runs/run")
    train("resume=runs/run", "training.epochs=2")
    row = read_hparams(tmp_path / "runs").rows["run"]
    assert (row["settings.training.epochs"], row["settings.training.steps"]) == (2, 80)
    events = EventAccumulator(str(tmp_path / "runs/run"), purge_orphaned_data=False).Reload()
    (config,) = events.Tensors("config/text_summary")
    assert b"    epochs: 2\n" in config.tensor_proto.string_val[0] + b"\n"


def test_a_run_that_does_not_finish_shows_its_settings(train, tmp_path):
    train(*ONE_EPOCH, "optimizer=sgd", "optimizer.lr=1e30", "hydra.run.dir=runs/run", status=1)
    assert read_hparams(tmp_path / "runs").rows["run"]["optimizer.lr"] == 1e30
