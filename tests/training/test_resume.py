"""The checkpoints that runs resume from, and the files that resuming reads."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import pattern_data, pattern_objective, resume_steps, train_alone
from vae.training import checkpoint
from vae.training.resume import remove_newer, resume_points
from vae.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float32")

STEPS_PER_EPOCH = 40
Saved = int | str | tuple[int, list[str]]


def save_steps(run: Path, *saved: Saved, replicas: int = 2) -> Path:
    """Save one checkpoint after another in a new run folder.

    Args:
        run: The run folder. The folders of replicas are called 0, 1 and so on.
        *saved: The step of each checkpoint. A step with a list names the replicas that had stopped
            by then. A step that is a string was saved when the run was trained alone.
        replicas: The number of replicas that are trained together.
    """
    run.mkdir()
    for entry in saved:
        step, stopped = entry if isinstance(entry, tuple) else (entry, [])
        alone = isinstance(step, str)
        content = {
            "step": int(step),
            "epoch": int(step) // STEPS_PER_EPOCH,
            "members": [run.name] if alone else [str(index) for index in range(replicas)],
            "stopped": dict.fromkeys(stopped),
        }
        checkpoint.save(run, "last", content)
    return run


RESUMABLE = {
    "nothing is saved": ([[], []], [0, 0]),
    "one run": ([[40, 80]], [80]),
    "all at one step": ([[40, 80], [40, 80]], [80, 80]),
    "all at one step, with one checkpoint": ([[40], [40]], [40, 40]),
    "the first is ahead": ([[40, 80, 120], [40, 80], [40, 80]], [80, 80, 80]),
    "the last is ahead": ([[40, 80], [40, 80], [40, 80, 120]], [80, 80, 80]),
    "only one is saved": ([[40], []], [0, 0]),
    "only one is saved, twice": ([[17, 40], []], [0, 0]),
    "one is ahead within an epoch": ([[40, 57], [40]], [40, 40]),
    "one stopped long ago": ([[80, (120, ["1"])], [40]], [120, 40]),
    "one stopped in the last epoch": ([[80, (120, ["1"])], [40, 80]], [120, 80]),
    "one stopped before anything was saved": ([[(40, ["1"]), (80, ["1"])], []], [80, 0]),
    "one stopped in the first epoch": ([[(40, ["1"])], []], [40, 0]),
    "one stopped, and one of the others is ahead": (
        [[(80, ["2"]), (120, ["2"])], [40, (80, ["2"])], [40]],
        [80, 80, 40],
    ),
    "one stops in the epoch that is repeated": (
        [[40, 80, (120, ["2"])], [40, 80], [40, 80]],
        [80, 80, 80],
    ),
    "all but one stopped": ([[(120, ["1", "2"])], [80], [40]], [120, 80, 40]),
    "one of several replicas, alone": ([[(120, ["1"])]], [120]),
}


@pytest.mark.parametrize("case", RESUMABLE)
def test_active_replicas_resume_from_the_newest_step_that_all_of_them_have(tmp_path, case):
    saved, expected = RESUMABLE[case]
    replicas = 3 if case == "one of several replicas, alone" else len(saved)
    folders = [
        save_steps(tmp_path / str(index), *steps, replicas=replicas)
        for index, steps in enumerate(saved)
    ]
    assert resume_steps(folders) == expected


REFUSED = {
    "two epochs ahead": [[40, 80], [40, 80, 120, 160]],
    "two epochs ahead, and one stopped": [[40], [80, (120, ["2"])], []],
    "two epochs, and nothing of the other": [[40, 80], []],
    "one epoch trained alone": [[40, 80], [40, 80, "120"]],
    "some steps trained alone": [[40, 80], [40, 80, "97"]],
    "all trained alone": [["80"], ["80"]],
    "trained alone, and the other stopped in its first epoch": [[], [40, (80, ["0"]), "120"]],
    "trained alone, and the other stopped": [[40], [40, (80, ["0"]), "120", "160"]],
    "one that had stopped was trained alone": [[(80, ["1"]), (120, ["1"])], [40, "80", "160"]],
}


@pytest.mark.parametrize("case", REFUSED)
def test_replicas_do_not_resume_if_one_would_lose_more_than_an_epoch(tmp_path, case):
    saved = REFUSED[case]
    folders = [
        save_steps(tmp_path / str(index), *steps, replicas=len(saved))
        for index, steps in enumerate(saved)
    ]
    with pytest.raises(UserError, match="[01] is at step .* without the others"):
        resume_points(folders)


@pytest.mark.parametrize("damage", [None, b""], ids=["missing", "empty"])
def test_replicas_resume_from_the_previous_checkpoint_if_the_newest_is_damaged(tmp_path, damage):
    folders = [save_steps(tmp_path / str(index), 40, 80) for index in range(2)]
    file = checkpoint.path(folders[1], "last")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert resume_steps(folders) == [40, 40]


def test_of_two_checkpoints_of_one_step_the_newest_is_used(tmp_path):
    run = save_steps(tmp_path / "run", 40, 40)
    (newest, _) = checkpoint.versions(run, "last")
    (point,) = resume_points([run])
    assert point["file"] == newest["file"] == checkpoint.path(run, "last")


def test_removing_newer_checkpoints_keeps_the_previous_one_for_the_next_save(tmp_path):
    run = save_steps(tmp_path / "run", 40, 80, 120)
    newest, previous = checkpoint.versions(run, "last")
    remove_newer(run, newest)
    assert checkpoint.load(run, "last")["step"] == 120
    remove_newer(run, previous)
    assert checkpoint.load(run, "last")["step"] == 80
    checkpoint.save(run, "last", {"step": 120})
    assert [content["step"] for content in checkpoint.versions(run, "last")] == [120, 80]


def test_a_run_resumed_on_another_type_of_device_draws_images_and_noise_anew(tmp_path, caplog):
    """The state of a CUDA generator means nothing to a CPU generator."""
    train_alone(tmp_path, pattern_objective(), pattern_data(), epochs=2)
    content = checkpoint.load(tmp_path, "last")
    del content["file"]
    content |= {"device": "cuda", "batches": torch.zeros(16, dtype=torch.uint8)}
    checkpoint.save(tmp_path, "last", content)
    result, lines = train_alone(tmp_path, pattern_objective(), pattern_data(), epochs=4)
    assert result.steps == 12 and len(lines) == 4
    assert "images and noise are drawn anew" in caplog.text


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """Count how often each checkpoint file is read."""
    read: Callable[[Path], checkpoint.Checkpoint] = checkpoint._read
    counts: Counter[str] = Counter()

    def count(file: Path) -> checkpoint.Checkpoint:
        content = read(file)  # a missing file raises, and is not counted
        counts[file.name] += 1
        return content

    monkeypatch.setattr(checkpoint, "_read", count)
    return counts


def test_resuming_reads_each_checkpoint_file_at_most_once(tmp_path, reads):
    train_alone(tmp_path, pattern_objective(), pattern_data(), epochs=2)
    assert not reads
    train_alone(tmp_path, pattern_objective(), pattern_data(), epochs=3)
    assert reads["last.pt"] == 1
    assert set(reads.values()) == {1}
