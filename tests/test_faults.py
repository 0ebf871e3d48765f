"""Killed processes, signals, damaged files, full disks and divergence: nothing is lost or silent.

Most tests run real processes. tests/README.md lists what is injected, and how often.
"""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.helpers import (
    finish,
    read_json,
    read_lines,
    read_scalars,
    resume_steps,
    run_script,
    start_script,
    subfolders,
    wait_until,
    written,
)
from vae.runs.folder import locked, remove_if_empty
from vae.training import checkpoint

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
STEPS_PER_EPOCH = 40
FIVE_EPOCHS = [
    "training.epochs=5",
    "data.binarize=dynamic",
    "estimator=reinforce_learned_baseline",
]

RunTrain = Callable[..., tuple[int, str, str]]
"""Runs train.py in this process; returns the exit status, the output and the errors."""

pytestmark = pytest.mark.usefixtures("float32")


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return start_script("train.py", *SMALL, *words, cwd=cwd)


@pytest.fixture
def train(script) -> RunTrain:
    return partial(script, "train.py")


def train_as_process(*words: str, cwd: Path) -> tuple[int, str, str]:
    return finish(start(*words, cwd=cwd))


def read_status_file(run: Path) -> dict[str, str | None]:
    return read_json(run / "status.json")


def steps_of(run: Path) -> int:
    return read_json(run / "summary.json")["steps"]


def wait_for_epochs(run: Path, epochs: int) -> None:
    """Wait until so many epochs have been logged."""

    def are_logged() -> bool:
        with suppress(FileNotFoundError):
            return len((run / "metrics.jsonl").read_bytes().splitlines()) >= epochs
        return False

    wait_until(are_logged)


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, object]]]:
    """Return every scalar and picture that TensorBoard shows, except for measured times."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    pictures = {
        tag: [(image.step, image.encoded_image_string) for image in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
    return read_scalars(folder) | pictures


def assert_same_run(run: Path, expected: Path) -> None:
    """Compare metrics byte for byte, weights bit for bit, and everything in TensorBoard."""
    assert (run / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    for which in checkpoint.WHICH:
        content, expected_content = (checkpoint.load(path, which) for path in (run, expected))
        assert content["step"] == expected_content["step"]
        for name, tensor in content["objective"].items():
            assert torch.equal(tensor, expected_content["objective"][name]), name
    summary, expected_summary = (read_json(path / "summary.json") for path in (run, expected))
    assert summary | {"seconds": 0} == expected_summary | {"seconds": 0}
    assert read_tensorboard(run) == read_tensorboard(expected)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Return the folder of a run of five epochs."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    status, _, errors = train_as_process(*FIVE_EPOCHS, "hydra.run.dir=whole", cwd=cwd)
    assert status == 0, errors
    return cwd / "whole"


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    """Return a copy of that run."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


# Interrupted or killed, and resumed


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP", "SIGUSR1")),
    ],
)
def test_a_run_that_a_signal_ended_resumes_as_if_undisturbed(undisturbed, tmp_path, name):
    number = getattr(signal, name)
    process = start(*FIVE_EPOCHS, "hydra.run.dir=run", cwd=tmp_path)
    wait_for_epochs(tmp_path / "run", 1)
    process.send_signal(number)
    status, _, errors = finish(process)
    assert status == 128 + number
    assert f"interrupted by {name}" in errors and "Traceback" not in errors
    assert read_status_file(tmp_path / "run")["status"] == "interrupted"
    status, _, errors = train_as_process(*FIVE_EPOCHS, "hydra.run.dir=run", cwd=tmp_path)
    assert status == 0, errors
    assert_same_run(tmp_path / "run", undisturbed)


def kill_at_random(
    words: list[str], folders: list[Path], cwd: Path, kills: int, seed: int
) -> None:
    """Start a command several times, and kill it each time at a random moment."""
    generator, killed = random.Random(seed), 0
    for _ in range(kills):
        process = start(*words, cwd=cwd)
        epoch = min(resume_steps(folders)) // STEPS_PER_EPOCH + 1
        folder = generator.choice(folders)
        if epoch < 5 and generator.random() < 0.7:  # in training, or in the writing after it
            wait_for_epochs(folder, epoch)
        time.sleep(generator.uniform(0, 0.4))
        process.kill()
        process.communicate()
        killed += 1
    assert killed == kills


