"""The output and the files of evaluate.py for a sweep of two estimators and three seeds."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from tests.helpers import read_json, read_lines, read_scalars, run_script, subfolders
from vae.comparison.collect import DataCache, collect
from vae.comparison.text import BOUNDS
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
    collect(find_runs(copy), DataCache())
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
    for word in ("ELBO", "±", "95 %", "difference", "IW bound"):
        assert word in output


@pytest.mark.parametrize("mode", [[], ["--runs"], ["--gradients", "--draws", 2]], ids=str)
def test_table_fits_a_terminal_and_names_the_columns_that_do_not(
    measured, evaluate, monkeypatch, mode
):
    monkeypatch.setenv("COLUMNS", "60")
    status, output, _ = evaluate(measured, *mode)
    assert status == 0
    assert max(map(len, output.splitlines())) <= 60
    assert "No room for: " in output
    assert "--columns all shows" in output


def test_table_that_is_not_printed_to_a_terminal_may_be_wide(measured, evaluate, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    _, output, _ = evaluate(measured, "--importance-samples", 2)
    assert max(map(len, output.splitlines())) > 100
    assert "No room for" not in output
    assert output.splitlines()[2].endswith("  log p(x)")
    assert "probe accuracy" not in output


def test_differences_are_to_the_best_group_if_no_baseline_is_named(measured, evaluate):
    words = [measured, "--importance-samples", 2, "--columns", "difference"]
    _, output, _ = evaluate(*words)
    best, other = (line.split() for line in output.splitlines()[-2:])
    assert best == ["straight_through", "3", "-"]
    assert float(other[-1]) < 0
    _, output, _ = evaluate(*words, "--baseline", other[0])
    assert [line.split()[-1] for line in output.splitlines()[-2:]] == [other[-1].lstrip("-"), "-"]
    for form in ("csv", "json"):
        _, output, _ = evaluate(*words[:3], "--format", form)
        assert "difference" not in output


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_option_columns_chooses_columns_by_their_names_in_the_table_or_in_csv(
    measured, evaluate, monkeypatch, form
):
    monkeypatch.setenv("COLUMNS", "20")  # the choice counts, even if it does not fit
    words = [measured, "--importance-samples", 2, "--format", form, "--columns"]

    def headings(*options: str) -> list[str]:
        _, output, _ = evaluate(*words, *options)
        line = output.splitlines()[2]
        return re.split(r"\s*\|\s*|\s{2,}", line.strip("| "))

    chosen = ["probe nll", "95 %", "ELBO of the mode"]
    assert headings("probe nll,elbo_low,95 %,elbo_map") == ["estimator", "n", *chosen]
    assert headings("accuracy", "--runs") == ["run", "probe accuracy"]
    assert set(headings("all")) >= {"ELBO", "difference", "pairs", "probe accuracy", "seconds"}


@pytest.mark.parametrize(
    ("mode", "name", "suggestion"),
    [([], "elbo_sdt", "elbo_std"), (["--runs"], "sed", "seed"), (["--gradients"], "bia", "bias")],
)
def test_unknown_column_is_status_2_and_the_nearest_name_is_suggested(
    measured, evaluate, mode, name, suggestion
):
    status, output, errors = evaluate(measured, *mode, "--columns", name)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert f"did you mean {suggestion}?" in errors


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


# Runs that do not count

ALL_TABLES = pytest.mark.parametrize(
    "options",
    [[], ["--runs"], ["--format", "json"], ["--format", "csv", "--output", "report"]],
    ids=" ".join,
)


def complaints(errors: str) -> list[str]:
    """Return the messages of evaluate.py without the name of the command and of the report."""
    lines = [line for line in errors.splitlines() if line and not line.startswith("Report: ")]
    assert all(line.startswith("evaluate.py: ") for line in lines)
    return [line.removeprefix("evaluate.py: ") for line in lines]


@ALL_TABLES
def test_runs_that_do_not_count_are_named_with_the_reason(measured, tmp_path, evaluate, options):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    one, two, *_ = find_runs(sweep)
    copy = Path(shutil.copytree(two, sweep / "z"))
    (one / "status.json").write_text('{"status": "interrupted"}')
    status, _, errors = evaluate(sweep, *options)
    assert status == 0
    assert [line for line in complaints(errors) if line.startswith("not counted")] == [
        f"not counted, unfinished: {one}",
        f"not counted, with a repeated seed (1): {copy}",
    ]


@ALL_TABLES
def test_links_to_runs_are_followed_and_links_that_lead_nowhere_are_named(
    measured, tmp_path, evaluate, options
):
    (tmp_path / "chosen").mkdir()
    for run in find_runs(measured):
        (tmp_path / "chosen" / run.name).symlink_to(run)
    (tmp_path / "chosen/gone").symlink_to("nowhere")
    status, output, errors = evaluate("chosen", "chosen/gone", measured, *options)
    assert status == 0
    assert complaints(errors) in (
        ["chosen/gone: the link leads nowhere"],
        ["chosen/gone: No such file or directory"],
    )
    if "json" in options:
        (rows,) = json.loads(output).values()
        assert [row["n"] for row in rows] == [3, 3]


@pytest.mark.parametrize(
    ("options", "has_differences"),
    [
        (["--baseline", "straight_through", "--format", "csv"], True),
        (["--format", "table"], True),  # the differences to the best group
        (["--format", "csv"], False),
        (["--runs"], False),
    ],
)
def test_runs_without_a_pair_in_a_difference_of_the_table_are_named(
    measured, tmp_path, evaluate, options, has_differences
):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    shutil.rmtree(first_run(sweep))
    (alone,) = sweep.glob("reinforce_*seed0*")
    status, _, errors = evaluate(sweep, *options)
    assert status == 0
    reason = "not in a difference, because straight_through lacks the seed"
    assert complaints(errors) == [f"{reason}: {alone}"] * has_differences


def test_tables_of_data_without_the_baseline_are_named(measured, tmp_path, evaluate):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    for run in sweep.glob("reinforce_*"):
        replace(run / "config.yaml", "binarize: none", "binarize: threshold")
    status, _, errors = evaluate(sweep, "--baseline", "straight_through", "--format", "csv")
    assert status == 0
    (line,) = complaints(errors)
    assert line.startswith("mnist_5k, binarize=threshold")
    assert "baseline straight_through: none of the groups fit" in line


def test_runs_whose_gradients_are_not_measured_are_named(measured, tmp_path, evaluate):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    one, two, *others = find_runs(sweep)
    for run in others[1:]:
        shutil.rmtree(run)
    for file in one.glob("*.pt"):
        file.unlink()
    status, output, errors = evaluate(sweep, "--gradients", "--draws", 2, "--format", "json")
    assert status == 0
    assert [row["run"] for row in json.loads(output).popitem()[1]] == [str(two), str(others[0])]
    (line,) = complaints(errors)
    assert line.startswith(f"{one} has no ")
    words = ["--gradients", "--draws", 2, "--estimators", "exact"]
    status, _, errors = evaluate(two, *words)
    assert status == 1
    assert complaints(errors) == [
        f"not counted, exact is the reference of all other estimators, and is not measured: {two}",
        "nothing could be measured",
    ]


# Standard streams


@pytest.mark.parametrize("mode", [[], ["--runs"], ["--gradients", "--draws", 2]], ids=str)
@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
def test_tables_can_be_printed_in_ascii(measured, evaluate, monkeypatch, tmp_path, mode, form):
    runs = [tmp_path / name for name in ("é", os.fsdecode(b"\xff"))]
    for run, original in zip(runs, sorted(measured.glob("straight_*")), strict=False):
        shutil.copytree(original, run)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    report = ["--output", "report"] if form == "table" else []
    status, _, errors = evaluate(*runs, *mode, "--format", form, *report)
    assert (status, complaints(errors)) == (0, [])
    assert (b"+-" in printed.getvalue()) == (not mode and form in ("table", "markdown"))


@pytest.mark.slow
def test_report_is_written_even_if_the_table_cannot_be_printed(measured, tmp_path):
    words = [measured, "--output", "report"]
    with open("/dev/full", "w") as full:
        status, _, errors = run_script("evaluate.py", *words, cwd=tmp_path, stdout=full)
    assert status == 1
    assert "the results could not be printed" in errors
    assert (tmp_path / "report/index.html").exists()


def test_means_over_seeds_are_written_for_tensorboard(measured, evaluate, tmp_path):
    status, output, errors = evaluate(measured, "--tensorboard", "means")
    assert (status, output) == evaluate(measured)[:2]
    assert f"--logdir {Path('means')}" in errors
    assert subfolders(tmp_path / "means") == ["reinforce_moving_average", "straight_through"]
    lines = [read_lines(run)[-1] for run in sorted(measured.glob("straight_through_*"))]
    curves = read_scalars(tmp_path / "means" / "straight_through")
    mean = sum(line["elbo/valid"] for line in lines) / 3
    assert curves["elbo/valid"][-1] == (41, pytest.approx(mean))


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
    folders = ", ".join(map(str, find_runs(sweep)))
    assert errors.splitlines() == [
        f"evaluate.py: not counted, diverged: {folders}",
        "evaluate.py: nothing could be compared",
    ]


@pytest.mark.parametrize("option", ["--output", "--tensorboard"])
@pytest.mark.parametrize("below", ["", "below"])
def test_folder_that_cannot_be_created_is_refused_before_anything_is_measured(
    sweep, evaluate, tmp_path, option, below
):
    (tmp_path / "file").write_text("")
    status, output, errors = evaluate(sweep, option, tmp_path / "file" / below)
    assert (status, output) == (2, "")
    assert errors.startswith(f"evaluate.py: {option} ")
    assert errors.count("\n") == 1
    assert not list(sweep.glob("*/evaluation.json"))


@pytest.mark.parametrize(
    "words",
    [
        ["--baseline", "nonesuch"],
        ["--runs", "--no-explorer"],
        ["--importance-samples", "0"],
        ["--format", "xml"],
        ["--model", "first"],
        ["--gradients", "--draws", "1"],
        ["--gradients", "--no-explorer", "--output", "report"],
        ["--runs", "--draws", "5"],
        ["--runs", "--estimators", "reinmax"],
        ["--gradients", "--importance-samples", "5"],
        ["--output", ""],
        ["--tensorboard", ""],
        ["--gradients", "--tensorboard", "means"],
        ["--data-root", ""],
        ["--data-root", "sweep/multirun.yaml"],
        ["--baseline", ""],
        ["--baseline", "reinmax,"],
        ["--baseline", "=None"],
        ["--baseline", "nonesuch=None"],
        ["--importance-samples", ""],
        ["--by", ""],
        ["--gradients", "--estimators", ""],
        ["--gradients", "--estimators", "reinmax,"],
        ["--gradients", "--estimators", "reinmax:"],
        ["--gradients", "--baseline", ""],
        ["--columns", ""],
        ["--columns", "elbo,"],
        ["--format", "csv", "--columns", "elbo"],
        ["--format", "json", "--columns", "elbo"],
    ],
)
def test_wrong_command_line_is_status_2(sweep, evaluate, words):
    status, _, errors = evaluate(sweep, *words)
    assert status == 2
    assert words[1].lstrip("-") in errors
    assert errors.startswith("evaluate.py: ") and errors.count("\n") == 1


def test_empty_name_of_a_run_is_status_2(sweep, evaluate):
    """It would stand for the working directory."""
    status, output, errors = evaluate("")
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert "RUN" in errors


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


def test_explorer_is_left_out_of_the_page_on_demand(measured, evaluate, tmp_path):
    pages = []
    for words in ([], ["--no-explorer"]):
        status, _, errors = evaluate(measured, "--output", tmp_path / "report", *words)
        assert status == 0
        assert ("Report: the explorer takes 0.1 MB" in errors) == (not words)
        pages.append((tmp_path / "report/index.html").read_text())
    assert [page.count('"weights": ') for page in pages] == [2, 0]
    assert [page.count('class="explorer"') for page in pages] == [1, 0]


def test_report_of_one_run_has_all_figures(measured, evaluate, tmp_path):
    status, _, _ = evaluate(first_run(measured), "--output", tmp_path / "report")
    assert status == 0
    assert (tmp_path / "report/index.html").read_text().count("<svg") == 3


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
    words += ["--estimators", "disarm, rebar,exact:limit=16"]
    status, output, errors = evaluate(first_run(sweep), *words)
    assert status == 0
    assert complaints(errors) == [
        "exact is the reference of all other estimators, and is not measured"
    ]
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
    assert (status, errors.count("\n")) == (2, 1)
    assert "heat" in errors


@pytest.mark.slow
def test_process_that_only_evaluates_can_build_an_option_that_uses_resolvers(sweep):
    """This process has imported everything, so the test needs another one."""
    words = [first_run(sweep), "--gradients", "--draws", "2", "--estimators", "reinmax"]
    status, output, errors = run_script("evaluate.py", *words, cwd=sweep)
    assert status == 0, errors
    assert "reinmax" in output
