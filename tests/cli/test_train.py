"""train.py as a user meets it: its output, the files it leaves, and its exit status."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.datasets import MNIST

import vae
from tests.helpers import (
    ROOT,
    compose_config,
    read_json,
    read_lines,
    run_script,
)
from vae.config.build import build_experiment
from vae.experiment import NothingToDo, run_experiment

SMALL = [
    "device=cpu",
    "data=mnist_5k",
    "model.networks.encoder_sizes=[32]",
    "model.networks.decoder_sizes=[32]",
    "latents=4",
    "categories=8",
    "training.epochs=2",
    "tracking.pictures_every=1",
    "importance_samples=5",
]


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> tuple[Path, Path, str]:
    """Run the same command twice; return both run folders, and the output of the second run.

    What Python writes about the imports of the second run is in the file `imports`.
    """
    cwd = tmp_path_factory.mktemp("twins")
    for name, env in ("first", None), ("second", {"PYTHONPROFILEIMPORTTIME": "1"}):
        words = [*SMALL, f"hydra.run.dir={name}"]
        status, output, errors = run_script("train.py", *words, cwd=cwd, threads=None, env=env)
        assert status == 0, errors
    (cwd / "imports").write_text(errors)
    return cwd / "first", cwd / "second", output


@pytest.fixture
def run(twins) -> Path:
    return twins[0]


# A finished run


def test_the_same_command_gives_the_same_numbers_bit_for_bit(twins):
    first, second, _ = twins
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    tests = [read_json(run / "summary.json")["test"] for run in (first, second)]
    assert tests[0] == tests[1]
    for which in ("best", "last"):
        a, b = (vae.load(folder, which).state_dict() for folder in (first, second))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_prints_its_bounds_its_folder_and_the_tensorboard_command(twins):
    _, run, output = twins
    assert "mnist_5k, binarize=none, validation=500, test, 500 images" in output
    assert "no likelihood" in output  # because pixels are grey
    assert f"Run folder: {run}" in output
    assert f"tensorboard --logdir {run.parent}" in output
    assert f"{read_json(run / 'summary.json')['test']['last']['elbo']:.2f}" in output


def test_a_run_folder_holds_all_files_of_one_run(run):
    hidden = ("events.", ".lock")  # some versions of filelock remove the lock file
    names = {file.name for file in run.iterdir() if not file.name.startswith(hidden)}
    files = {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "status.json"}
    files |= {"best.pt", "last.pt", "best.previous.pt", "last.previous.pt"}
    assert names == files | {"projector_config.pbtxt", "00081"}
    environment = read_json(run / "environment.json")
    assert environment["overrides"][: len(SMALL)] == SMALL
    assert environment["torch"] == torch.__version__
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["steps"] is None


def test_a_run_imports_no_package_that_it_does_not_need(run):
    lines = (run.parent / "imports").read_text().splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "torch" in imported
    assert not imported & {"pandas", "scipy", "matplotlib", "sklearn"}  # of evaluate.py
    assert not imported & {"sympy", "torch._dynamo"}  # of torch.compile


def test_the_bounds_of_a_run_are_in_order(run):
    bounds = read_json(run / "summary.json")["test"]["last"]
    assert bounds["elbo"] == pytest.approx(-bounds["distortion"] - bounds["rate"])
    assert 0 <= bounds["rate"] <= 4 * torch.tensor(8.0).log()
    assert bounds["elbo"] < bounds["importance_weighted"] < bounds["log_likelihood"]
    assert bounds["elbo_map"] < bounds["log_likelihood"]


def test_metrics_jsonl_has_a_line_with_every_curve_for_each_epoch(run):
    lines = read_lines(run)
    assert [line["step"] for line in lines] == [40, 80]
    groups = {name.partition("/")[0] for name in lines[0]}
    assert groups >= {"objective", "elbo", "rate", "distortion", "latent", "schedule", "gradient"}
    assert {"schedule/lr", "schedule/beta", "schedule/temperature"} <= set(lines[0])
    assert {"elbo/train", "elbo/valid", "latent/perplexity", "latent/active"} <= set(lines[0])


def test_tensorboard_has_every_curve_picture_and_setting(run):
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"elbo/train", "elbo/valid", "elbo-test/best", "elbo-test/last"} <= set(tags["scalars"])
    assert {"schedule/temperature", "time/images_per_second"} <= set(tags["scalars"])
    assert set(tags["images"]) == {
        "pictures/reconstructions",
        "pictures/samples",
        "pictures/traversal",
        "pictures/usage",
    }
    assert [image.step for image in events.Images("pictures/samples")] == [40, 80]
    assert tags["histograms"] == ["latent/code_usage"]
    assert "config/text_summary" in tags["tensors"]
    assert events.summary_metadata["_hparams_/session_start_info"]
    logged = [point.value for point in events.Scalars("elbo/valid")]
    assert logged == pytest.approx([line["elbo/valid"] for line in read_lines(run)])


def test_evaluate_prints_the_numbers_of_the_run(run, tmp_path):
    words = [run, "--importance-samples", "5", "--model", "last", "--runs", "--format", "json"]
    status, output, errors = run_script("evaluate.py", *words, cwd=tmp_path, threads=None)
    assert status == 0, errors
    ((title, rows),) = json.loads(output).items()
    assert title.startswith("mnist_5k, binarize=none, validation=500, test, 500 images")
    assert rows[0]["run"] == str(run)
    assert rows[0].items() >= read_json(run / "summary.json")["test"]["last"].items()


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP only on Linux")
@pytest.mark.parametrize(
    ("script_name", "policy", "spins"),
    [
        ("train.py", None, "10000"),
        pytest.param("evaluate.py", "passive", "0", marks=pytest.mark.slow),
    ],
)
def test_openmp_threads_soon_release_their_core(script_name, policy, spins, tmp_path, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # another test may have set it
    variables = {"OMP_DISPLAY_ENV": "verbose"}  # OpenMP prints its settings when it is loaded
    if policy is not None:
        variables["OMP_WAIT_POLICY"] = policy
    wrong = {"train.py": "training.epochs=0", "evaluate.py": "nowhere"}  # found after the import
    _, _, errors = run_script(
        script_name, wrong[script_name], cwd=tmp_path, threads=None, env=variables
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in errors


def test_load_returns_a_model_for_python(run):
    model = vae.load(run)
    logits = model.encode(torch.zeros(3, 784))
    assert logits.shape == (3, 4, 8)
    assert model.decode(logits.softmax(-1)).shape == (3, 784)
    samples = model.sample(5)
    assert samples.shape == (5, 784)
    assert samples.min() >= 0 and samples.max() <= 1


def names_of_files(run: Path) -> set[str]:
    """Return the names of the files that training writes, without times in the names."""
    return {file.name.partition(".tfevents")[0] for file in run.iterdir()} - {"evaluation.json"}


def test_run_experiment_writes_the_same_run_as_the_command(run, tmp_path, capsys, float32):
    folder = tmp_path / "from" / "python"
    config = compose_config(*SMALL)
    run_experiment(build_experiment(config), folder, overrides=SMALL)
    assert f"Run folder: {folder}" in capsys.readouterr().out
    assert names_of_files(folder) == names_of_files(run)
    assert (folder / "config.yaml").read_text() == (run / "config.yaml").read_text()
    bounds, expected = (read_json(path / "summary.json")["test"] for path in (folder, run))
    for which in expected:  # not bit for bit, because the numbers of threads may differ
        assert bounds[which]["elbo"] == pytest.approx(expected[which]["elbo"], rel=1e-4)
    with pytest.raises(NothingToDo):
        run_experiment(build_experiment(config), folder)


# Help


def test_hydra_help_is_printed_if_argparse_reads_help_texts_at_once(tmp_path, script, monkeypatch):
    """Python 3.14 does so. One of Hydra 1.3's help texts is not a text before it is printed."""
    add_argument = argparse.ArgumentParser.add_argument

    def check_help(self: argparse.ArgumentParser, action: argparse.Action) -> None:
        assert action.help is None or "%" not in action.help

    def add_and_check(
        self: argparse.ArgumentParser, *names: str, **options: object
    ) -> argparse.Action:
        action = add_argument(self, *names, **options)
        self._check_help(action)
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check_help, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_and_check)
    status, output, _ = script("train.py", "--hydra-help", cwd=tmp_path)
    assert status == 0 and "Install or Uninstall shell completion" in output


