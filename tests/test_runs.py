"""Run folders as evaluate.py meets them: two estimators and three seeds of a short sweep."""

import json
import shutil
import subprocess
import sys
import warnings
from functools import partial
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import vae
from vae.comparison import groups as comparison
from vae.config import describe as configuration
from vae.comparison import figures
from vae.config import load as run_folder
from vae.comparison import gradients as run_gradients
from vae.comparison import collect as runs
from vae.comparison.groups import Group, Run
from vae.data.source import to_float
from vae.evaluation.probe import linear_probe
from vae.utils.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def sweep(trained, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


@pytest.fixture
def evaluate(script, tmp_path):
    """evaluate.py in this process: its exit status, output and errors."""
    return partial(script, "evaluate.py", cwd=tmp_path)


def first(sweep: Path) -> Path:
    (folder,) = sweep.glob("straight_through_*seed0*")
    return folder


# Finding and measuring


def test_runs_are_found_at_any_depth(sweep):
    assert len(runs.find(sweep.parent)) == 6
    assert runs.find(first(sweep)) == [first(sweep)]
    assert runs.find(sweep / "nowhere") == []


def test_what_is_measured_is_what_the_run_reported(sweep):
    run = runs.evaluated(first(sweep), runs.Library(), 2, CONFIGS)
    reported = json.loads((first(sweep) / "summary.json").read_text())
    for which in ("best", "last"):
        assert reported["test"][which].items() <= run.measured[which].items()
    assert (run.status, run.seed, run.steps) == ("finished", 0, 41)
    assert run.method == run.settings["estimator"] == "straight_through"


def test_the_cache_is_used_until_something_changes(sweep, monkeypatch):
    calls = []
    real = runs.bounds
    monkeypatch.setattr(runs, "bounds", lambda *a: calls.append(a) or real(*a))
    folder, library = first(sweep), runs.Library()
    fresh = runs.evaluated(folder, library, 2, CONFIGS)
    measured = len(calls)
    assert measured in (1, 2)  # once where the best model is the last one
    assert runs.evaluated(folder, library, 2, CONFIGS) == fresh
    assert len(calls) == measured
    runs.evaluated(folder, library, 3, CONFIGS)  # another number of samples
    assert len(calls) == 2 * measured
    shutil.copy(next(sweep.glob("straight_through_*seed1*")) / "last.pt", folder / "last.pt")
    again = runs.evaluated(folder, library, 3, CONFIGS)
    assert len(calls) > 2 * measured and again.measured["last"] != fresh.measured["last"]
    (folder / runs.CACHE).write_text("{ truncated")
    assert runs.evaluated(folder, library, 3, CONFIGS) == again


def test_what_cannot_be_cached_is_measured_all_the_same(sweep, monkeypatch, caplog):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(runs, "write_json", full)
    run = runs.evaluated(first(sweep), runs.Library(), 2, CONFIGS)
    assert run.measured["last"]["elbo"] < 0
    assert "nothing is cached" in caplog.text


@pytest.mark.parametrize(
    "status, summary, said",
    [(None, False, "unfinished"), ("diverged", False, "diverged"), (None, True, "finished")],
)
def test_a_run_says_how_it_ended(sweep, status, summary, said):
    folder = first(sweep)
    (folder / "status.json").unlink()
    if status:
        (folder / "status.json").write_text(json.dumps({"status": status, "why": "nan"}))
    if not summary:
        (folder / "summary.json").unlink()
    assert runs.evaluated(folder, runs.Library(), 2, CONFIGS).status == said


def test_the_probe_sees_images_drawn_as_those_of_the_test(sweep, monkeypatch):
    config = first(sweep) / "config.yaml"
    config.write_text(config.read_text().replace("binarize: none", "binarize: dynamic"))
    seen = []

    def probe(model, train, test):
        seen.extend([train.images, test.images])
        return linear_probe(model, train, test)

    monkeypatch.setattr(runs, "linear_probe", probe)
    runs.evaluated(first(sweep), runs.Library(), 2, CONFIGS)
    assert seen and all(set(images.unique().tolist()) == {0, 255} for images in seen)


def test_the_probe_is_scikit_learns_on_the_codes_themselves(sweep):
    model = vae.load(first(sweep))
    for parameter in model.encoder.parameters():  # codes that vary, whatever was learned
        torch.nn.init.normal_(parameter)
    data = run_folder.load_data(run_folder.read_config(first(sweep)))
    found = linear_probe(model, data.train, data.test)

    def codes(images):
        probabilities = model.encode(to_float(images)).detach()
        return (probabilities == probabilities.amax(-1, keepdim=True)).flatten(1).float().numpy()

    reference = LogisticRegression(max_iter=500).fit(codes(data.train.images), data.train.labels)
    predicted = reference.predict_proba(codes(data.test.images))
    labels = data.test.labels.numpy()
    assert found.accuracy == pytest.approx((predicted.argmax(1) == labels).mean(), abs=0.01)
    assert found.nll == pytest.approx(log_loss(labels, predicted), rel=0.01)
    assert 0.1 < found.accuracy < 1 and 0 < found.nll < np.log(10)


# The command


def test_a_sweep_becomes_a_row_a_group(sweep, evaluate):
    status, printed, errors = evaluate(sweep, "--format", "json", "--importance-samples", 2)
    assert (status, errors) == (0, "")
    ((title, rows),) = json.loads(printed).items()
    assert title.startswith("mnist_5k, binarize=none, validation=500, test, 500 images")
    names = {"straight_through", "reinforce_moving_average"}
    assert {row["estimator"] for row in rows} == names
    assert [row["n"] for row in rows] == [3, 3]
    assert rows[0]["elbo"] > rows[1]["elbo"]
    for row in rows:
        assert row["elbo_low"] <= row["elbo"] <= row["elbo_high"]
        assert row["note"] == ""


def test_the_columns_that_were_promised(sweep, evaluate):
    _, printed, _ = evaluate(sweep, "--format", "csv", "--baseline", "straight_through")
    columns = set(printed.splitlines()[0].split(","))
    assert columns >= {
        *("n", "elbo", "elbo_std", "elbo_low", "elbo_high", "best_seed", "worst_seed"),
        *("difference", "difference_low", "difference_high", "pairs", "seconds", "steps"),
        *("rate", "distortion", "importance_weighted", "elbo_map", "log_likelihood"),
        *("perplexity", "active", "accuracy", "nll", "note"),
    }


def test_tables_for_reading(sweep, evaluate):
    for form in ("table", "markdown"):
        status, printed, _ = evaluate(sweep, "--format", form, "--baseline", "straight_through")
        assert status == 0
        for word in ("ELBO", "±", "95 %", "difference", "probe accuracy"):
            assert word in printed


def test_a_row_a_run(sweep, evaluate):
    _, printed, _ = evaluate(sweep, "--runs", "--format", "json")
    (rows,) = json.loads(printed).values()
    assert len(rows) == 6
    assert {row["run"] for row in rows} == {str(folder) for folder in runs.find(sweep)}


def test_what_cannot_be_read_is_named_and_the_rest_compared(sweep, evaluate):
    broken, empty, *_ = sorted(runs.find(sweep))
    for file in broken.glob("*.pt"):
        file.write_bytes(b"nonsense")
    (empty / "config.yaml").write_text("a: [")
    status, printed, errors = evaluate(sweep, sweep / "nowhere", "--format", "json")
    assert status == 0
    for name in (broken.name, empty.name, "nowhere"):
        assert any(name in line for line in errors.splitlines())
    (rows,) = json.loads(printed).values()
    assert sum(row["n"] for row in rows) == 4


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory) -> Path:
    """The sweep, with its evaluations cached: what is broken in it is found fast."""
    copy = Path(shutil.copytree(trained, tmp_path_factory.mktemp("measured") / "sweep"))
    for folder in runs.find(copy):
        runs.evaluated(folder, runs.Library(), 2, CONFIGS)
    return copy