@pytest.mark.parametrize(
    "kills, seed",
    [(1, 0), *(pytest.param(8, seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))],
)
def test_a_run_killed_at_random_moments_resumes_as_if_undisturbed(
    undisturbed, tmp_path, kills, seed
):
    words, run = [*FIVE_EPOCHS, "hydra.run.dir=run"], tmp_path / "run"
    kill_at_random(words, [run], tmp_path, kills, seed)
    status, _, errors = train_as_process(*words, cwd=tmp_path)
    assert status == 0, errors
    assert_same_run(run, undisturbed)


THREE_SEEDS = [*FIVE_EPOCHS, "seeds=3"]
REPLICAS = ["seed_0", "seed_1", "seed_2"]


@pytest.fixture(scope="module")
def undisturbed_replicas(tmp_path_factory) -> Path:
    """Return the folder above three replicas of five epochs."""
    cwd = tmp_path_factory.mktemp("three")
    status, _, errors = train_as_process(*THREE_SEEDS, "hydra.run.dir=three", cwd=cwd)
    assert status == 0, errors
    return cwd / "three"


def assert_same_replicas(parent: Path, expected: Path) -> None:
    for name in REPLICAS:
        assert_same_run(parent / name, expected / name)
        assert read_status_file(parent / name)["status"] == "finished"
    logged = read_tensorboard(parent)
    assert logged["seeds/elbo/valid_low"]
    assert logged == read_tensorboard(expected)


@pytest.mark.slow
def test_replicas_that_a_signal_ended_resume_as_if_undisturbed(undisturbed_replicas, tmp_path):
    words, parent = [*THREE_SEEDS, "hydra.run.dir=run"], tmp_path / "run"
    process = start(*words, cwd=tmp_path)
    wait_for_epochs(parent / "seed_2", 1)
    process.send_signal(signal.SIGTERM)
    status, _, errors = finish(process)
    assert status == 128 + signal.SIGTERM and "Traceback" not in errors
    for name in REPLICAS:
        assert read_status_file(parent / name)["status"] == "interrupted"
    steps = resume_steps([parent / name for name in REPLICAS])
    assert len(set(steps)) == 1 and steps[0] > 0
    status, _, errors = train_as_process(*words, cwd=tmp_path)
    assert status == 0, errors
    assert_same_replicas(parent, undisturbed_replicas)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_replicas_killed_at_random_moments_resume_as_if_undisturbed(
    undisturbed_replicas, tmp_path, seed
):
    words, parent = [*THREE_SEEDS, "hydra.run.dir=run"], tmp_path / "run"
    folders = [parent / name for name in REPLICAS]
    kill_at_random(words, folders, tmp_path, kills=6, seed=seed)
    status, _, errors = train_as_process(*words, cwd=tmp_path)
    assert status == 0, errors
    assert_same_replicas(parent, undisturbed_replicas)


# Repeated and extended


def test_a_finished_run_that_is_repeated_has_nothing_to_do(undisturbed, train):
    before = written(undisturbed)
    words = [*SMALL, *FIVE_EPOCHS, "hydra.run.dir=whole"]
    status, output, _ = train(*words, cwd=undisturbed.parent)
    assert status == 0
    assert "is finished: nothing to do" in output
    assert written(undisturbed) == before


