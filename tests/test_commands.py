"""The doors, as a user meets them: what is printed, what is left on the disk, the exit status."""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import vae
from vae.config import build as door
from vae import experiment as session
from vae.utils.runtime import bf16_slowdown

ROOT = Path(__file__).parents[1]
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


def command(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, str(ROOT / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The run folders of the same command given twice, and what the second one printed."""
    cwd = tmp_path_factory.mktemp("twins")
    for name in ("first", "second"):
        done = command("train.py", *SMALL, f"hydra.run.dir={name}", cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd / "first", cwd / "second", done.stdout


@pytest.fixture
def run(twins):
    return twins[0]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_the_same_command_gives_the_same_numbers_bit_for_bit(twins):
    first, second, _ = twins
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    assert summary(first)["test"] == summary(second)["test"]
    for name in ("best", "last"):
        a, b = (vae.load(folder, name).state_dict() for folder in (first, second))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_ends_with_bounds_folder_and_the_way_to_look_at_it(twins):
    _, second, printed = twins
    assert "mnist_5k, binarize=none, validation=500, test, 500 images" in printed
    assert "no likelihood" in printed  # grey pixels
    assert f"Run folder: {second}" in printed
    assert f"tensorboard --logdir {second.parent}" in printed
    assert f"{summary(second)['test']['last']['elbo']:.2f}" in printed


def test_a_run_folder_is_complete_and_one_run(run):
    hidden = ("events.", ".lock")  # some filelocks leave theirs, some do not
    names = {file.name for file in run.iterdir() if not file.name.startswith(hidden)}
    files = {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "status.json"}
    files |= {"best.pt", "last.pt", "best.previous.pt", "last.previous.pt"}
    assert names == files | {"projector_config.pbtxt", "00081"}
    assert len(list(run.glob("events.*"))) == 1
    environment = json.loads((run / "environment.json").read_text())
    assert environment["overrides"][: len(SMALL)] == SMALL
    assert environment["torch"] == torch.__version__
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["steps"] is None


def test_reported_bounds_are_in_order(run):
    nats = summary(run)["test"]["last"]
    assert nats["elbo"] == pytest.approx(-nats["distortion"] - nats["rate"])
    assert 0 <= nats["rate"] <= 4 * torch.tensor(8.0).log()
    assert nats["elbo"] < nats["importance_weighted"] < nats["log_likelihood"]
    assert nats["elbo_map"] < nats["log_likelihood"]


def test_metrics_hold_every_curve(run):
    lines = metrics(run)
    assert [line["step"] for line in lines] == [40, 80]
    names = {name.partition("/")[0] for name in lines[0]}
    assert names >= {"objective", "elbo", "rate", "distortion", "latent", "schedule", "gradient"}
    assert {"schedule/lr", "schedule/beta", "schedule/temperature"} <= set(lines[0])
    assert {"elbo/train", "elbo/valid", "latent/perplexity", "latent/active"} <= set(lines[0])


def test_tensorboard_can_show_it(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"elbo/train", "elbo/valid", "elbo/test", "rate/test"} <= set(tags["scalars"])
    assert {"schedule/temperature", "time/images_per_second"} <= set(tags["scalars"])
    assert set(tags["images"]) == {
        "reconstructions",
        "samples",
        "first_latent_swept",
        "code_usage",
    }
    assert [image.step for image in events.Images("samples")] == [40, 80]
    assert tags["histograms"] == ["latent/code_usage"]
    assert "config/text_summary" in tags["tensors"]
    assert events.summary_metadata["_hparams_/session_start_info"]
    logged = [point.value for point in events.Scalars("elbo/valid")]
    assert logged == pytest.approx([line["elbo/valid"] for line in metrics(run)])


def test_evaluate_gives_the_numbers_of_the_run(run, tmp_path):
    arguments = [str(run), "--importance-samples", "5", "--model", "last", "--runs"]
    done = command("evaluate.py", *arguments, "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ((title, rows),) = json.loads(done.stdout).items()
    assert title.startswith("mnist_5k, binarize=none, validation=500, test, 500 images")
    assert rows[0]["run"] == str(run)
    assert rows[0].items() >= summary(run)["test"]["last"].items()


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux alone")
@pytest.mark.parametrize(
    ("script", "policy", "spins"),
    [("train.py", None, "10000"), ("evaluate.py", None, "10000"), ("evaluate.py", "passive", "0")],
)
def test_threads_that_wait_leave_their_core_soon(script, policy, spins, tmp_path, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # another test may have set it
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")  # OpenMP says what holds when it is loaded
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    wrong = {"train.py": "training.epochs=0", "evaluate.py": "nowhere"}  # both know it late
    said = command(script, wrong[script], cwd=tmp_path).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


def test_load_gives_a_model_to_python(run):
    model = vae.load(run)
    logits = model.encode(torch.zeros(3, 784))
    assert logits.shape == (3, 4, 8)
    assert model.decode(logits.softmax(-1)).shape == (3, 784)
    pictures = model.sample(5)
    assert pictures.shape == (5, 784)
    assert 0 <= pictures.min() and pictures.max() <= 1


def content(run: Path) -> set[str]:
    """Names of train.py's files, but for the hour that TensorBoard's have in them."""
    return {file.name.partition(".tfevents")[0] for file in run.iterdir()} - {"evaluation.json"}


def test_python_can_train_as_the_command_does(run, tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    own = tmp_path / "from" / "python"
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", SMALL)
    session.run(config, own, ROOT / "configs", overrides=SMALL)
    assert f"Run folder: {own}" in capsys.readouterr().out
    assert content(own) == content(run)
    assert (own / "config.yaml").read_text() == (run / "config.yaml").read_text()
    for which, theirs in summary(run)["test"].items():  # not to the bit: the threads may differ
        assert summary(own)["test"][which]["elbo"] == pytest.approx(theirs["elbo"], rel=1e-4)
    with pytest.raises(door.Finished):
        session.run(config, own, ROOT / "configs")


def test_a_failing_job_leaves_the_rest_of_the_sweep_alone(tmp_path):
    sweep = ["-m", "estimator=exact", "estimator.limit=10,100", "hydra.sweep.dir=sweep"]
    tiny = ["latents=2", "categories=8", "training.steps=2", "seed=3"]
    done = command("train.py", *sweep, *SMALL, *tiny, cwd=tmp_path)
    assert done.returncode == 2
    assert "estimator: Exact enumerates" in done.stderr
    (finished,) = (tmp_path / "sweep").glob("*/summary.json")
    assert json.loads(finished.read_text())["steps"] == 2


def test_help_is_there_where_argparse_reads_it_at_once(tmp_path, script, monkeypatch):
    """As since Python 3.14, for which Hydra 1.3 was not made."""
    add = argparse.ArgumentParser.add_argument

    def read(self, action):
        assert action.help is None or "%" not in action.help

    def add_and_read(self, *names, **options):
        action = add(self, *names, **options)
        self._check_help(action)
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", read, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_and_read)
    status, out, _ = script("train.py", "--hydra-help", cwd=tmp_path)
    assert status == 0 and "Install or Uninstall shell completion" in out


def test_flags_that_exclude_each_other_are_said_in_one_line(tmp_path, script):
    status, _, errors = script("train.py", "-m", "--cfg", "job", cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith("train.py: Only one of --run, --multirun, --cfg")


def test_help_is_there_without_torch(tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search("estimator: .*exact.*straight_through", done.stdout)


BAD = {
    "unknown key": (["latens=3"], "latens: there is no such key; did you mean latents?"),
    "unknown nested key": (["estimator.temprature=1"], "estimator.temprature", "temperature?"),
    "added unknown key": (["+estimator.temprature=1"], "estimator.temprature", "temperature?"),
    "added unknown root key": (["+epochs=3"], "epochs"),
    "unknown option": (["estimator=straight_trough"], "did you mean straight_through?"),
    "unknown schedule": (["estimator/temperature=lineer"], "did you mean linear?"),
    "no temperature": (["estimator=exact", "estimator.temperature=1"], "estimator.temperature"),
    "temperature zero": (["estimator.temperature=0"], "estimator.temperature", "greater than 0"),
    "temperature word": (["estimator.temperature=hot"], "estimator.temperature", "hot"),
    "temperature nan": (["estimator.temperature=nan"], "estimator.temperature", "nan"),
    "one category": (["categories=1"], "categories=1", "greater than or equal to 2"),
    "fractional epochs": (["training.epochs=2.5"], "training.epochs=2.5", "integer"),
    "negative epochs": (["training.epochs=-1"], "training.epochs=-1"),
    "large batch": (["training.batch_size=9999"], "training.batch_size=9999", "4000"),
    "negative lr": (["optimizer.lr=-1"], "optimizer.lr", "negative"),
    "wrong layer": (["model.networks.encoder_sizes=[8,x]"], "model.networks.encoder_sizes.1=x"),
    "activation": (["model.networks.activation=rely"], "model.networks.activation", "'relu'"),
    "binarize": (["data.binarize=maybe"], "data.binarize=maybe", "'dynamic'"),
    "too many codes": (["estimator=exact"], "estimator", "10**20", "16384"),
    "warm-up": (["optimizer/lr=cosine", "optimizer.lr.warmup=99999"], "optimizer.lr", "warmup"),
    "device": (["device=tpu"], "device=tpu"),
    "seed": (["seed=x"], "seed=x"),
    "a seed that torch does not take": (
        ["seed=18446744073709551616"],
        "seed=18446744073709551616",
    ),
    "patience for nothing": (
        ["data=mnist", "data.validation=0", "training.patience=3"],
        *("training.patience=3", "held out"),
    ),
    "grammar": (["training.epochs"], "training.epochs"),
    "no group": (["~estimator"], "estimator"),
    "numbers for a group": (["data=[4,4]"], "data=[4,4]: a group takes the name"),
    "null for a group": (["estimator=null"], "estimator=null: a group takes"),
    "vimco with an estimator": (["objective=vimco", "estimator=reinmax"], "estimator: VIMCO"),
    "vimco with one sample": (["objective=vimco", "objective.samples=1"], "objective.samples=1"),
    "relaxed without": (["objective=concrete", "estimator=reinmax"], "GumbelSoftmax"),
    "no samples to weigh": (
        ["objective=importance_weighted", "estimator=reinforce"],
        "estimator: ImportanceWeighted does not take Reinforce; it takes ",
        "StraightThrough",
    ),
    "another image shape": (["+model.image_shape=[14,14]"], "model.image_shape=[14, 14]", "28"),
    "no image shape": (["+model.image_shape=28"], "model.image_shape=28", "tuple"),
    "null for an image shape": (["+model.image_shape=null"], "model.image_shape", "tuple"),
    "no objective": (["objective._target_=null"], "objective"),
    "a temperature for none": (
        ["estimator=reinforce", "estimator/temperature=linear"],
        "estimator/temperature: nothing that was chosen has such a group",
    ),
    "nothing to measure": (
        ["objective=vimco", "tracking.gradient_every=1"],
        "tracking.gradient_every=1",
    ),
    "no such arity": (["experiment=maddison_240", "categories=10"], "categories=10", "2, 4, 8"),
    "unread table": (["+published.reinmx.lr=1"], "published.reinmx: there is no"),
    "foreign target": (["estimator._target_=vae.estimators.Nope"], "vae.estimators.Nope"),
    "wrong target": (["estimator._target_=vae.schedules.Constant", "~estimator.temperature"], ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_status_2(case, tmp_path, monkeypatch, capsys):
    overrides, *expected = BAD[case]
    assert status_of(["data=mnist_5k", *overrides], tmp_path, monkeypatch) == 2
    line = capsys.readouterr().err
    assert line.startswith("train.py: ") and line.count("\n") == 1
    for part in expected:
        assert part in line
    assert not list(tmp_path.glob("outputs/*"))


def status_of(arguments: list[str], cwd: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of train.py, run in this process: importing torch takes seconds."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return exit.value.code


def test_data_that_is_nowhere_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert status_of(["data=mnist"], tmp_path, monkeypatch) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for way_on in ("data.root=", "data=mnist_5k", "MNIST/raw"):
        assert way_on in line
    assert not (tmp_path / "data").exists()


def test_a_class_from_elsewhere_is_refused_before_it_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere.py").write_text("from vae.networks import MLP\nclass Mine(MLP): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = [*SMALL, "model.networks._target_=elsewhere.Mine"]
    assert status_of(words, tmp_path, monkeypatch) == 2
    assert "_target_=elsewhere.Mine" in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to print to")
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_what_cannot_be_printed_is_said_in_one_line(script, run, tmp_path):
    words = [*SMALL, "training.steps=2", "hydra.run.dir=run"] if script == "train.py" else [run]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *words],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == f"{script}: what was to be printed: No space left on device\n"
    if script == "train.py":
        assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"


def test_cuda_is_refused_where_there_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert status_of(["device=cuda", "data=mnist_5k"], tmp_path, monkeypatch) == 2
    assert "device=cuda" in capsys.readouterr().err


@pytest.mark.parametrize("precision, slowdown", [("bf16", 8.3), ("bf16", 0.6), ("float32", 8.3)])
def test_a_precision_that_slows_down_is_said_so(
    precision, slowdown, tmp_path, monkeypatch, capsys
):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr("vae.session.bf16_slowdown", lambda: slowdown)
    short = ["training.steps=2", f"training.precision={precision}", "device=cpu"]
    assert status_of([*SMALL, *short], tmp_path, monkeypatch) == 0
    advice = "training.precision=bf16 is slower here: this processor takes 8.3 times as long"
    assert (advice in capsys.readouterr().out) == (precision == "bf16" and slowdown > 1)


def test_how_slow_bf16_is_is_the_time_over_that_of_float32(monkeypatch):
    now = 0.0

    def linear(x: torch.Tensor, weight: torch.Tensor) -> None:
        nonlocal now
        now += {torch.float32: 2.0, torch.bfloat16: 9.0}[x.dtype]

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert bf16_slowdown() == 4.5
