"""Kill it anywhere, feed it anything: nothing lost, nothing silent. Real processes and signals."""

import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import written
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import vae
from vae.training import checkpoint
from vae.runs import status as run_state
from vae.utils.files import write_json
from vae.utils.errors import UserError

ROOT = Path(__file__).parents[1]
SMALL = [
    "data=mnist_5k",
    "model.networks.encoder_sizes=[16]",
    "model.networks.decoder_sizes=[16]",
    "latents=3",
    "categories=4",
    "optimizer.lr=3e-3",
    "tracking.pictures_every=1",
    "tracking.projected=10",
    "importance_samples=2",
]


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def start(*words: str, cwd: Path, **given) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SMALL, *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **given,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train(*words: str, cwd: Path, **given) -> tuple[int, str, str]:
    return finish(start(*words, cwd=cwd, **given))


@pytest.fixture
def inside(script):
    """train.py in this process: its exit status, output and errors."""
    return partial(script, "train.py")


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def wait_for_steps(run: Path, lines: int) -> None:
    """Until so many epochs have been logged."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if len((run / "metrics.jsonl").read_bytes().splitlines()) >= lines:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    raise AssertionError("training never got there")


def logged(run: Path) -> dict:
    """Every scalar and picture that TensorBoard shows, each once, but for the clock."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = events.Tags()
    scalars = {t: events.Scalars(t) for t in tags["scalars"] if not t.startswith("time/")}
    shown = {t: [(p.step, p.value) for p in points] for t, points in scalars.items()}
    images = {t: events.Images(t) for t in tags["images"]}
    shown |= {t: [(p.step, p.encoded_image_string) for p in seen] for t, seen in images.items()}
    return shown


def assert_same(killed: Path, whole: Path) -> None:
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for which in checkpoint.WHICH:
        a, b = (checkpoint.load(run, which) for run in (killed, whole))
        assert a["step"] == b["step"]
        for name, tensor in a["objective"].items():
            assert torch.equal(tensor, b["objective"][name]), name
    a, b = (json.loads((run / "summary.json").read_text()) for run in (killed, whole))
    assert a | {"seconds": 0} == b | {"seconds": 0}
    assert logged(killed) == logged(whole)