@pytest.mark.parametrize(
    ("script_name", "expected"),
    [("train.py", "estimator: .*exact.*straight_through"), ("evaluate.py", "--gradients")],
)
def test_help_is_printed_without_importing_torch(script_name, expected, tmp_path):
    program = (
        f"import runpy, sys; sys.argv = [{script_name!r}, '--help']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"try: runpy.run_path({str(ROOT / script_name)!r}, run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert re.search(expected, process.stdout)


# Wrong command lines


def test_flags_that_exclude_each_other_are_refused_in_one_line(tmp_path, script):
    status, _, errors = script("train.py", "-m", "--cfg", "job", cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith("train.py: Only one of --run, --multirun, --cfg")


WRONG = {
    "unknown key": (["latens=3"], "latens: there is no such key; did you mean latents?"),
    "unknown nested key": (["estimator.temprature=1"], "estimator.temprature", "temperature?"),
    "added unknown key": (["+estimator.temprature=1"], "estimator.temprature", "temperature?"),
    "added unknown key at the root": (["+epochs=3"], "epochs"),
    "unknown option": (["estimator=straight_trough"], "did you mean straight_through?"),
    "unknown schedule": (["estimator/temperature=lineer"], "did you mean linear?"),
    "temperature of an estimator without one": (
        ["estimator=exact", "estimator.temperature=1"],
        "estimator.temperature",
    ),
    "temperature zero": (["estimator.temperature=0"], "estimator.temperature", "greater than 0"),
    "temperature word": (["estimator.temperature=hot"], "estimator.temperature", "hot"),
    "temperature nan": (["estimator.temperature=nan"], "estimator.temperature", "nan"),
    "one category": (["categories=1"], "categories=1", "greater than or equal to 2"),
    "fractional epochs": (["training.epochs=2.5"], "training.epochs=2.5", "integer"),
    "negative epochs": (["training.epochs=-1"], "training.epochs=-1"),
    "batch larger than the data": (
        ["training.batch_size=9999"],
        *("training.batch_size=9999", "4000"),
    ),
    "negative learning rate": (["optimizer.lr=-1"], "optimizer.lr", "negative"),
    "size of a layer": (
        ["model.networks.encoder_sizes=[8,x]"],
        "model.networks.encoder_sizes.1=x",
    ),
    "activation": (["model.networks.activation=rely"], "model.networks.activation", "'relu'"),
    "binarisation": (["data.binarize=maybe"], "data.binarize=maybe", "'dynamic'"),
    "too many codes to enumerate": (["estimator=exact"], "estimator", "10**20", "16384"),
    "warm-up longer than the run": (
        ["optimizer/lr=cosine", "optimizer.lr.warmup=99999"],
        *("optimizer.lr", "warmup"),
    ),
    "device": (["device=tpu"], "device=tpu"),
    "seed that is a word": (["seed=x"], "seed=x"),
    "seed that torch does not take": (
        ["seed=18446744073709551616"],
        "seed=18446744073709551616",
    ),
    "patience without validation images": (
        ["data=mnist", "data.validation=0", "training.patience=3"],
        *("training.patience=3", "held out"),
    ),
    "override without a value": (["training.epochs"], "training.epochs"),
    "deleted group": (["~estimator"], "estimator"),
    "list for a group": (["data=[4,4]"], "train.py: data=[4,4]: a group takes the name"),
    "null for a group": (["estimator=null"], "estimator=null: a group takes"),
    "vimco with an estimator": (
        ["objective=vimco", "estimator=reinmax"],
        *("estimator: VIMCO", "add '~estimator'"),
    ),
    "vimco with one sample": (["objective=vimco", "objective.samples=1"], "objective.samples=1"),
    "concrete without a relaxation": (
        ["objective=concrete", "estimator=reinmax"],
        "GumbelSoftmax",
    ),
    "importance weighting without samples": (
        ["objective=importance_weighted", "estimator=reinforce"],
        "estimator: ImportanceWeighted does not take Reinforce; it takes ",
        "StraightThrough",
    ),
    "another image shape": (["+model.image_shape=[14,14]"], "model.image_shape=[14, 14]", "28"),
    "number for an image shape": (["+model.image_shape=28"], "model.image_shape=28", "tuple"),
    "null for an image shape": (["+model.image_shape=null"], "model.image_shape", "tuple"),
    "no objective": (["objective._target_=null"], "objective"),
    "schedule of a temperature that does not exist": (
        ["estimator=reinforce", "estimator/temperature=linear"],
        "estimator/temperature: the chosen options have no such group",
    ),
    "gradients of an objective without an estimator": (
        ["objective=vimco", "tracking.gradient_every=1"],
        "tracking.gradient_every=1",
    ),
    "number of categories without published settings": (
        ["experiment=maddison_240", "categories=10"],
        *("categories=10", "2, 4, 8"),
    ),
    "schedule of a number": (
        ["estimator.temperature.start=1"],
        "estimator.temperature is a number; choose a schedule first: estimator/temperature=",
    ),
    "key below a number": (["latents.x=1"], "latents.x: latents is not a group of keys"),
    "foreign function": (
        ["model._target_=os.system"],
        "_target_=os.system: only classes of the package vae can be used",
    ),
    "character that must be quoted": (
        ["hydra.run.dir=outputs/a=1"],
        "hydra.run.dir=outputs/a=1: mismatched input",
        """as text: 'hydra.run.dir="outputs/a=1"'""",
    ),
    "several values of one run": (["seed=0,1"], "seed=0,1: several values need -m"),
    "name of a sweep": (["sweep=NAME"], "sweep=NAME has no effect without -m", "hydra.run.dir"),
    "launcher of a single run": (
        ["hydra/launcher=joblib"],
        "hydra/launcher=joblib has no effect without -m",
    ),
    "sweeper of a single run": (
        ["hydra.sweeper.max_batch_size=2"],
        "hydra.sweeper.max_batch_size=2 has no effect without -m",
    ),
    "folder without a name": (["hydra.run.dir="], "hydra.run.dir= names no folder"),
    "run to resume without a name": (["resume=''"], "resume= names no folder"),
    "deleted key of the folder's name": (["~seed"], "'seed'"),
    "more replicas than one run trains": (["seeds=1000000"], "at most 1000 replicas"),
    "size in a folder's name": (["latents=../../x"], "latents=../../x: ", "integer"),
    "unknown class": (["estimator._target_=vae.estimators.Nope"], "vae.estimators.Nope"),
    "class of another group": (
        ["estimator._target_=vae.schedules.Constant", "~estimator.temperature"],
        "",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_refused_in_one_line_with_status_2(case, tmp_path, script):
    words, *expected = WRONG[case]
    status, _, errors = script("train.py", "data=mnist_5k", *words, cwd=tmp_path)
    assert status == 2
    assert errors.startswith("train.py: ") and errors.count("\n") == 1
    for part in expected:
        assert part in errors
    assert not list(tmp_path.glob("outputs/*"))


def test_paths_start_where_the_command_was_started(run, tmp_path, script, float32):
    shutil.copytree(run, tmp_path / "run")
    words = ["resume=run", "training.epochs=3", "hydra.job.chdir=True"]
    status, _, errors = script("train.py", *words, cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert read_lines(tmp_path / "run")[-1]["step"] == 120


def test_a_folder_that_the_user_has_created_is_not_removed(tmp_path, script):
    (tmp_path / "run").mkdir()
    status, _, _ = script("train.py", *SMALL, "hydra.run.dir=run", "latents=0", cwd=tmp_path)
    assert status == 2
    assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("name", ["best.pt", "last.previous.pt", "metrics.jsonl", "summary.json"])
def test_a_file_that_is_not_of_a_run_is_not_overwritten(name, tmp_path, script):
    file = tmp_path / "run" / name
    file.parent.mkdir()
    file.write_text("of the user")
    status, _, errors = script("train.py", *SMALL, "hydra.run.dir=run", cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert f"{file} would be overwritten" in errors
    assert file.read_text() == "of the user"


def test_missing_data_are_reported_in_one_line_that_names_the_ways_on(
    tmp_path, script, monkeypatch
):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    status, _, errors = script("train.py", "data=mnist", cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    for part in ("data.root=", "data=mnist_5k", "MNIST/raw"):
        assert part in errors
    assert not (tmp_path / "data").exists()


def test_a_class_outside_of_vae_is_refused_before_training(tmp_path, script, monkeypatch):
    (tmp_path / "elsewhere.py").write_text("from vae.networks import MLP\nclass Mine(MLP): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = [*SMALL, "model.networks._target_=elsewhere.Mine"]
    status, _, errors = script("train.py", *words, cwd=tmp_path)
    assert status == 2
    assert "_target_=elsewhere.Mine" in errors
    assert not list(tmp_path.glob("outputs/*"))


def test_cuda_is_refused_on_a_machine_without_it(tmp_path, script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, errors = script("train.py", "device=cuda", "data=mnist_5k", cwd=tmp_path)
    assert status == 2
    assert "device=cuda" in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to print to")
@pytest.mark.parametrize("script_name", ["train.py", "evaluate.py"])
def test_results_that_cannot_be_printed_are_reported_in_one_line(script_name, run, tmp_path):
    training = [*SMALL, "training.steps=2", "hydra.run.dir=run"]
    words = training if script_name == "train.py" else [run]
    with open("/dev/full", "w") as full:
        status, _, errors = run_script(script_name, *words, cwd=tmp_path, stdout=full)
    assert status == 1
    assert errors == (
        f"{script_name}: the results could not be printed: No space left on device\n"
    )
    if script_name == "train.py":
        assert read_json(tmp_path / "run/status.json")["status"] == "finished"