BROKEN = {
    "evaluation.json": ["", "null", "{}", "[]", '{"asked": 1}', "measured"],
    "status.json": ["", "[]", '{"status": []}', '{"status": {"a": 1}}'],
    "summary.json": ["", "3", '{"steps": "many", "seconds": []}', '{"best_epoch": null}'],
    "metrics.jsonl": ["", '{"a": 1}\n', "[1]\n", "5\n", '{"step": "x"}\n', '{"step": 1', "\0\n"],
}


@pytest.mark.parametrize(
    "name, content", [(name, content) for name, many in BROKEN.items() for content in many]
)
def test_a_broken_file_spoils_no_other_run(measured, tmp_path, evaluate, name, content):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    file = first(sweep) / name
    if content == "measured":
        content = json.dumps(json.loads(file.read_text()) | {"measured": {"last": None}})
    file.write_text(content)
    report = ["--output", tmp_path / "report"] if name == "metrics.jsonl" else []  # drawn from it
    words = [*report, "--importance-samples", "2", "--format", "json"]
    status, printed, errors = evaluate(sweep, *words)
    assert status == 0
    said = [line for line in errors.splitlines() if line and not line.startswith("Report: ")]
    assert all(line.startswith("evaluate.py: ") for line in said)
    (rows,) = json.loads(printed).values()
    assert sum(row["n"] for row in rows) >= 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json", "status.json"])