EPOCHS = ["training.epochs=5", "data.binarize=dynamic", "estimator=reinforce_learned_baseline"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    code, _, err = train(*EPOCHS, "hydra.run.dir=whole", cwd=cwd)
    assert code == 0, err
    return cwd / "whole"


# Killed, and gone on with


@pytest.mark.parametrize(
    "name",
    ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGUSR1"))],
)
def test_a_signal_ends_the_step_and_keeps_everything(whole, tmp_path, name):
    number = getattr(signal, name)
    process = start(*EPOCHS, "hydra.run.dir=run", cwd=tmp_path)
    wait_for_steps(tmp_path / "run", 1)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert f"interrupted by {name}" in err and "Traceback" not in err
    assert status(tmp_path / "run")["status"] == "interrupted"
    code, _, err = train(*EPOCHS, "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, err
    assert_same(tmp_path / "run", whole)


def test_killed_at_random_and_gone_on_with(whole, tmp_path):
    """Once; `pytest -m slow` kills more than thirty times."""
    killed_at_random(whole, tmp_path, kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_killed_more_than_thirty_times(whole, tmp_path, seed):
    killed_at_random(whole, tmp_path, kills=8, seed=seed)


def killed_at_random(whole: Path, cwd: Path, kills: int, seed: int) -> None:
    moment, run, done = random.Random(seed), cwd / "run", 0
    for _ in range(kills):
        process = start(*EPOCHS, "hydra.run.dir=run", cwd=cwd)
        before = checkpoint.steps([run])[0]
        epochs = before // 40 + 1
        if epochs < 5 and moment.random() < 0.7:  # inside training or the writing that follows it
            wait_for_steps(run, epochs)
        time.sleep(moment.uniform(0, 0.4))
        process.kill()
        process.communicate()
        done += 1
    code, out, err = train(*EPOCHS, "hydra.run.dir=run", cwd=cwd)
    assert code == 0, err
    assert done == kills
    assert_same(run, whole)


# Replicas, killed together


SEEDS = [*EPOCHS, "seeds=3"]
REPLICAS = ["seed_0", "seed_1", "seed_2"]


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """The parent of three replicas that nobody disturbed."""
    cwd = tmp_path_factory.mktemp("three")
    code, _, err = train(*SEEDS, "hydra.run.dir=three", cwd=cwd)
    assert code == 0, err
    return cwd / "three"


def assert_same_replicas(killed: Path, whole: Path) -> None:
    for name in REPLICAS:
        assert_same(killed / name, whole / name)
        assert status(killed / name)["status"] == "finished"
    assert logged(killed)["elbo/valid_low"]
    assert logged(killed) == logged(whole)


@pytest.mark.slow
def test_a_signal_keeps_every_replica(three, tmp_path):
    process = start(*SEEDS, "hydra.run.dir=run", cwd=tmp_path)
    wait_for_steps(tmp_path / "run/seed_2", 1)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 128 + signal.SIGTERM and "Traceback" not in err
    for name in REPLICAS:
        assert status(tmp_path / "run" / name)["status"] == "interrupted"
    steps = checkpoint.steps([tmp_path / "run" / name for name in REPLICAS])
    assert len(set(steps)) == 1 and steps[0] > 0
    code, _, err = train(*SEEDS, "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, err
    assert_same_replicas(tmp_path / "run", three)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_replicas_are_killed_at_random_and_gone_on_with(three, tmp_path, seed):
    moment, run = random.Random(seed), tmp_path / "run"
    for _ in range(6):
        process = start(*SEEDS, "hydra.run.dir=run", cwd=tmp_path)
        before = min(checkpoint.steps([run / name for name in REPLICAS]))
        epochs, which = before // 40 + 1, moment.choice(REPLICAS)
        if epochs < 5 and moment.random() < 0.7:
            wait_for_steps(
                run / which, epochs
            )  # the others' lines and files are written about now
        time.sleep(moment.uniform(0, 0.4))
        process.kill()
        process.communicate()
    code, _, err = train(*SEEDS, "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, err
    assert_same_replicas(run, three)


def test_a_finished_run_says_so_and_ends(whole, inside):
    before = written(whole)
    code, out, _ = inside(*SMALL, *EPOCHS, "hydra.run.dir=whole", cwd=whole.parent)
    assert code == 0
    assert "is finished: nothing to do" in out
    assert written(whole) == before


def test_resume_goes_on_for_longer(whole, tmp_path, inside):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    words = [f"resume={run}", "training.epochs=7"]
    code, _, err = inside(*words, cwd=tmp_path)
    assert code == 0, err
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [40 * epoch for epoch in range(1, 8)]
    assert (run / "metrics.jsonl").read_bytes().startswith((whole / "metrics.jsonl").read_bytes())
    assert json.loads((run / "summary.json").read_text())["epochs"] == 7
    assert [step for step, _ in logged(run)["elbo/test"]] == [281]
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.parametrize(
    "words, said",
    [
        (["latents=5"], "latents: resume takes everything but"),
        (["training.epochs=2"], "its training.epochs is 5, and not 2"),
    ],
)
def test_resume_changes_nothing_else(whole, tmp_path, inside, words, said):
    code, _, err = inside(f"resume={whole}", *words, cwd=tmp_path)
    assert code == 2 and said in err and err.count("\n") == 1


def test_resume_takes_values_as_hydra_does(whole, tmp_path, inside):
    run = Path(shutil.copytree(whole, tmp_path / "5"))
    assert inside("resume=5", "training.epochs=6", "training.capture=off", cwd=tmp_path)[0] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["capture"] == "off"
    code, _, err = inside("resume=5", "data.root='a: b'", "training.epochs=2", cwd=tmp_path)
    assert code == 2 and err.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*"))


def test_a_run_remembers_what_it_was_first_made_with(whole, tmp_path, inside):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    made = json.loads((run / "environment.json").read_text())
    for epochs in (6, 7):
        assert inside("resume=run", f"training.epochs={epochs}", cwd=tmp_path)[0] == 0
    noted = json.loads((run / "environment.json").read_text())
    went_on = noted.pop("went_on")
    assert noted == made
    assert [each["from_step"] for each in went_on] == [200, 240]
    assert went_on[1]["overrides"] == ["resume=run", "training.epochs=7"]


def test_a_longer_run_is_not_finished_because_it_was(whole, tmp_path, inside, monkeypatch):
    """Where it is killed as soon as its configuration says how long it is."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    monkeypatch.setattr(run_state.Standing, "__enter__", lambda self: os._exit(1))
    child = os.fork()
    if not child:
        inside("resume=run", "training.epochs=7", cwd=tmp_path)
    os.waitpid(child, 0)
    monkeypatch.undo()
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["epochs"] == 7
    assert inside("resume=run", "training.epochs=7", cwd=tmp_path)[0] == 0
    assert steps_of(run) == 280


def steps_of(run: Path) -> int:
    return json.loads((run / "summary.json").read_text())["steps"]


def test_resume_keeps_the_steps_that_were_asked_for(tmp_path, inside):
    """Also where they are as many as whole epochs, or as the epochs end before."""
    words = [*SMALL, "training.epochs=3", "training.steps=40", "hydra.run.dir=run"]
    assert inside(*words, cwd=tmp_path)[0] == 0
    for again in (["resume=run"], words, ["resume=run", "training.epochs=5"]):
        code, out, _ = inside(*again, cwd=tmp_path)
        assert code == 0 and "run is finished: nothing to do; training.steps=40 ends it" in out
    assert inside("resume=run", "training.steps=60", cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 60
    code, _, err = inside("resume=run", "training.steps=50", cwd=tmp_path)
    assert code == 2 and "its training.steps is 60, and not 50" in err
    assert inside("resume=run", "training.steps=null", cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 120


def test_resume_goes_on_up_to_the_steps_that_were_asked_for(tmp_path, inside):
    words = [*SMALL, "training.epochs=1", "training.steps=50", "hydra.run.dir=run"]
    assert inside(*words, cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 40
    assert inside("resume=run", "training.epochs=3", cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 50


def test_a_run_that_went_on_is_listed_under_its_own_names(tmp_path, inside):
    """In the HParams tab: resume= says neither estimator nor objective."""
    words = [*SMALL, "estimator=disarm", "training.epochs=1", "hydra.run.dir=run"]
    assert inside(*words, cwd=tmp_path)[0] == 0
    assert inside("resume=run", "training.epochs=2", cwd=tmp_path)[0] == 0
    for summary in EventAccumulator(str(tmp_path / "run")).Reload().summary_metadata.items():
        if summary[0] == "_hparams_/session_start_info":
            content = HParamsPluginData.FromString(summary[1].plugin_data.content)
    listed = content.session_start_info.hparams
    names = {name: listed[name].string_value for name in ("estimator", "objective")}
    assert names == {"estimator": "disarm", "objective": "negative_elbo"}


def test_resume_of_what_is_no_run(tmp_path, inside):
    code, _, err = inside("resume=nowhere", cwd=tmp_path)
    assert code == 2 and err.count("\n") == 1 and "nowhere" in err
    assert not (tmp_path / "nowhere").exists()


def test_a_named_sweep_goes_on_where_it_was(tmp_path, inside):
    words = [*SMALL, "seed=0,1", "training.steps=3", "sweep=mine", "-m"]
    assert inside(*words, cwd=tmp_path)[0] == 0
    folders = sorted(file.name for file in (tmp_path / "outputs/mine").iterdir() if file.is_dir())
    assert len(folders) == 2 and all(f"seed{seed}" in folders[seed] for seed in (0, 1))
    shutil.rmtree(tmp_path / "outputs/mine" / folders[1])
    code, out, err = inside(*words, cwd=tmp_path)
    assert code == 0, err
    assert out.count("is finished: nothing to do") == 1
    again = sorted(file.name for file in (tmp_path / "outputs/mine").iterdir() if file.is_dir())
    assert again == folders


def test_two_processes_do_not_share_a_run(tmp_path, inside):
    words = ["training.epochs=300", "hydra.run.dir=run"]
    first = start(*words, cwd=tmp_path)
    try:
        wait_for_steps(tmp_path / "run", 1)
        code, _, err = inside(*SMALL, *words, cwd=tmp_path)
        assert code == 2
        assert "another process is at work on this run" in err and err.count("\n") == 1
    finally:
        first.kill()
        first.communicate()
    with run_state.locked(tmp_path / "run"):  # the lock died with its owner
        pass


def test_nobody_removes_the_folder_that_another_process_is_about_to_fill(tmp_path, inside):
    folder = tmp_path / "run"
    folder.mkdir()
    with run_state.locked(folder):
        code, _, err = inside(*SMALL, "hydra.run.dir=run", cwd=tmp_path)
        assert code == 2 and "another process is at work on this run" in err
        assert folder.exists()
    run_state.discard(folder)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_anything_was_kept_leaves_no_folder(tmp_path, name):
    process = start(cwd=tmp_path)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/*")) and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.02)  # the few ms between the folder and the job are Hydra's own
    process.send_signal(getattr(signal, name))
    code, _, err = finish(process)
    assert code == 128 + getattr(signal, name)
    assert "Traceback" not in err and f"interrupted by {name}; before anything was kept" in err
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.slow
def test_evaluation_is_killed_and_given_again(whole, tmp_path):
    runs = tmp_path / "runs"
    for copy in range(4):
        shutil.copytree(whole, runs / f"run{copy}")
    command = [sys.executable, str(ROOT / "evaluate.py"), str(runs), "--runs", "--format", "json"]
    command += ["--importance-samples", "50"]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        end, cached = time.monotonic() + 60, len(list(runs.glob("*/evaluation.json")))
        while time.monotonic() < end and process.poll() is None:
            if len(list(runs.glob("*/evaluation.json"))) > cached:
                break
        process.kill()
        process.communicate()
        for file in runs.glob("*/evaluation.json"):
            json.loads(file.read_text())  # whole or not there
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (rows,) = json.loads(done.stdout).values()
    numbers = [{k: v for k, v in row.items() if k not in ("run", "group")} for row in rows]
    # The four are copies, so one of them counts, and it is what an undisturbed evaluation gives.
    alone = tmp_path / "alone"
    shutil.copytree(whole, alone)
    command[2] = str(alone)
    done = subprocess.run(command, capture_output=True, text=True)
    (expected,) = json.loads(done.stdout).values()
    assert numbers == [{k: v for k, v in expected[0].items() if k not in ("run", "group")}]


# Broken files


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


BROKEN = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "one bit flipped": flip,
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint_falls_back_to_the_one_before(run, how, caplog):
    steps = [checkpoint.load(run, "last")["step"]]
    BROKEN[how](checkpoint.path(run, "last"))
    steps.append(checkpoint.load(run, "last")["step"])
    assert steps == [200, 160]
    assert ("going back to last.previous.pt" in caplog.text) == (how != "missing")
    BROKEN[how](checkpoint.previous(run, "last"))
    with pytest.raises(UserError, match="last"):
        checkpoint.load(run, "last")


@pytest.mark.slow
def test_a_run_goes_on_from_the_one_before(run, whole):
    flip(checkpoint.path(run, "last"))
    (run / "status.json").unlink()
    code, out, err = train(*EPOCHS, "hydra.run.dir=run", cwd=run.parent)
    assert code == 0, err
    assert "going back to last.previous.pt" in out + err
    assert_same(run, whole)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_checkpoint_executes_nothing(run, monkeypatch):
    monkeypatch.chdir(run)
    with pytest.raises(UserError):
        (run / "last.pt").write_bytes(pickle.dumps(Evil()))
        (run / "last.previous.pt").unlink()
        checkpoint.load(run, "last")
    checkpoint.save(run, "last", {"objective": Evil(), "step": 1})
    checkpoint.previous(run, "last").unlink(missing_ok=True)
    with pytest.raises(UserError):
        checkpoint.load(run, "last")
    assert not (run / "executed").exists()


def test_another_format_is_refused_by_its_number(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FORMAT", 99)
    with pytest.raises(UserError, match="another format than 99"):
        checkpoint.load(run, "last")


def test_a_checkpoint_of_another_model_is_refused(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["categories"] = 7
    (run / "config.yaml").write_text(yaml.dump(config))
    with pytest.raises(UserError, match="another model"):
        vae.load(run)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "vae.data.os.system",
        "vae.files.write_atomically",
        "vae.tracking.Tracker",
        "builtins.eval",
        "torch.optim.Adam",
        "subprocess.Popen",
    ],
)
@pytest.mark.parametrize("key", ["model", "optimizer", "estimator", "anything"])
def test_a_run_folder_builds_nothing_but_parts_of_runs(run, target, key):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[key] = {"nested": [{"_target_": target}], "_target_": config["model"]["_target_"]}
    (run / "config.yaml").write_text(yaml.dump(config))
    with pytest.raises(UserError, match="is no part of a run"):
        vae.load(run)


@pytest.mark.parametrize("text", ["", "a: [", "[]", "3", "data: 3", "\x00", "model: {a: ${b}}"])
def test_a_config_that_is_none_is_said_in_one_line(run, text):
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        vae.load(run)
    assert str(caught.value).count("\n") == 0


# A machine that fails


def small_disk() -> None:
    """No file may grow beyond 16 kB, less than a checkpoint."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))


def test_a_full_disk_is_said_and_loses_nothing(run, inside):
    kept = {which: checkpoint.load(run, which)["step"] for which in checkpoint.WHICH}
    (run / "status.json").unlink()
    words = [f"resume={run}", "training.epochs=7"]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(
        command, cwd=run.parent, capture_output=True, text=True, preexec_fn=small_disk
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    assert {which: checkpoint.load(run, which)["step"] for which in checkpoint.WHICH} == kept
    code, _, err = inside(*words, cwd=run.parent)  # there is room again
    assert code == 0, err
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [40 * epoch for epoch in range(1, 8)]


def test_an_output_folder_that_cannot_be_made(tmp_path, inside):
    (tmp_path / "outputs").write_text("a file")
    code, _, err = inside(*SMALL, "training.steps=1", cwd=tmp_path)
    assert code == 1
    assert "outputs" in err and "Traceback" not in err


# Numbers that are none


def test_divergence_says_where_and_what_is_left(tmp_path, inside):
    words = ["training.epochs=3", "optimizer.lr=1e30", "hydra.run.dir=run"]
    code, _, err = inside(*SMALL, *words, cwd=tmp_path)
    assert code == 1 and err.count("\n") == 1
    for part in ("no number at step", "temperature 0.5", "largest logit", "no checkpoint yet"):
        assert part in err
    assert status(tmp_path / "run")["status"] == "diverged"
    assert "no number at step" in status(tmp_path / "run")["why"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["training.steps=1"], "the ELBO is no number at step 1"),
        (["training.epochs=5", "training.on_nan=skip"], "the ELBO is no number at step 40"),
    ],
)
def test_a_model_of_no_numbers_is_not_finished(tmp_path, inside, words, said):
    code, _, err = inside(*SMALL, *words, "optimizer.lr=1e30", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 1 and err.count("\n") == 1 and said in err
    assert status(tmp_path / "run")["status"] == "diverged"
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""
    assert not (tmp_path / "run/summary.json").exists()


def test_an_epoch_of_skipped_steps_ends_the_run(tmp_path, inside):
    """The step that broke the weights lies in the epoch before."""
    words = ["training.epochs=1", "hydra.run.dir=run", "training.on_nan=skip"]
    assert inside(*SMALL, *words, cwd=tmp_path)[0] == 0
    kept = checkpoint.load(tmp_path / "run", "last")
    for name in ("format", "digest", "file"):
        del kept[name]
    kept["objective"] = {name: held * math.nan for name, held in kept["objective"].items()}
    checkpoint.save(tmp_path / "run", "last", kept)
    code, _, err = inside("resume=run", "training.epochs=9", cwd=tmp_path)
    assert code == 1 and "no step of the epoch was taken" in err and "of epoch 2" in err


def test_json_holds_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "file", {"a": [math.nan, 1.5], "b": {"c": -math.inf, "d": 2}})
    held = json.loads((tmp_path / "file").read_text(), parse_constant=pytest.fail)
    assert held == {"a": [None, 1.5], "b": {"c": None, "d": 2}}


def test_a_diverging_job_leaves_the_rest_of_the_sweep_alone(tmp_path, inside):
    words = [*SMALL, "optimizer.lr=1e30,1e-3", "training.steps=5", "sweep=both", "-m"]
    code, _, err = inside(*words, cwd=tmp_path)
    assert code == 1
    runs = [file.parent for file in (tmp_path / "outputs/both").glob("*/status.json")]
    assert sorted(status(run)["status"] for run in runs) == ["diverged", "finished"]
    assert "no number at step" in err
