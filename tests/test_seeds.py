"""Replicas by the command line: ordinary run folders below one, and what they have in common."""

import json
import logging
import runpy
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import written
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

import vae
from vae.training import checkpoint
from vae.runs import status as run_state

ROOT = Path(__file__).parents[1]
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
TWO = [*SMALL, "training.epochs=2", "seeds=2", "hydra.run.dir=parent"]


@pytest.fixture(autouse=True)
def _float32_and_quiet():
    torch.set_default_dtype(torch.float32)
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # of its reader, on stdout


@pytest.fixture
def train(script):
    """train.py in this process: its exit status, output and errors."""
    return partial(script, "train.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The parent of two replicas that nobody disturbed."""
    cwd = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["train.py", *TWO])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert exit.value.code == 0
    return cwd / "parent"


@pytest.fixture
def parent(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "parent"))


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def status(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["status"]


def folders(of: Path) -> list[str]:
    return sorted(file.name for file in of.iterdir() if file.is_dir())


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def assert_mean_and_band(folder: Path, replicas: list[Path]) -> None:
    """What stands in the folder is what follows from the replicas' own lines, to float32."""
    curves, lines = scalars(folder), [metrics(run) for run in replicas]
    names = {f"{name}/{split}" for name in ("elbo", "rate", "distortion") for split in SPLITS}
    bands = {f"{name}_{end}" for name in names for end in ("low", "high")}
    assert set(curves) == set(lines[0][0]) - {"step", "epoch"} | bands
    for rows in zip(*lines, strict=True):
        for name in set(curves) - bands:
            own, (step,) = [row[name] for row in rows], {row["step"] for row in rows}
            shown = {tag: dict(points).get(step) for tag, points in curves.items()}
            mean = statistics.fmean(own)
            assert shown[name] == pytest.approx(mean, rel=1e-6)
            if name in names:
                width = statistics.stdev(own)
                assert width > 0
                assert shown[f"{name}_low"] == pytest.approx(mean - width, rel=1e-6)
                assert shown[f"{name}_high"] == pytest.approx(mean + width, rel=1e-6)
    steps = [line["step"] for line in lines[0]]
    assert all([step for step, _ in points] == steps for points in curves.values())


SPLITS = ("train", "valid")


# What they leave


def test_each_replica_is_the_ordinary_run_of_its_seed(finished, tmp_path, train):
    """Its configuration byte for byte; its numbers, where no noise is drawn, to rounding."""
    words = [*SMALL, "training.epochs=2", "seed=1", "hydra.run.dir=alone"]
    code, _, err = train(*words, cwd=tmp_path)
    assert code == 0, err
    own, alone = finished / "seed_1", tmp_path / "alone"
    assert (own / "config.yaml").read_bytes() == (alone / "config.yaml").read_bytes()
    names = {file.name for file in alone.iterdir() if not file.name.startswith("events.")}
    assert names == {file.name for file in own.iterdir() if not file.name.startswith("events.")}
    for line, other in zip(metrics(own), metrics(alone), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-3)
    a, b = (vae.load(run).state_dict() for run in (own, alone))
    for name, weights in a.items():
        torch.testing.assert_close(
            weights, b[name], rtol=0, atol=5e-3
        )  # of up to 0.08 that they moved


def test_the_parent_holds_what_they_have_in_common(finished):
    assert folders(finished) == ["seed_0", "seed_1"]
    (events,) = finished.glob("events.*")
    own = {file for file in written(finished) if file.parent == finished}
    assert own == {finished / "replicas.yaml", events}
    config = yaml.safe_load((finished / "replicas.yaml").read_text())
    assert (config["seeds"], config["seed"], config["training"]["epochs"]) == (2, 0, 2)
    assert [status(finished / name) for name in folders(finished)] == ["finished"] * 2


def test_tensorboard_has_their_mean_in_a_band(finished):
    assert_mean_and_band(finished, [finished / "seed_0", finished / "seed_1"])


def test_tensorboard_is_told_how_to_draw_the_band(finished):
    events = EventAccumulator(str(finished)).Reload()
    (told,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(told.tensor_proto.string_val[0])
    (category,) = layout.category
    charts = {chart.title: chart.margin.series[0] for chart in category.chart}
    series = charts["elbo/valid"]
    assert (series.value, series.lower, series.upper) == (
        *("elbo/valid", "elbo/valid_low", "elbo/valid_high"),
    )
    assert len(charts) == 6


def test_evaluate_has_one_row_for_them(finished, script, tmp_path):
    words = [finished, "--format", "json", "--importance-samples", 2]
    code, out, err = script("evaluate.py", *words, cwd=tmp_path)
    assert code == 0, err
    ((row,),) = json.loads(out).values()
    assert row["n"] == 2
    summaries = [json.loads((finished / f"seed_{n}/summary.json").read_text()) for n in (0, 1)]
    expected = statistics.fmean(summary["test"]["best"]["elbo"] for summary in summaries)
    assert row["elbo"] == pytest.approx(expected, rel=1e-6)


def test_rates_multiply_and_each_has_a_band_of_its_own(tmp_path, train, script):
    words = [*SMALL, "training.epochs=1", "seeds=[3,5]", "optimizer.lr=[1e-3,0.01]"]
    code, out, err = train(*words, cwd=tmp_path)
    assert code == 0, err
    (grid,) = tmp_path.glob("outputs/*_exact_2x3_seeds3-5")
    names = [f"seed_{seed}_lr_{lr}" for seed in (3, 5) for lr in ("0.001", "0.01")]
    assert folders(grid) == sorted([*names, "lr_0.001", "lr_0.01"])
    assert not list(grid.glob("events.*"))
    for lr in ("0.001", "0.01"):
        assert_mean_and_band(grid / f"lr_{lr}", [grid / f"seed_{s}_lr_{lr}" for s in (3, 5)])
        for seed in (3, 5):
            config = yaml.safe_load((grid / f"seed_{seed}_lr_{lr}" / "config.yaml").read_text())
            assert (config["seed"], config["optimizer"]["lr"]) == (seed, float(lr))
            assert f"seed_{seed}_lr_{lr}: last (epoch 1)" in out
    code, out, err = script("evaluate.py", grid, "--format", "json", cwd=tmp_path)
    (rows,) = json.loads(out).values()
    assert {(row["optimizer.lr"], row["n"]) for row in rows} == {(0.001, 2), (0.01, 2)}


def test_rates_alone_have_no_band(tmp_path, train):
    words = [*SMALL, "training.steps=2", "optimizer.lr=[1e-3,0.01]", "hydra.run.dir=grid"]
    assert train(*words, cwd=tmp_path)[0] == 0
    assert folders(tmp_path / "grid") == ["lr_0.001", "lr_0.01"]


def test_a_sweep_of_two_estimators_over_two_seeds(tmp_path, train, script):
    words = [*SMALL, "training.steps=2", "seeds=2", "sweep=both"]
    code, _, err = train(*words, "estimator=exact,straight_through", "-m", cwd=tmp_path)
    assert code == 0, err
    sweep = tmp_path / "outputs/both"
    assert all("_seeds2_" in name for name in folders(sweep)) and len(folders(sweep)) == 2
    code, out, _ = script("evaluate.py", sweep, "--format", "json", cwd=tmp_path)
    (rows,) = json.loads(out).values()
    assert {(row["group"], row["n"]) for row in rows} == {("exact", 2), ("straight_through", 2)}


# Gone on with


def test_the_same_command_again_has_nothing_to_do(parent, tmp_path, train):
    before = written(parent)
    code, out, _ = train(*TWO, cwd=tmp_path)
    assert code == 0 and "parent is finished: nothing to do" in out
    assert written(parent) == before


def test_all_of_them_go_further(finished, parent, tmp_path, train):
    code, out, err = train(f"resume={parent}", "training.epochs=3", cwd=tmp_path)
    assert code == 0, err
    assert "going on after step 80" in out
    for name in ("seed_0", "seed_1"):
        text = (parent / name / "metrics.jsonl").read_bytes()
        assert text.startswith((finished / name / "metrics.jsonl").read_bytes())
        assert [line["step"] for line in metrics(parent / name)] == [40, 80, 120]
        assert [step for step, _ in scalars(parent / name)["elbo/test"]] == [121]
    assert_mean_and_band(parent, [parent / "seed_0", parent / "seed_1"])
    assert not (tmp_path / "outputs").exists() or not list(tmp_path.glob("outputs/*"))


def test_one_of_them_goes_further_alone_and_then_the_other(parent, tmp_path, train):
    further = "training.epochs=3"
    assert train(f"resume={parent}/seed_1", further, cwd=tmp_path)[0] == 0
    assert [len(metrics(parent / name)) for name in ("seed_0", "seed_1")] == [2, 3]
    code, _, err = train(*TWO, cwd=tmp_path)  # they are not what they were together
    assert code == 2 and err.count("\n") == 1 and "seed_1 holds another run" in err
    assert train(f"resume={parent}/seed_0", further, cwd=tmp_path)[0] == 0
    code, out, _ = train(f"resume={parent}", further, cwd=tmp_path)
    assert code == 0 and "nothing to do" in out


def test_one_that_is_out_of_patience_says_its_end_once(tmp_path, train):
    """However much further the others go: its results stand behind its own last step."""
    words = [*SMALL, "optimizer.lr=[0.0,1e-3]", "training.patience=1", "training.epochs=3"]
    assert train(*words, "hydra.run.dir=grid", cwd=tmp_path)[0] == 0
    grid = tmp_path / "grid"
    code, _, err = train(f"resume={grid}", "training.epochs=4", cwd=tmp_path)
    assert code == 0, err
    for name, epochs in (("lr_0", 2), ("lr_0.001", 4)):
        assert [line["step"] for line in metrics(grid / name)][-1] == 40 * epochs
        assert [step for step, _ in scalars(grid / name)["elbo/test"]] == [40 * epochs + 1]
        assert status(grid / name) == "finished"


@pytest.mark.parametrize("alone, then", [(3, 3), (3, 6), (5, 6)])
def test_one_that_has_gone_on_alone_loses_nothing(parent, tmp_path, train, alone, then):
    assert train(f"resume={parent}/seed_1", f"training.epochs={alone}", cwd=tmp_path)[0] == 0
    before = written(parent)
    code, _, err = train(f"resume={parent}", f"training.epochs={then}", cwd=tmp_path)
    assert code == 2 and err.count("\n") == 1
    assert f"seed_1 is at step {40 * alone} without the others" in err
    assert written(parent) == before


def test_one_that_others_left_loses_nothing_either(tmp_path, train):
    words = [*SMALL, "training.epochs=2", "optimizer.lr=[1e-3,1e30]", "hydra.run.dir=grid"]
    assert train(*words, cwd=tmp_path)[0] == 1
    grid = tmp_path / "grid"
    assert train(f"resume={grid}/lr_0.001", "training.epochs=3", cwd=tmp_path)[0] == 0
    before = written(grid)
    code, _, err = train(f"resume={grid}", "training.epochs=3", cwd=tmp_path)
    assert code == 2 and "lr_0.001 is at step 120 without the others" in err
    assert written(grid) == before


def test_where_one_is_missing_the_others_lose_nothing(parent, tmp_path, train):
    shutil.rmtree(parent / "seed_1")
    before = written(parent)
    code, _, err = train(*TWO, cwd=tmp_path)
    assert code == 2 and "seed_0 is at step 80 without the others" in err
    assert written(parent) == before


def test_those_that_one_had_left_before_reasons_were_kept_go_on(tmp_path, train):
    """Files of an older version."""
    words = [*SMALL, "training.epochs=2", "optimizer.lr=[1e-3,1e30]", "hydra.run.dir=grid"]
    assert train(*words, cwd=tmp_path)[0] == 1
    content = checkpoint.load(tmp_path / "grid/lr_0.001", "last")
    content = {k: v for k, v in content.items() if k not in ("together", "device", "file")}
    content["left"] = list(content["left"])
    checkpoint.save(tmp_path / "grid/lr_0.001", "last", content)
    code, out, err = train("resume=grid", "training.epochs=3", cwd=tmp_path)
    assert code == 1 and err == "train.py: lr_1e+30: it had left the others\n"
    assert "lr_0.001: last (epoch 3)" in out


def test_skipped_steps_have_a_mean_over_all(tmp_path, train):
    words = ["training.epochs=1", "seeds=2", "training.on_nan=skip", "hydra.run.dir=parent"]
    assert train(*SMALL, *words, cwd=tmp_path)[0] == 0
    assert scalars(tmp_path / "parent")["objective/skipped"] == [(40, 0.0)]


def test_sweeps_of_seeds_beside_sweeps_of_replicas(tmp_path, train):
    words = [*SMALL, "training.steps=1", "seeds=2", "seed=0,10", "sweep=mine", "-m"]
    code, _, err = train(*words, cwd=tmp_path)
    assert code == 0, err
    names = [name.rpartition("_")[0] for name in folders(tmp_path / "outputs/mine")]
    assert names == ["exact_2x3_seed10_seeds2", "exact_2x3_seeds2"]


@pytest.mark.parametrize("held", [".", "seed_1"])
def test_another_process_is_kept_out(parent, tmp_path, train, held):
    before = written(parent)
    with run_state.locked(parent / held):
        code, _, err = train(f"resume={parent}", "training.epochs=3", cwd=tmp_path)
    assert code == 2 and err.count("\n") == 1
    assert "another process is at work on this run" in err
    assert written(parent) == before


@pytest.mark.parametrize(
    "words, said",
    [
        (["seeds=3"], "holds another run: its seeds is 2, and not 3"),
        (["seeds=2", "seed=1"], "holds another run: its seed is 0, and not 1"),
        (["seeds=2", "optimizer.lr=[1e-3]"], "holds another run: its optimizer.lr is"),
        ([], "holds another run: it has a replicas.yaml, and no config.yaml"),
    ],
)
def test_another_run_is_kept_out(parent, tmp_path, train, words, said):
    given = [*SMALL, "training.epochs=2", *words, "hydra.run.dir=parent"]
    code, _, err = train(*given, cwd=tmp_path)
    assert code == 2 and err.count("\n") == 1 and said in err
    assert folders(parent) == ["seed_0", "seed_1"]


def test_replicas_are_kept_out_of_a_run(parent, tmp_path, train):
    words = [*SMALL, "training.epochs=2", "seeds=2", "hydra.run.dir=parent/seed_0"]
    code, _, err = train(*words, cwd=tmp_path)
    assert code == 2 and "it has a config.yaml, and no replicas.yaml" in err


# What is wrong

BAD = {
    "no seeds": (["seeds=0"], "seeds=0", "how many"),
    "a word for a number": (["seeds=x"], "seeds=x", "how many"),
    "a fraction": (["seeds=1.5"], "seeds=1.5", "how many"),
    "twice the same": (["seeds=[1,1]"], "seeds=[1, 1]", "differ"),
    "an empty list": (["seeds=[]"], "seeds=[]", "differ"),
    "a seed that is none": (["seeds=[1,-1]"], "seed=-1"),
    "a seed that is a fraction": (["seeds=[1,1.5]"], "seed=1.5"),
    "no rates": (["optimizer.lr=[]"], "optimizer.lr=[]", "differ"),
    "a word for a rate": (["optimizer.lr=[1e-3,x]"], "optimizer.lr", "x", "numbers"),
    "a negative rate": (["optimizer.lr=[1e-3,-1]"], "optimizer.lr", "negative"),
    "a cold temperature": (
        ["estimator=straight_through", "estimator.temperature=[1,-1]"],
        *("estimator.temperature", "greater than 0"),
    ),
    "no temperature": (["estimator.temperature=[1,2]"], "estimator.temperature"),
    "shapes": (["latents=[2,3]"], "latents=[2, 3]", "integer"),
    "one of a schedule's": (
        ["estimator=straight_through", "estimator/temperature=linear"]
        + ["estimator.temperature.start=[1,2]"],
        "estimator.temperature.start",
    ),
    "too many codes for each": (["seeds=2", "latents=20"], "estimator", "Exact enumerates"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_status_2(case, tmp_path, train):
    words, *expected = BAD[case]
    code, _, err = train(*SMALL, *words, cwd=tmp_path)
    assert code == 2
    assert err.startswith("train.py: ") and err.count("\n") == 1
    for part in expected:
        assert part in err
    assert not list(tmp_path.glob("outputs/*"))


def test_one_that_diverges_leaves_the_other_alone(tmp_path, train, script):
    words = [*SMALL, "training.epochs=2", "optimizer.lr=[1e-3,1e30]", "hydra.run.dir=grid"]
    for _ in range(2):
        code, out, err = train(*words, cwd=tmp_path)
        assert code == 1
        assert err.startswith("train.py: lr_1e+30: ") and err.count("\n") == 1
        assert "no number at step" in err
        assert "lr_0.001: last (epoch 2)" in out
        ends = {name: status(tmp_path / "grid" / name) for name in folders(tmp_path / "grid")}
        assert ends == {"lr_0.001": "finished", "lr_1e+30": "diverged"}
    assert [line["step"] for line in metrics(tmp_path / "grid/lr_0.001")] == [40, 80]
    assert metrics(tmp_path / "grid/lr_1e+30") == []
    code, out, _ = script("evaluate.py", tmp_path / "grid", cwd=tmp_path)
    assert code == 0 and "1 diverged" in out
