"""Run folders are found, and their models are measured; the numbers are cached in the folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.helpers import read_json
from vae.comparison import collect as collecting
from vae.comparison.collect import DataCache, collect
from vae.config.load import SavedRun
from vae.evaluation.probe import linear_probe
from vae.runs.folder import find_runs
from vae.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def sweep(trained, tmp_path) -> Path:
    """Return a copy of the sweep, which a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


def run_of_seed(sweep: Path, seed: int) -> Path:
    """Return the run of the straight-through estimator with a seed."""
    (folder,) = sweep.glob(f"straight_through_*seed{seed}*")
    return folder


def change_config(folder: Path, changes: dict[str, str]) -> None:
    """Replace texts in the configuration of a run, and assert that it has them."""
    text = (folder / "config.yaml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "config.yaml").write_text(text)


ON_ONE_BATCH = {"importance_samples: 2\n": "importance_samples: 2\noverfit: true\n"}


def measured_numbers(table: pd.DataFrame, which: str) -> dict[str, Any]:
    """Return the numbers of the best or the last model of the only run in a table."""
    (row,) = table[table["run", "model"] == which]["measured"].to_dict("records")
    return row


def test_run_folders_are_found_at_any_depth(sweep):
    assert len(find_runs(sweep.parent)) == 6
    assert find_runs(run_of_seed(sweep, 0)) == [run_of_seed(sweep, 0)]
    assert find_runs(sweep / "nowhere") == []


def test_measured_numbers_are_those_that_the_run_reported_itself(sweep):
    table = collect([run_of_seed(sweep, 0)], DataCache(), 2)
    reported = read_json(run_of_seed(sweep, 0) / "summary.json")
    assert table["run", "model"].tolist() == ["best", "last"]
    for which in ("best", "last"):
        assert reported["test"][which].items() <= measured_numbers(table, which).items()
    for _, row in table.iterrows():
        assert row["run"][["status", "seed", "steps"]].tolist() == ["finished", 0, 41]
        assert row["run", "method"] == row["setting", "estimator"] == "straight_through"


def test_cached_numbers_are_used_until_samples_or_checkpoints_change(sweep, monkeypatch):
    calls = []
    evaluate_bounds = collecting.evaluate_bounds

    def count_calls(*arguments: Any) -> dict[str, float | None]:
        calls.append(arguments)
        return evaluate_bounds(*arguments)

    monkeypatch.setattr(collecting, "evaluate_bounds", count_calls)
    folder, data_cache = run_of_seed(sweep, 0), DataCache()
    before = collect([folder], data_cache, 2)
    models = len(calls)
    assert models in (1, 2)  # one if the best model is the last one
    pd.testing.assert_frame_equal(collect([folder], data_cache, 2), before)
    assert len(calls) == models
    collect([folder], data_cache, 3)
    assert len(calls) == 2 * models
    shutil.copy(run_of_seed(sweep, 1) / "last.pt", folder / "last.pt")
    after = collect([folder], data_cache, 3)
    assert len(calls) > 2 * models
    assert measured_numbers(after, "last") != measured_numbers(before, "last")
    (folder / "evaluation.json").write_text("{ truncated")
    pd.testing.assert_frame_equal(collect([folder], data_cache, 3), after)


def test_run_that_was_trained_on_one_batch_has_other_images_than_a_run_with_the_same_data(sweep):
    change_config(run_of_seed(sweep, 1), ON_ONE_BATCH)
    data_cache = DataCache()
    for seed, images in ((0, 500), (1, 100), (2, 500)):
        data, _ = data_cache.get(SavedRun(run_of_seed(sweep, seed)))
        assert len(data.test) == images


def test_runs_with_the_same_data_share_the_images(sweep):
    data_cache = DataCache()
    first, second = (data_cache.get(SavedRun(run_of_seed(sweep, seed))) for seed in (0, 1))
    assert first is second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"importance_samples: 2": "importance_samples: x"}, "importance_samples='x' is not a"),
        ({"importance_samples: 2": "importance_samples: 0"}, "importance_samples=0 is not a"),
        (ON_ONE_BATCH | {"  batch_size: 100\n": ""}, "training.batch_size is missing"),
    ],
)
def test_run_with_a_wrong_setting_of_its_evaluation_is_refused_in_one_line(
    sweep, changes, message
):
    folder = run_of_seed(sweep, 0)
    change_config(folder, changes)
    errors: list[Exception] = []
    assert collect([folder], DataCache(), None, lambda _, error: errors.append(error)).empty
    (error,) = errors
    assert message in str(error) and "\n" not in str(error)


def test_run_is_measured_even_if_the_numbers_cannot_be_cached(sweep, monkeypatch, caplog):
    def raise_error(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(collecting, "write_json", raise_error)
    table = collect([run_of_seed(sweep, 0)], DataCache(), 2)
    assert measured_numbers(table, "last")["elbo"] < 0
    assert "nothing is cached" in caplog.text


@pytest.mark.parametrize(
    ("status", "has_summary", "expected"),
    [(None, False, "unfinished"), ("diverged", False, "diverged"), (None, True, "finished")],
)
def test_status_of_a_run_follows_from_its_files(sweep, status, has_summary, expected):
    folder = run_of_seed(sweep, 0)
    (folder / "status.json").unlink()
    if status:
        (folder / "status.json").write_text(json.dumps({"status": status, "why": "nan"}))
    if not has_summary:
        (folder / "summary.json").unlink()
    assert set(collect([folder], DataCache(), 2)["run", "status"]) == {expected}


def test_probe_is_trained_on_images_that_are_binarised_like_the_test_images(sweep, monkeypatch):
    change_config(run_of_seed(sweep, 0), {"binarize: none": "binarize: dynamic"})
    images = []

    def record_images(model, train, test):
        images.extend([train.images, test.images])
        return linear_probe(model, train, test)

    monkeypatch.setattr(collecting, "linear_probe", record_images)
    collect([run_of_seed(sweep, 0)], DataCache(), 2)
    assert images
    assert all(set(pixels.unique().tolist()) == {0, 255} for pixels in images)


def test_run_on_a_single_image_is_measured_without_a_probe(sweep):
    changes = ON_ONE_BATCH | {"  batch_size: 100\n": "  batch_size: 1\n"}
    change_config(run_of_seed(sweep, 0), changes)
    numbers = measured_numbers(collect([run_of_seed(sweep, 0)], DataCache()), "last")
    assert numbers["elbo"] < 0
    assert numbers["accuracy"] is numbers["nll"] is None


def test_configuration_cut_at_any_byte_is_read_or_refused_in_one_line(trained, tmp_path):
    folder = Path(shutil.copytree(run_of_seed(trained, 0), tmp_path / "run"))
    data_cache = DataCache()
    collect([folder], data_cache, 2)  # so that a configuration that is read is not measured again
    text = (folder / "config.yaml").read_text()
    refused = 0
    for length in range(0, len(text), 3):
        (folder / "config.yaml").write_text(text[:length])
        try:
            collect([folder], data_cache, 2)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_best_model_is_measured_once_if_it_is_the_last_one(trained, monkeypatch):
    steps = {"best": 7, "last": 7}
    run = SavedRun(run_of_seed(trained, 0))
    monkeypatch.setattr(run, "step", steps.__getitem__)
    measured = []

    def measure(which: str) -> int:
        measured.append(which)
        return len(measured)

    assert run.measure_models(steps, measure) == {"best": 1, "last": 1}
    steps["last"] = 8
    assert run.measure_models(steps, measure) == {"best": 2, "last": 3}
