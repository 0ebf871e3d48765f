"""Replicas from the command line: run folders below one folder, and the mean of their curves."""

import json
import logging
import shutil
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

import vae
from tests.helpers import read_lines, read_scalars, run_script, subfolders, written
from vae.runs.folder import locked
from vae.runs.status import read_status
from vae.tracking import BANDS, tag_of

SMALL = [
    "data=mnist_5k",
    "estimator=exact",
    "model.networks.encoder_sizes=[8]",
    "model.networks.decoder_sizes=[8]",
    "latents=2",
    "categories=3",
    "tracking.pictures_every=0",
    "tracking.projected=0",
    "importance_samples=2",
]
TWO_SEEDS = [*SMALL, "training.epochs=2", "seeds=2", "hydra.run.dir=parent"]
DIVERGING_GRID = [*SMALL, "training.epochs=2", "optimizer.lr=[1e-3,1e30]", "hydra.run.dir=grid"]
"""A replica with a learning rate at which it diverges, and one that does not."""

RunTrain = Callable[..., tuple[int, str, str]]
"""Runs train.py in this process; returns the exit status, the output and the errors."""

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture(autouse=True)
def _quiet_tensorboard():
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # its reader logs to stdout


@pytest.fixture
def train(script) -> RunTrain:
    return partial(script, "train.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return the folder above two finished replicas."""
    cwd = tmp_path_factory.mktemp("seeds")
    status, _, errors = run_script("train.py", *TWO_SEEDS, cwd=cwd)
    assert status == 0, errors
    return cwd / "parent"


@pytest.fixture
def parent(finished, tmp_path) -> Path:
    """Return a copy of that folder."""
    return Path(shutil.copytree(finished, tmp_path / "parent"))


def assert_mean_and_band(folder: Path, replicas: list[Path]) -> None:
    """Compare the curves in a folder with the replicas' curves, to the rounding of float32."""
    curves, lines = read_scalars(folder), [read_lines(replica) for replica in replicas]
    ends_of_bands = {f"seeds/{name}_{end}" for name in BANDS for end in ("low", "high")}
    names = set(lines[0][0]) - {"step", "epoch"}
    assert set(curves) == set(map(tag_of, names)) | ends_of_bands
    for epoch in zip(*lines, strict=True):
        (step,) = {line["step"] for line in epoch}
        logged = {tag: dict(points).get(step) for tag, points in curves.items()}
        for name in names:
            values = [line[name] for line in epoch]
            mean = statistics.fmean(values)
            assert logged[tag_of(name)] == pytest.approx(mean, rel=1e-6)
            if name in BANDS:
                deviation = statistics.stdev(values)
                assert deviation > 0
                assert logged[f"seeds/{name}_low"] == pytest.approx(mean - deviation, rel=1e-6)
                assert logged[f"seeds/{name}_high"] == pytest.approx(mean + deviation, rel=1e-6)
    steps = [line["step"] for line in lines[0]]
    assert all([step for step, _ in points] == steps for points in curves.values())


# Finished replicas


def test_a_replica_is_an_ordinary_run_with_its_seed(finished, tmp_path, train):
    """The configuration is equal byte for byte, and the numbers, without noise, to rounding."""
    words = [*SMALL, "training.epochs=2", "seed=1", "hydra.run.dir=alone"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 0, errors
    replica, alone = finished / "seed_1", tmp_path / "alone"
    assert (replica / "config.yaml").read_bytes() == (alone / "config.yaml").read_bytes()
    names, expected_names = (
        {file.name for file in run.iterdir() if not file.name.startswith("events.")}
        for run in (replica, alone)
    )
    assert names == expected_names
    for line, expected in zip(read_lines(replica), read_lines(alone), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-3)
    tensors, expected_tensors = (vae.load(run).state_dict() for run in (replica, alone))
    for name, tensor in tensors.items():  # training has changed some of them by 0.08
        torch.testing.assert_close(tensor, expected_tensors[name], rtol=0, atol=5e-3)


def test_the_folder_above_replicas_has_their_configuration_and_their_mean(finished):
    assert subfolders(finished) == ["seed_0", "seed_1"]
    (events,) = finished.glob("events.*")
    files = {file for file in written(finished) if file.parent == finished}
    assert files == {finished / "replicas.yaml", events}
    config = yaml.safe_load((finished / "replicas.yaml").read_text())
    assert (config["seeds"], config["seed"], config["training"]["epochs"]) == (2, 0, 2)
    assert [read_status(finished / name) for name in subfolders(finished)] == ["finished"] * 2


def test_tensorboard_has_the_mean_and_the_band_of_replicas(finished):
    assert_mean_and_band(finished, [finished / "seed_0", finished / "seed_1"])


def test_the_layout_of_custom_scalars_has_a_chart_with_a_band(finished):
    events = EventAccumulator(str(finished)).Reload()
    (layout_tensor,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(layout_tensor.tensor_proto.string_val[0])
    (category,) = layout.category
    charts = {chart.title: chart.margin.series[0] for chart in category.chart}
    series = charts["elbo/valid"]
    assert (series.value, series.lower, series.upper) == (
        *("elbo/valid", "seeds/elbo/valid_low", "seeds/elbo/valid_high"),
    )
    assert len(charts) == 6


def test_evaluate_prints_one_row_for_replicas_of_one_setting(finished, script, tmp_path):
    words = [finished, "--format", "json", "--importance-samples", 2]
    status, output, errors = script("evaluate.py", *words, cwd=tmp_path)
    assert status == 0, errors
    ((row,),) = json.loads(output).values()
    assert row["n"] == 2
    summaries = [json.loads((finished / f"seed_{n}/summary.json").read_text()) for n in (0, 1)]
    expected = statistics.fmean(summary["test"]["best"]["elbo"] for summary in summaries)
    assert row["elbo"] == pytest.approx(expected, rel=1e-6)


def test_each_learning_rate_has_a_mean_over_its_seeds(tmp_path, train, script):
    words = [*SMALL, "training.epochs=1", "seeds=[3,5]", "optimizer.lr=[1e-3,0.01]"]
    status, output, errors = train(*words, cwd=tmp_path)
    assert status == 0, errors
    (grid,) = tmp_path.glob("outputs/*_exact_2x3_seeds3-5")
    names = [f"seed_{seed}_lr_{lr}" for seed in (3, 5) for lr in ("0.001", "0.01")]
    assert subfolders(grid) == sorted([*names, "lr_0.001", "lr_0.01"])
    assert not list(grid.glob("events.*"))
    for lr in ("0.001", "0.01"):
        assert_mean_and_band(grid / f"lr_{lr}", [grid / f"seed_{s}_lr_{lr}" for s in (3, 5)])
        for seed in (3, 5):
            config = yaml.safe_load((grid / f"seed_{seed}_lr_{lr}" / "config.yaml").read_text())
            assert (config["seed"], config["optimizer"]["lr"]) == (seed, float(lr))
            assert f"seed_{seed}_lr_{lr}: last (epoch 1)" in output
    status, output, errors = script("evaluate.py", grid, "--format", "json", cwd=tmp_path)
    (rows,) = json.loads(output).values()
    assert {(row["optimizer.lr"], row["n"]) for row in rows} == {(0.001, 2), (0.01, 2)}


def test_learning_rates_with_one_seed_have_no_mean(tmp_path, train):
    words = [*SMALL, "training.steps=2", "optimizer.lr=[1e-3,0.01]", "hydra.run.dir=grid"]
    assert train(*words, cwd=tmp_path)[0] == 0
    assert subfolders(tmp_path / "grid") == ["lr_0.001", "lr_0.01"]


def test_a_sweep_over_estimators_trains_replicas_of_each(tmp_path, train, script):
    words = [*SMALL, "training.steps=2", "seeds=2", "sweep=both"]
    status, _, errors = train(*words, "estimator=exact,straight_through", "-m", cwd=tmp_path)
    assert status == 0, errors
    sweep = tmp_path / "outputs/both"
    names = subfolders(sweep)
    assert all("_seeds2_" in name for name in names) and len(names) == 2
    status, output, _ = script("evaluate.py", sweep, "--format", "json", cwd=tmp_path)
    (rows,) = json.loads(output).values()
    assert {(row["group"], row["n"]) for row in rows} == {("exact", 2), ("straight_through", 2)}


def test_a_sweep_over_first_seeds_names_the_folders_by_them(tmp_path, train):
    words = [*SMALL, "training.steps=1", "seeds=2", "seed=0,10", "sweep=mine", "-m"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 0, errors
    names = [name.rpartition("_")[0] for name in subfolders(tmp_path / "outputs/mine")]
    assert names == ["exact_2x3_seed10_seeds2", "exact_2x3_seeds2"]


def test_the_number_of_skipped_steps_has_a_mean(tmp_path, train):
    words = ["training.epochs=1", "seeds=2", "training.on_nan=skip", "hydra.run.dir=parent"]
    assert train(*SMALL, *words, cwd=tmp_path)[0] == 0
    assert read_scalars(tmp_path / "parent")["objective/skipped"] == [(40, 0.0)]


# Repeated, extended and resumed


def test_finished_replicas_that_are_repeated_have_nothing_to_do(parent, tmp_path, train):
    before = written(parent)
    status, output, _ = train(*TWO_SEEDS, cwd=tmp_path)
    assert status == 0 and "parent is finished: nothing to do" in output
    assert written(parent) == before


def test_finished_replicas_can_be_extended_together(finished, parent, tmp_path, train):
    status, output, errors = train(f"resume={parent}", "training.epochs=3", cwd=tmp_path)
    assert status == 0, errors
    assert "resuming after step 80" in output
    for name in ("seed_0", "seed_1"):
        lines, first_lines = (
            (folder / name / "metrics.jsonl").read_bytes() for folder in (parent, finished)
        )
        assert lines.startswith(first_lines)
        assert [line["step"] for line in read_lines(parent / name)] == [40, 80, 120]
        assert [step for step, _ in read_scalars(parent / name)["elbo-test/last"]] == [121]
    assert_mean_and_band(parent, [parent / "seed_0", parent / "seed_1"])
    assert not list(tmp_path.glob("outputs/*"))


def test_replicas_can_be_extended_one_after_the_other(parent, tmp_path, train):
    longer = "training.epochs=3"
    assert train(f"resume={parent}/seed_1", longer, cwd=tmp_path)[0] == 0
    assert [len(read_lines(parent / name)) for name in ("seed_0", "seed_1")] == [2, 3]
    status, _, errors = train(*TWO_SEEDS, cwd=tmp_path)  # the replicas differ in their epochs
    assert status == 2 and errors.count("\n") == 1 and "seed_1 holds a longer run" in errors
    assert train(f"resume={parent}/seed_0", longer, cwd=tmp_path)[0] == 0
    status, output, _ = train(f"resume={parent}", longer, cwd=tmp_path)
    assert status == 0 and "nothing to do" in output


def test_a_replica_without_patience_logs_its_results_after_its_last_step(tmp_path, train):
    """It logs them only once, even if the other replica is extended."""
    words = [*SMALL, "optimizer.lr=[0.0,1e-3]", "training.patience=1", "training.epochs=3"]
    assert train(*words, "hydra.run.dir=grid", cwd=tmp_path)[0] == 0
    grid = tmp_path / "grid"
    status, _, errors = train(f"resume={grid}", "training.epochs=4", cwd=tmp_path)
    assert status == 0, errors
    for name, epochs in (("lr_0", 2), ("lr_0.001", 4)):
        assert [line["step"] for line in read_lines(grid / name)][-1] == 40 * epochs
        steps = [step for step, _ in read_scalars(grid / name)["elbo-test/last"]]
        assert steps == [40 * epochs + 1]
        assert read_status(grid / name) == "finished"


@pytest.mark.parametrize("alone, together", [(3, 3), (3, 6), (5, 6)])
def test_replicas_do_not_resume_if_one_was_extended_alone(
    parent, tmp_path, train, alone, together
):
    words = [f"resume={parent}/seed_1", f"training.epochs={alone}"]
    assert train(*words, cwd=tmp_path)[0] == 0
    before = written(parent)
    words = [f"resume={parent}", f"training.epochs={together}"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert f"seed_1 is at step {40 * alone} without the others" in errors
    assert written(parent) == before


def test_replicas_do_not_resume_if_one_was_extended_after_another_had_diverged(tmp_path, train):
    assert train(*DIVERGING_GRID, cwd=tmp_path)[0] == 1
    grid = tmp_path / "grid"
    assert train(f"resume={grid}/lr_0.001", "training.epochs=3", cwd=tmp_path)[0] == 0
    before = written(grid)
    status, _, errors = train(f"resume={grid}", "training.epochs=3", cwd=tmp_path)
    assert status == 2 and "lr_0.001 is at step 120 without the others" in errors
    assert written(grid) == before


def test_replicas_do_not_resume_if_the_folder_of_one_is_missing(parent, tmp_path, train):
    shutil.rmtree(parent / "seed_1")
    before = written(parent)
    status, _, errors = train(*TWO_SEEDS, cwd=tmp_path)
    assert status == 2 and "seed_0 is at step 80 without the others" in errors
    assert written(parent) == before


# Refused


@pytest.mark.parametrize("locked_folder", [".", "seed_1"])
def test_a_second_process_on_replicas_is_refused(parent, tmp_path, train, locked_folder):
    before = written(parent)
    with locked(parent / locked_folder):
        status, _, errors = train(f"resume={parent}", "training.epochs=3", cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert "another process is using this run folder" in errors
    assert written(parent) == before


@pytest.mark.parametrize(
    "words, message",
    [
        (["seeds=3"], "holds another run: its seeds is 2, not 3"),
        (["seeds=2", "seed=1"], "holds another run: its seed is 0, not 1"),
        (["seeds=2", "optimizer.lr=[1e-3]"], "holds another run: its optimizer.lr is"),
        ([], "holds another run: its replicas.yaml describes replicas"),
    ],
)
def test_another_run_in_the_folder_of_replicas_is_refused(parent, tmp_path, train, words, message):
    words = [*SMALL, "training.epochs=2", *words, "hydra.run.dir=parent"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1 and message in errors
    assert subfolders(parent) == ["seed_0", "seed_1"]


def test_replicas_in_the_folder_of_a_run_are_refused(parent, tmp_path, train):
    words = [*SMALL, "training.epochs=2", "seeds=2", "hydra.run.dir=parent/seed_0"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 2 and "holds another run: its config.yaml describes a single run" in errors


WRONG = {
    "no seeds": (["seeds=0"], "seeds=0", "give the number"),
    "word for a number of seeds": (["seeds=x"], "seeds=x", "give the number"),
    "fraction for a number of seeds": (["seeds=1.5"], "seeds=1.5", "give the number"),
    "equal seeds": (["seeds=[1,1]"], "seeds=[1, 1]", "differ"),
    "empty list of seeds": (["seeds=[]"], "seeds=[]", "differ"),
    "negative seed": (["seeds=[1,-1]"], "seed=-1"),
    "seed that is a fraction": (["seeds=[1,1.5]"], "seed=1.5"),
    "empty list of rates": (["optimizer.lr=[]"], "optimizer.lr=[]", "differ"),
    "word for a rate": (["optimizer.lr=[1e-3,x]"], "optimizer.lr", "x", "numbers"),
    "negative rate": (["optimizer.lr=[1e-3,-1]"], "optimizer.lr", "negative"),
    "negative temperature": (
        ["estimator=straight_through", "estimator.temperature=[1,-1]"],
        *("estimator.temperature", "greater than 0"),
    ),
    "temperature of an estimator without one": (
        ["estimator.temperature=[1,2]"],
        "estimator.temperature",
    ),
    "list of sizes": (["latents=[2,3]"], "latents=[2, 3]", "integer"),
    "list in a schedule": (
        ["estimator=straight_through", "estimator/temperature=linear"]
        + ["estimator.temperature.start=[1,2]"],
        "estimator.temperature.start",
    ),
    "too many codes to enumerate": (
        ["seeds=2", "latents=20"],
        *("estimator", "Exact enumerates"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_of_replicas_is_refused_in_one_line_with_status_2(case, tmp_path, train):
    words, *expected = WRONG[case]
    status, _, errors = train(*SMALL, *words, cwd=tmp_path)
    assert status == 2
    assert errors.startswith("train.py: ") and errors.count("\n") == 1
    for part in expected:
        assert part in errors
    assert not list(tmp_path.glob("outputs/*"))


# Divergence


def test_a_replica_that_diverges_does_not_end_the_other_one(tmp_path, train, script):
    grid = tmp_path / "grid"
    for _ in range(2):
        status, output, errors = train(*DIVERGING_GRID, cwd=tmp_path)
        assert status == 1
        assert errors.startswith("train.py: lr_1e+30: ") and errors.count("\n") == 1
        assert "not finite at step" in errors
        assert "lr_0.001: last (epoch 2)" in output
        statuses = {name: read_status(grid / name) for name in subfolders(grid)}
        assert statuses == {"lr_0.001": "finished", "lr_1e+30": "diverged"}
    assert [line["step"] for line in read_lines(grid / "lr_0.001")] == [40, 80]
    assert read_lines(grid / "lr_1e+30") == []
    status, output, _ = script("evaluate.py", grid, cwd=tmp_path)
    assert status == 0 and "1 diverged" in output