def test_a_finished_run_can_be_extended(undisturbed, run, tmp_path, train):
    status, _, errors = train(f"resume={run}", "training.epochs=7", cwd=tmp_path)
    assert status == 0, errors
    assert [line["step"] for line in read_lines(run)] == [40 * epoch for epoch in range(1, 8)]
    lines, first_lines = ((path / "metrics.jsonl").read_bytes() for path in (run, undisturbed))
    assert lines.startswith(first_lines)
    assert read_json(run / "summary.json")["epochs"] == 7
    assert [step for step, _ in read_scalars(run)["elbo-test/last"]] == [281]
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["latents=5"], "latents cannot change when a run is resumed"),
        (["training.epochs=2"], "its training.epochs is 5, not 2"),
    ],
)
def test_resuming_changes_neither_the_model_nor_shortens_the_run(
    undisturbed, tmp_path, train, words, message
):
    status, _, errors = train(f"resume={undisturbed}", *words, cwd=tmp_path)
    assert status == 2 and message in errors and errors.count("\n") == 1


def test_resume_parses_values_like_hydra(undisturbed, tmp_path, train):
    run = Path(shutil.copytree(undisturbed, tmp_path / "5"))
    words = ["resume=5", "training.epochs=6", "training.capture=off"]
    assert train(*words, cwd=tmp_path)[0] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["capture"] == "off"
    status, _, errors = train("resume=5", "data.root='a: b'", "training.epochs=2", cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*"))


def test_a_resumed_run_keeps_its_first_environment_and_adds_the_later_ones(run, tmp_path, train):
    first = read_json(run / "environment.json")
    for epochs in (6, 7):
        assert train("resume=run", f"training.epochs={epochs}", cwd=tmp_path)[0] == 0
    environment = read_json(run / "environment.json")
    resumed = environment.pop("went_on")
    assert environment == first
    assert [entry["from_step"] for entry in resumed] == [200, 240]
    assert resumed[1]["overrides"] == ["resume=run", "training.epochs=7"]


def test_an_extended_run_does_not_look_finished_if_it_is_killed_at_its_start(
    run, tmp_path, train, monkeypatch
):
    """It is killed as soon as config.yaml has the new number of epochs."""
    monkeypatch.setattr("vae.experiment._start_logging", lambda *arguments: os._exit(1))
    child = os.fork()
    if not child:
        train("resume=run", "training.epochs=7", cwd=tmp_path)
    os.waitpid(child, 0)
    monkeypatch.undo()
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["epochs"] == 7
    assert train("resume=run", "training.epochs=7", cwd=tmp_path)[0] == 0
    assert steps_of(run) == 280


def test_a_resumed_run_keeps_its_training_steps(tmp_path, train):
    """There may be as many steps as in a whole epoch."""
    words = [*SMALL, "training.epochs=3", "training.steps=40", "hydra.run.dir=run"]
    assert train(*words, cwd=tmp_path)[0] == 0
    for repeated in (["resume=run"], words, ["resume=run", "training.epochs=5"]):
        status, output, _ = train(*repeated, cwd=tmp_path)
        assert status == 0
        assert "run is finished: nothing to do; raise training.steps=40 to train longer" in output
    assert train("resume=run", "training.steps=60", cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 60
    status, _, errors = train("resume=run", "training.steps=50", cwd=tmp_path)
    assert status == 2 and "its training.steps is 60, not 50" in errors
    assert train("resume=run", "training.steps=null", cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 120


def test_a_run_extended_by_epochs_still_ends_at_its_training_steps(tmp_path, train):
    words = [*SMALL, "training.epochs=1", "training.steps=50", "hydra.run.dir=run"]
    assert train(*words, cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 40
    assert train("resume=run", "training.epochs=3", cwd=tmp_path)[0] == 0
    assert steps_of(tmp_path / "run") == 50


def test_a_resumed_run_keeps_its_names_in_the_hparams_tab(tmp_path, train):
    """The command line of a resumed run names neither its estimator nor its objective."""
    words = [*SMALL, "estimator=disarm", "training.epochs=1", "hydra.run.dir=run"]
    assert train(*words, cwd=tmp_path)[0] == 0
    assert train("resume=run", "training.epochs=2", cwd=tmp_path)[0] == 0
    metadata = EventAccumulator(str(tmp_path / "run")).Reload().summary_metadata
    start_info = metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(start_info).session_start_info.hparams
    names = {name: hparams[name].string_value for name in ("estimator", "settings.objective")}
    assert names == {"estimator": "disarm", "settings.objective": "negative_elbo"}


def test_resuming_a_folder_that_does_not_exist_is_refused(tmp_path, train):
    status, _, errors = train("resume=nowhere", cwd=tmp_path)
    assert status == 2 and errors.count("\n") == 1 and "nowhere" in errors
    assert not (tmp_path / "nowhere").exists()


def test_a_repeated_sweep_trains_only_the_runs_that_are_missing(tmp_path, train):
    words = [*SMALL, "seed=0,1", "training.steps=3", "sweep=mine", "-m"]
    assert train(*words, cwd=tmp_path)[0] == 0
    folders = subfolders(tmp_path / "outputs/mine")
    assert len(folders) == 3 and folders[0] == "means"
    assert all(f"seed{seed}" in folders[seed + 1] for seed in (0, 1))
    shutil.rmtree(tmp_path / "outputs/mine" / folders[2])
    status, output, errors = train(*words, cwd=tmp_path)
    assert status == 0, errors
    assert output.count("is finished: nothing to do") == 1
    assert subfolders(tmp_path / "outputs/mine") == folders


# Two processes, and folders in which nothing was saved


def test_a_second_process_in_a_run_folder_is_refused(tmp_path, train):
    words = ["training.epochs=300", "hydra.run.dir=run"]
    first = start(*words, cwd=tmp_path)
    try:
        wait_for_epochs(tmp_path / "run", 1)
        status, _, errors = train(*SMALL, *words, cwd=tmp_path)
        assert status == 2
        assert "another process is using this run folder" in errors and errors.count("\n") == 1
    finally:
        first.kill()
        first.communicate()
    with locked(tmp_path / "run"):  # the lock ended with its process
        pass


def test_an_empty_folder_that_another_process_has_locked_is_not_removed(tmp_path, train):
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder):
        status, _, errors = train(*SMALL, "hydra.run.dir=run", cwd=tmp_path)
        assert status == 2 and "another process is using this run folder" in errors
        assert folder.exists()
    remove_if_empty(folder)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_run_that_is_interrupted_before_its_first_checkpoint_leaves_no_folder(tmp_path, name):
    process = start(cwd=tmp_path)
    wait_until(lambda: bool(list(tmp_path.glob("outputs/*"))))
    time.sleep(0.02)  # Hydra creates the folder a few milliseconds before it starts the job
    process.send_signal(getattr(signal, name))
    status, _, errors = finish(process)
    assert status == 128 + getattr(signal, name)
    assert "Traceback" not in errors
    assert f"interrupted by {name} before anything was saved" in errors
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.slow
def test_a_killed_evaluation_that_is_repeated_gives_the_same_numbers(undisturbed, tmp_path):
    runs = tmp_path / "runs"
    for copy in range(4):
        shutil.copytree(undisturbed, runs / f"run{copy}")
    options = ["--runs", "--format", "json", "--importance-samples", "50"]
    cached = lambda: len(list(runs.glob("*/evaluation.json")))
    for _ in range(4):
        before = cached()
        process = start_script("evaluate.py", runs, *options, cwd=tmp_path, threads=None)
        wait_until(lambda: cached() > before or process.poll() is not None)  # noqa: B023
        process.kill()
        process.communicate()
        for file in runs.glob("*/evaluation.json"):
            read_json(file)  # it is complete

    def rows(folder: Path) -> list[dict[str, object]]:
        status, output, errors = run_script(
            "evaluate.py", folder, *options, cwd=tmp_path, threads=None
        )
        assert status == 0, errors
        (table,) = json.loads(output).values()
        return [{k: v for k, v in row.items() if k not in ("run", "group")} for row in table]

    # The four runs are copies, of which one counts.
    alone = Path(shutil.copytree(undisturbed, tmp_path / "alone"))
    assert rows(runs) == rows(alone)[:1]


# Damaged files, full disks


@pytest.mark.slow
def test_a_run_with_a_damaged_checkpoint_resumes_from_the_previous_one(run, undisturbed):
    file = checkpoint.path(run, "last")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (run / "status.json").unlink()
    status, output, errors = train_as_process(*FIVE_EPOCHS, "hydra.run.dir=run", cwd=run.parent)
    assert status == 0, errors
    assert "going back to last.previous.pt" in output + errors
    assert_same_run(run, undisturbed)


def limit_file_size() -> None:
    """Let no file of this process grow beyond 16 kB, which is less than a checkpoint."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))


def test_a_full_disk_is_reported_in_one_line_and_loses_nothing(run, train):
    saved = lambda: {which: checkpoint.load(run, which)["step"] for which in checkpoint.WHICH}
    before = saved()
    (run / "status.json").unlink()
    words = [f"resume={run}", "training.epochs=7"]
    status, _, errors = run_script(
        "train.py", *words, cwd=run.parent, threads=None, preexec_fn=limit_file_size
    )
    assert status == 1
    assert "File too large" in errors and "Traceback" not in errors
    assert saved() == before
    status, _, errors = train(*words, cwd=run.parent)  # the disk has room again
    assert status == 0, errors
    assert [line["step"] for line in read_lines(run)] == [40 * epoch for epoch in range(1, 8)]


def test_an_output_folder_that_cannot_be_created_is_reported(tmp_path, train):
    (tmp_path / "outputs").write_text("a file")
    status, _, errors = train(*SMALL, "training.steps=1", cwd=tmp_path)
    assert status == 1
    assert "outputs" in errors and "Traceback" not in errors


# Numbers that are not finite


def test_a_diverged_run_reports_the_step_the_schedules_and_the_last_checkpoint(tmp_path, train):
    words = [*SMALL, "training.epochs=3", "optimizer.lr=1e30", "hydra.run.dir=run"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 1 and errors.count("\n") == 1
    for part in ("not finite at step", "temperature 0.5", "largest logit", "no checkpoint yet"):
        assert part in errors
    status_file = read_status_file(tmp_path / "run")
    assert status_file["status"] == "diverged"
    assert "not finite at step" in status_file["why"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["training.steps=1"], "the ELBO is not finite at step 1"),
        (["training.epochs=5", "training.on_nan=skip"], "the ELBO is not finite at step 40"),
    ],
)
def test_a_run_whose_weights_are_not_finite_has_diverged(tmp_path, train, words, message):
    words = [*SMALL, *words, "optimizer.lr=1e30", "hydra.run.dir=run"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 1 and errors.count("\n") == 1 and message in errors
    assert read_status_file(tmp_path / "run")["status"] == "diverged"
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""
    assert not (tmp_path / "run/summary.json").exists()


def test_a_run_that_skips_every_step_of_an_epoch_has_diverged(tmp_path, train):
    """The step that made the weights nan is in the epoch before."""
    words = [*SMALL, "training.epochs=1", "hydra.run.dir=run", "training.on_nan=skip"]
    assert train(*words, cwd=tmp_path)[0] == 0
    content = checkpoint.load(tmp_path / "run", "last")
    for name in ("format", "digest", "file"):
        del content[name]
    content["objective"] = {
        name: tensor * math.nan for name, tensor in content["objective"].items()
    }
    checkpoint.save(tmp_path / "run", "last", content)
    status, _, errors = train("resume=run", "training.epochs=9", cwd=tmp_path)
    assert (
        status == 1 and "every step of the epoch was skipped" in errors and "of epoch 2" in errors
    )


def test_a_diverging_job_does_not_end_the_sweep(tmp_path, train):
    words = [*SMALL, "optimizer.lr=1e30,1e-3", "training.steps=5", "sweep=both", "-m"]
    status, _, errors = train(*words, cwd=tmp_path)
    assert status == 1
    runs = [file.parent for file in (tmp_path / "outputs/both").glob("*/status.json")]
    assert sorted(read_status_file(run)["status"] for run in runs) == ["diverged", "finished"]
    assert "not finite at step" in errors