def test_a_folder_in_the_place_of_a_file_spoils_no_other_run(measured, tmp_path, evaluate, name):
    sweep = Path(shutil.copytree(measured, tmp_path / "sweep"))
    (first(sweep) / name).unlink()
    (first(sweep) / name).mkdir()
    status, printed, _ = evaluate(sweep, "--importance-samples", "2", "--format", "json")
    assert status == 0 and len(*json.loads(printed).values()) == 2


def test_a_configuration_cut_anywhere_is_read_or_refused(measured, tmp_path):
    folder = Path(shutil.copytree(first(measured), tmp_path / "run"))
    text, library = (folder / "config.yaml").read_text(), runs.Library()
    ends = {"read": 0, "refused": 0}
    for length in range(0, len(text), 3):
        (folder / "config.yaml").write_text(text[:length])
        try:
            runs.evaluated(folder, library, 2, CONFIGS)
            ends["read"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            ends["refused"] += 1
    assert ends["refused"] > 100


def test_nothing_to_compare_is_status_1(tmp_path, evaluate):
    status, printed, errors = evaluate(tmp_path)
    assert (status, printed) == (1, "")
    assert str(tmp_path) in errors


def test_a_data_set_without_a_finished_run_has_no_figures(sweep, evaluate, tmp_path):
    folder = first(sweep)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("binarize: none", "binarize: static"))
    (folder / "status.json").write_text('{"status": "interrupted"}')
    status, _, errors = evaluate(sweep, "--output", tmp_path / "report")
    assert status == 0 and "index.html" in errors
    assert (tmp_path / "report/index.html").read_text().count("<svg") == 3


def test_steps_that_were_filled_in_part_no_groups(sweep, evaluate):
    """As an older version left them in config.yaml."""
    for folder in runs.find(sweep):
        config = folder / "config.yaml"
        steps = 80 if "seed0" in folder.name else "null"  # two epochs of 40
        config.write_text(config.read_text().replace("steps: 41", f"steps: {steps}"))
    _, printed, _ = evaluate(sweep, "--format", "json")
    (rows,) = json.loads(printed).values()
    assert [row["n"] for row in rows] == [3, 3]


def test_why_nothing_could_be_compared(sweep, evaluate):
    for folder in runs.find(sweep):
        (folder / "status.json").write_text('{"status": "diverged"}')
    status, printed, errors = evaluate(sweep)
    assert (status, printed) == (1, "")
    assert "nothing could be compared: 3 diverged" in errors


@pytest.mark.parametrize("below", ["", "below"])
def test_a_report_that_cannot_be_written_is_said_before_anything_is_measured(
    sweep, evaluate, tmp_path, below
):
    (tmp_path / "file").write_text("")
    status, printed, errors = evaluate(sweep, "--output", tmp_path / "file" / below)
    assert (status, printed) == (2, "")
    assert errors.startswith("evaluate.py: --output ") and errors.count("\n") == 1
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
def test_bad_usage_is_status_2(sweep, evaluate, words):
    status, _, errors = evaluate(sweep, *words)
    assert status == 2
    assert words[1].lstrip("-") in errors and "Traceback" not in errors


