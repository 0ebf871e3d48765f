"""Checkpoint files: damage is noticed, the previous file is used, and nothing is executed."""

import contextlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from vae.training import checkpoint
from vae.utils.errors import UserError


@pytest.fixture
def run(tmp_path) -> Path:
    """Return a run folder with checkpoints of the steps 160 and 200."""
    for step in (160, 200):
        content = {"step": step, "objective": {"weight": torch.full((500,), float(step))}}
        checkpoint.save(tmp_path, "last", content)
    return tmp_path


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "one bit flipped": flip_a_bit,
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(run, damage, caplog):
    steps = [checkpoint.load(run, "last")["step"]]
    DAMAGE[damage](checkpoint.path(run, "last"))
    steps.append(checkpoint.load(run, "last")["step"])
    assert steps == [200, 160]
    assert ("going back to last.previous.pt" in caplog.text) == (damage != "missing")
    DAMAGE[damage](checkpoint.previous_path(run, "last"))
    with pytest.raises(UserError, match="last"):
        checkpoint.load(run, "last")


class TouchesAFile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_loading_a_checkpoint_executes_nothing(run, monkeypatch):
    monkeypatch.chdir(run)
    checkpoint.path(run, "last").write_bytes(pickle.dumps(TouchesAFile()))
    checkpoint.previous_path(run, "last").unlink()
    with pytest.raises(UserError):
        checkpoint.load(run, "last")
    checkpoint.save(run, "last", {"objective": TouchesAFile(), "step": 1})
    checkpoint.previous_path(run, "last").unlink(missing_ok=True)
    with pytest.raises(UserError):
        checkpoint.load(run, "last")
    assert not (run / "executed").exists()


def test_a_checkpoint_of_another_format_is_refused(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FORMAT", 99)
    with pytest.raises(UserError, match="this version reads 99"):
        checkpoint.load(run, "last")


@pytest.mark.parametrize("content", [{"step": 1}, {"step": lambda: 1}], ids=["saved", "refused"])
def test_saving_leaves_the_checksums_of_torch_as_they_were(tmp_path, monkeypatch, content):
    used = []
    plain_save = torch.save

    def save(*arguments: object) -> None:
        used.append(torch.serialization.get_crc32_options())
        plain_save(*arguments)

    monkeypatch.setattr(torch, "save", save)
    with contextlib.suppress(AttributeError, pickle.PicklingError):
        checkpoint.save(tmp_path, "last", content)
    assert used == [False]
    assert torch.serialization.get_crc32_options()
