"""The output and the files of evaluate.py for a sweep of two estimators and three seeds."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from tests.helpers import read_json, run_script
from vae.comparison.collect import DataCache, collect
from vae.comparison.table import BOUNDS
from vae.runs.folder import find_runs

pytestmark = pytest.mark.usefixtures("float32")

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(trained, tmp_path) -> Path:
    """Return a copy of the sweep, which a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory) -> Path:
    """Return a copy of the sweep with cached numbers, so that tests of broken files are fast."""
    copy = Path(shutil.copytree(trained, tmp_path_factory.mktemp("measured") / "sweep"))
    collect(find_runs(copy), DataCache(), 2)
    return copy


@pytest.fixture
def evaluate(script, tmp_path) -> Evaluate:
    """Return a function that runs evaluate.py and returns its exit status, output and errors."""
    return partial(script, "evaluate.py", cwd=tmp_path)


def first_run(sweep: Path) -> Path:
    """Return the folder of one run."""
    (folder,) = sweep.glob("straight_through_*seed0*")
    return folder


def replace(file: Path, old: str, new: str) -> None:
    """Replace a text in a file, and assert that the file has the text."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# Tables


def test_runs_that_differ_in_their_seed_alone_are_one_row(sweep, evaluate):
    status, output, errors = evaluate(sweep, "--format", "json", "--importance-samples", 2)
    assert (status, errors) == (0, "")
    ((title, rows),) = json.loads(output).items()
    assert title.startswith("mnist_5k, binarize=none, validation=500, test, 500 images")
    names = {"straight_through", "reinforce_moving_average"}
    assert {row["estimator"] for row in rows} == names
    assert [row["n"] for row in rows] == [3, 3]
    assert rows[0]["elbo"] > rows[1]["elbo"]
    for row in rows:
        assert row["elbo_low"] <= row["elbo"] <= row["elbo_high"]
        assert row["note"] == ""


def test_csv_has_all_documented_columns(sweep, evaluate):
    _, output, _ = evaluate(sweep, "--format", "csv", "--baseline", "straight_through")
    columns = set(output.splitlines()[0].split(","))
    assert columns >= {
        *("n", "elbo", "elbo_std", "elbo_low", "elbo_high", "best_seed", "worst_seed"),
        *("difference", "difference_low", "difference_high", "pairs", "seconds", "steps"),
        *("rate", "distortion", "importance_weighted", "elbo_map", "log_likelihood"),
        *("perplexity", "active", "accuracy", "nll", "note"),
    }


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_tables_for_people_have_readable_headings(sweep, evaluate, form):
    status, output, _ = evaluate(sweep, "--format", form, "--baseline", "straight_through")
    assert status == 0
    for word in ("ELBO", "±", "95 %", "difference", "probe accuracy"):
        assert word in output


def test_option_runs_prints_one_row_per_run(sweep, evaluate):
    _, output, _ = evaluate(sweep, "--runs", "--format", "json")
    (rows,) = json.loads(output).values()
    assert len(rows) == 6
    assert {row["run"] for row in rows} == {str(folder) for folder in find_runs(sweep)}


@pytest.mark.parametrize("bound", BOUNDS)
def test_groups_are_ordered_by_the_bound_that_is_chosen(sweep, evaluate, bound):
    status, output, errors = evaluate(sweep, "--by", bound, "--format", "json")
    assert status == 0, errors
    (rows,) = json.loads(output).values()
    means = [row[bound] for row in rows]
    assert means == sorted(means, reverse=True)
    assert all(row[f"{bound}_low"] < row[bound] < row[f"{bound}_high"] for row in rows)


def test_bound_has_as_many_samples_as_the_run_unless_the_command_line_says_otherwise(
    sweep, evaluate
):
    _, output, _ = evaluate(first_run(sweep))
    assert "IW bound at m = 2:" in output
    _, output, _ = evaluate(first_run(sweep), "--importance-samples", "3")
    assert "IW bound at m = 3:" in output


def test_runs_of_different_data_have_separate_tables(sweep, evaluate):
    replace(first_run(sweep) / "config.yaml", "binarize: none", "binarize: threshold")
    _, output, _ = evaluate(sweep, "--format", "json")
    titles = list(json.loads(output))
    assert len(titles) == 2
    assert len(set(titles)) == 2


def test_number_of_steps_that_equals_the_epochs_does_not_separate_groups(sweep, evaluate):
    """An older version wrote the number of steps to config.yaml if it was null."""
    for folder in find_runs(sweep):
        steps = 80 if "seed0" in folder.name else "null"  # two epochs of 40
        replace(folder / "config.yaml", "steps: 41", f"steps: {steps}")
    _, output, _ = evaluate(sweep, "--format", "json")
    (rows,) = json.loads(output).values()
    assert [row["n"] for row in rows] == [3, 3]


# Broken run folders


def test_unreadable_runs_are_named_and_the_others_are_compared(sweep, evaluate):
    with_broken_models, with_broken_config, *_ = find_runs(sweep)
    for file in with_broken_models.glob("*.pt"):
        file.write_bytes(b"nonsense")
    (with_broken_config / "config.yaml").write_text("a: [")
    status, output, errors = evaluate(sweep, sweep / "nowhere", "--format", "json")
    assert status == 0
    for name in (with_broken_models.name, with_broken_config.name, "nowhere"):
        assert any(name in line for line in errors.splitlines())
    (rows,) = json.loads(output).values()
    assert sum(row["n"] for row in rows) == 4


BROKEN_FILES = {
    "evaluation.json": ["", "null", "{}", "[]", '{"asked": 1}', "last model is null"],
    "status.json": ["", "[]", '{"status": []}', '{"status": {"a": 1}}'],
    "summary.json": ["", "3", '{"steps": "many", "seconds": []}', '{"best_epoch": null}'],
    "metrics.jsonl": ["", '{"a": 1}\n', "[1]\n", "5\n", '{"step": "x"}\n', '{"step": 1', "\0\n"],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in BROKEN_FILES.items() for content in contents],
)
def test_broken_file_of_one_run_does_not_affect_other_runs(
    measured, tmp_path, evaluate, name, content
):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    file = first_run(sweep) / name
    if content == "last model is null":
        content = json.dumps(read_json(file) | {"measured": {"last": None}})
    file.write_text(content)
    # The report draws the metrics.
    report = ["--output", tmp_path / "report"] if name == "metrics.jsonl" else []
    status, output, errors = evaluate(
        sweep, *report, "--importance-samples", "2", "--format", "json"
    )
    assert status == 0
    messages = [line for line in errors.splitlines() if line and not line.startswith("Report: ")]
    assert all(line.startswith("evaluate.py: ") for line in messages)
    (rows,) = json.loads(output).values()
    assert sum(row["n"] for row in rows) >= 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json", "status.json"])
def test_folder_in_place_of_a_file_does_not_affect_other_runs(measured, tmp_path, evaluate, name):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    (first_run(sweep) / name).unlink()
    (first_run(sweep) / name).mkdir()
    status, output, _ = evaluate(sweep, "--importance-samples", "2", "--format", "json")
    assert status == 0
    assert len(*json.loads(output).values()) == 2


# Exit statuses and messages


def test_folder_without_runs_is_status_1(tmp_path, evaluate):
    status, output, errors = evaluate(tmp_path)
    assert (status, output) == (1, "")
    assert str(tmp_path) in errors


def test_message_says_why_no_run_could_be_compared(sweep, evaluate):
    for folder in find_runs(sweep):
        (folder / "status.json").write_text('{"status": "diverged"}')
    status, output, errors = evaluate(sweep)
    assert (status, output) == (1, "")
    assert "nothing could be compared: 6 diverged" in errors


@pytest.mark.parametrize("below", ["", "below"])
def test_report_folder_that_cannot_be_created_is_refused_before_anything_is_measured(
    sweep, evaluate, tmp_path, below
):
    (tmp_path / "file").write_text("")
    status, output, errors = evaluate(sweep, "--output", tmp_path / "file" / below)
    assert (status, output) == (2, "")
    assert errors.startswith("evaluate.py: --output ")
    assert errors.count("\n") == 1
    assert not list(sweep.glob("*/evaluation.json"))


@pytest.mark.parametrize(
    "words",
    [
        ["--baseline", "nonesuch"],
        ["--importance-samples", "0"],
        ["--format", "xml"],
        ["--model", "first"],
        ["--gradients", "--draws", "1"],
        ["--runs", "--draws", "5"],
        ["--runs", "--estimators", "reinmax"],
        ["--gradients", "--importance-samples", "5"],
    ],
)
def test_wrong_command_line_is_status_2(sweep, evaluate, words):
    status, _, errors = evaluate(sweep, *words)
    assert status == 2
    assert words[1].lstrip("-") in errors
    assert "Traceback" not in errors


def test_unknown_estimator_is_status_2_and_the_nearest_name_is_suggested(sweep, evaluate):
    words = ["--gradients", "--estimators", "straight_trough"]
    status, _, errors = evaluate(first_run(sweep), *words)
    assert status == 2
    assert "did you mean straight_through?" in errors


# The report


def test_report_has_all_files_and_its_page_refers_to_no_other_file(sweep, evaluate, tmp_path):
    folder = tmp_path / "report"
    status, _, errors = evaluate(sweep, "--output", folder, "--baseline", "straight_through")
    assert status == 0
    assert str(folder / "index.html") in errors
    assert {file.name for file in folder.iterdir()} == {
        *("groups.csv", "groups.json", "groups.md", "runs.csv", "index.html"),
        *("learning_curves.svg", "rate_distortion.svg", "final_bounds.svg"),
    }
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 3
    assert page.count("data:image/png;base64,") == 4
    for reference in ("src=", "href="):
        for target in page.split(reference)[1:]:
            assert target.startswith(('"data:', '"#')), target[:60]
    for drawing in folder.glob("*.svg"):
        text = " ".join(ElementTree.parse(drawing).getroot().itertext())
        assert "straight_through" in text or 'id="text_' in drawing.read_text()


def test_data_without_a_finished_run_has_no_figures(sweep, evaluate, tmp_path):
    replace(first_run(sweep) / "config.yaml", "binarize: none", "binarize: static")
    (first_run(sweep) / "status.json").write_text('{"status": "interrupted"}')
    status, _, errors = evaluate(sweep, "--output", tmp_path / "report")
    assert status == 0
    assert "index.html" in errors
    assert (tmp_path / "report/index.html").read_text().count("<svg") == 3


# Gradients


def test_each_run_is_measured_with_its_own_estimator_as_it_was_trained(sweep, evaluate):
    status, output, _ = evaluate(sweep, "--gradients", "--draws", 40, "--format", "json")
    assert status == 0
    ((title, rows),) = json.loads(output).items()
    assert "100 test images, 40 draws" in title
    assert "relative to the exact one" in title
    assert len(rows) == 6
    assert {row["estimator"] for row in rows} == {"straight_through", "reinforce_moving_average"}
    for row in rows:
        assert row["deviation"] > 0
        assert -1 <= row["cosine"] <= 1


def test_any_estimator_can_be_measured_at_the_model_of_a_run(sweep, evaluate, tmp_path):
    words = ["--gradients", "--draws", 40, "--format", "csv", "--output", tmp_path / "report"]
    status, output, _ = evaluate(first_run(sweep), *words, "--estimators", "disarm,rebar,exact")
    assert status == 0
    assert pd.read_csv(StringIO(output)).estimator.tolist() == ["disarm", "rebar"]
    names = {file.name for file in (tmp_path / "report").iterdir()}
    figures = {"gradients.svg", "gradients_along_training.svg"}
    assert names == figures | {"gradients.csv", "gradients.json", "gradients.md"}


def test_estimator_can_have_other_settings_than_those_of_its_option_file(sweep, evaluate):
    words = ["--gradients", "--draws", "30", "--estimators", "reinmax,reinmax:temperature=1.0"]
    status, output, errors = evaluate(first_run(sweep), *words)
    assert status == 0, errors
    assert "reinmax:temperature=1.0" in output
    assert "40 draws" in output  # twenty equal parts, so more than the 30 of the command line
    words = ["--gradients", "--estimators", "reinmax:heat=1"]
    status, _, errors = evaluate(first_run(sweep), *words)
    assert (status, errors.count("\n")) == (1, 2)
    assert "heat" in errors


def test_process_that_only_evaluates_can_build_an_option_that_uses_resolvers(sweep):
    """This process has imported everything, so the test needs another one."""
    words = [first_run(sweep), "--gradients", "--draws", "2", "--estimators", "reinmax"]
    status, output, errors = run_script("evaluate.py", *words, cwd=sweep)
    assert status == 0, errors
    assert "reinmax" in output
