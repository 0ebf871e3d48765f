"""Choosing the checkpoints from which the replicas of a run resume together."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from vae.training.checkpoint import WHICH, Checkpoint, path, versions
from vae.utils.errors import UserError


def resume_points(folders: Sequence[Path]) -> list[Checkpoint | None]:
    """Return the checkpoint from which each replica resumes, or None for a start from step 0.

    Replicas are saved one after another, so a crash can leave some replicas one checkpoint ahead
    of the others. All of them then restart from the newest step that every active replica has, or
    from step 0. Replicas that had already stopped keep their own, older step. Each checkpoint file
    is read once.

    Raises:
        UserError: A replica was trained further on its own, and resuming would lose these steps,
            or all checkpoints of a replica are damaged.
    """
    names = [folder.name for folder in folders]
    saved: list[dict[int, Checkpoint]] = []  # by step, the newest first
    for folder in folders:
        checkpoints: dict[int, Checkpoint] = {}
        for content in versions(folder, "last"):
            checkpoints.setdefault(content["step"], content)  # the newest comes first
        newest = next(iter(checkpoints.values()), None)
        if newest is not None and len(folders) > 1 and newest["members"] != names:
            raise _trained_alone(folder, newest["step"])
        saved.append(checkpoints)
    stopped = _stopped_replicas(saved)
    common_step = min(
        max(checkpoints, default=0)
        for folder, checkpoints in zip(folders, saved, strict=True)
        if folder.name not in stopped
    )
    points = []
    for folder, checkpoints in zip(folders, saved, strict=True):
        step = max((step for step in checkpoints if step <= common_step), default=0)
        epochs = next(iter(checkpoints.values()))["epoch"] if checkpoints else 0
        # Without a common step, the crash must have been in the first epoch.
        is_behind = step < common_step or (not common_step and epochs > 1)
        if is_behind and folder.name not in stopped:
            raise _trained_alone(folder, max(checkpoints))
        points.append(checkpoints.get(step))
    return points


def remove_newer(folder: Path, checkpoint: Checkpoint) -> None:
    """Make `checkpoint` the newest last.pt, and remove a newer or damaged best.pt likewise.

    The previous file takes the place of a file that is newer than `checkpoint` or damaged, so that
    the next save keeps it as the previous file again.
    """
    for which in WHICH:
        candidates = [checkpoint] if which == "last" else versions(folder, which)
        for content in candidates:
            if content["step"] <= checkpoint["step"]:
                if content["file"] != path(folder, which):
                    os.replace(content["file"], path(folder, which))
                break


def _stopped_replicas(saved: Sequence[dict[int, Checkpoint]]) -> Collection[str]:
    """Return the names of the replicas that had stopped by the newest step of all replicas."""
    stopped_by_step = {
        step: content["stopped"] for checkpoints in saved for step, content in checkpoints.items()
    }
    return stopped_by_step[max(stopped_by_step)] if stopped_by_step else ()


def _trained_alone(folder: Path, step: int) -> UserError:
    return UserError(
        f"{folder} is at step {step} without the others and cannot be resumed with them; "
        "resume each replica by itself"
    )