def test_data_sets_are_compared_apart(sweep, evaluate):
    config = first(sweep) / "config.yaml"
    config.write_text(config.read_text().replace("binarize: none", "binarize: threshold"))
    _, printed, _ = evaluate(sweep, "--format", "json")
    titles = list(json.loads(printed))
    assert len(titles) == 2 and len(set(titles)) == 2


def test_the_report_is_whole_and_opens_offline(sweep, evaluate, tmp_path):
    folder = tmp_path / "report"
    status, _, errors = evaluate(sweep, "--output", folder, "--baseline", "straight_through")
    assert status == 0 and str(folder / "index.html") in errors
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *("groups.csv", "groups.json", "groups.md", "runs.csv", "index.html"),
        *("learning_curves.svg", "rate_distortion.svg", "final_bounds.svg"),
    }
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 3 and page.count("data:image/png;base64,") == 4
    for reference in ("src=", "href="):
        for target in page.split(reference)[1:]:
            assert target.startswith(('"data:', '"#')), target[:60]
    for drawing in folder.glob("*.svg"):
        text = " ".join(ElementTree.parse(drawing).getroot().itertext())
        assert "straight_through" in text or 'id="text_' in drawing.read_text()


# The gradient


def test_each_runs_own_estimator_is_measured_as_it_was_trained(sweep, evaluate):
    status, printed, _ = evaluate(sweep, "--gradients", "--draws", 40, "--format", "json")
    assert status == 0
    ((title, rows),) = json.loads(printed).items()
    assert "100 test images, 40 draws" in title and "relative to the exact one" in title
    assert len(rows) == 6
    assert {row["estimator"] for row in rows} == {"straight_through", "reinforce_moving_average"}
    for row in rows:
        assert row["deviation"] > 0 and -1 <= row["cosine"] <= 1


def test_any_estimator_is_measured_on_a_runs_model(sweep, evaluate, tmp_path):
    words = ["--gradients", "--draws", 40, "--format", "csv", "--output", tmp_path / "out"]
    status, printed, _ = evaluate(first(sweep), *words, "--estimators", "disarm,rebar,exact")
    assert status == 0
    assert pd.read_csv(StringIO(printed)).estimator.tolist() == ["disarm", "rebar"]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    figures = {"gradients.svg", "gradients_along_training.svg"}
    assert names == figures | {"gradients.csv", "gradients.json", "gradients.md"}


def test_a_process_that_only_evaluates_knows_what_option_files_ask_for(sweep):
    """In one of its own: here, other tests have imported all that there is."""
    words = ["--gradients", "--draws", "2", "--estimators", "reinmax"]
    command = [sys.executable, str(ROOT / "evaluate.py"), str(first(sweep)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "reinmax" in done.stdout


def test_all_means_every_yaml(sweep, monkeypatch):
    """Without the cost of measuring them."""
    config = run_folder.read_config(first(sweep))
    names = configuration.option_names(CONFIGS, "estimator")
    estimators = run_gradients.named_estimators(CONFIGS, config, names)
    assert set(estimators) == {file.stem for file in (CONFIGS / "estimator").glob("*.yaml")}
    for estimator in estimators.values():
        estimator.check(config.latents, config.categories)


def test_an_estimator_at_other_settings_than_its_own(sweep, evaluate):
    words = ["--gradients", "--draws", "30", "--estimators", "reinmax,reinmax:temperature=1.0"]
    status, printed, errors = evaluate(first(sweep), *words)
    assert status == 0, errors
    assert "reinmax:temperature=1.0" in printed
    assert "40 draws" in printed  # of twenty chunks, as many in each
    status, _, errors = evaluate(first(sweep), "--gradients", "--estimators", "reinmax:heat=1")
    assert (status, errors.count("\n")) == (1, 2) and "heat" in errors


def test_digits_of_before_their_validation_could_be_chosen(sweep, evaluate):
    """Folders whose configuration says nothing of it are of the same data, and of one group."""
    file = first(sweep) / run_folder.CONFIG
    written = file.read_text()
    file.write_text(written.replace("  validation: 500\n", ""))
    assert "validation" in written and "validation" not in file.read_text()
    _, printed, _ = evaluate(sweep, "--format", "json")
    (rows,) = json.loads(printed).values()
    assert [row["n"] for row in rows] == [3, 3]


def test_a_best_model_that_is_the_last_is_measured_once(sweep, monkeypatch):
    of_step = {"best": 7, "last": 7}
    monkeypatch.setattr(run_folder, "load_step", lambda run, which: of_step[which])
    asked = []
    measure = lambda which: asked.append(which) or len(asked)
    assert run_folder.of_each_step(sweep, of_step, measure) == {"best": 1, "last": 1}
    of_step["last"] = 8
    assert run_folder.of_each_step(sweep, of_step, measure) == {"best": 2, "last": 3}


def test_the_bound_is_at_as_many_samples_as_the_run_asked_for(sweep, evaluate):
    _, printed, _ = evaluate(first(sweep))
    assert "IW bound at m = 2:" in printed
    _, printed, _ = evaluate(first(sweep), "--importance-samples", "3")
    assert "IW bound at m = 3:" in printed


@pytest.mark.parametrize("bound", comparison.BOUNDS)
def test_groups_by_any_bound(sweep, evaluate, bound):
    status, printed, errors = evaluate(sweep, "--by", bound, "--format", "json")
    assert status == 0, errors
    (rows,) = json.loads(printed).values()
    means = [row[bound] for row in rows]
    assert means == sorted(means, reverse=True)
    assert all(row[f"{bound}_low"] < row[bound] < row[f"{bound}_high"] for row in rows)


def test_an_estimator_that_there_is_not(sweep, evaluate):
    status, _, errors = evaluate(first(sweep), "--gradients", "--estimators", "straight_trough")
    assert status == 2
    assert "did you mean straight_through?" in errors


def test_the_gradient_along_training_is_in_the_metrics(sweep):
    lines = runs.metrics(first(sweep))
    assert {"gradient/bias", "gradient/variance", "gradient/cosine"} <= set(lines)
    assert (lines["gradient/variance"] > 0).all() and (lines["gradient/bias_error"] > 0).all()


# Figures


def test_an_estimator_looks_the_same_everywhere_and_like_no_other():
    names = [file.stem for file in (CONFIGS / "estimator").glob("*.yaml")] + ["vimco"]
    looks = {name: figures.style(name) for name in names}
    assert len(set(looks.values())) == len(names)
    assert figures.style("of my own") == figures.style("of my own")


@pytest.mark.parametrize("number", [3, 50])
def test_figures_of_many_groups_with_long_names_keep_their_panels(number):
    """None is squeezed, and no legend lies over one."""
    names = [
        f"straight_through_gumbel temperature=0.{n:03} some.other.setting=1e-{n}"
        for n in range(number)
    ]
    numbers = {"elbo": -100.0, "rate": 20.0, "distortion": 80.0}
    groups = [
        Group(
            {"a": name},
            "reinmax",
            [Run(name, "", "", {}, 0, "", {"last": numbers}, 1, 1, 1, {})],
            [],
        )
        for name in names
    ]
    lines = pd.DataFrame({"step": [1.0, 2.0], "elbo/train": [-120.0, -100.0]})
    drawn = [
        figures.learning_curves(groups, dict.fromkeys(names, lines)),
        figures.rate_distortion(groups),
        figures.final_bounds(groups),
    ]
    for figure in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # constrained layout gives up with one
            figure.draw_without_rendering()
        (axes,) = figure.axes
        panel = axes.get_window_extent()
        assert panel.width > 350 and panel.height > 60
        for legend in figure.legends:
            shown = legend.get_window_extent()
            assert shown.x0 >= panel.x1 and shown.x1 <= figure.bbox.x1 + 1
            assert shown.y0 >= -1


def test_a_figure_of_one_point():
    table = pd.DataFrame(
        {"estimator": ["reinmax"], "bias": [0.1], "bias_error": [0.0], "deviation": [2.0]}
    )
    (axes,) = figures.bias_against_deviation(table, "title").axes
    assert axes.get_xscale() == "log"
