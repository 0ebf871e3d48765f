"""What a sweep's jobs share, in whatever process and on whatever machine they run: how their
folders are named, and word of those that failed.

Launchers send the jobs' callbacks along, `Failures` among them, and a process that unpickles it
has imported this file: that is how the names below are known to it. Imports no torch.
"""

import hashlib
import json
import shutil
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from . import published  # noqa: F401  # the resolvers of published settings
from .files import write_json

FAILED = "failed"


def folder_word(objective: str, estimator: str | None) -> str:
    """What a run folder is called after: the estimator, and any objective but the ELBO."""
    return "_".join(name for name in (objective, estimator) if name and name != "negative_elbo")


def seeds_of(seed: int, seeds: int | list[int] | None) -> str:
    """seed0; of replicas seeds10, from another seed on seed20_seeds10, or of a list seeds3-7."""
    if seeds is None:
        return f"seed{seed}"
    if OmegaConf.is_list(seeds):
        return f"seeds{'-'.join(map(str, seeds))}"
    return f"seed{seed}_seeds{seeds}" if seed else f"seeds{seeds}"


def mark(overrides: str) -> str:
    """A few letters that stand for the overrides which no other part of a folder's name shows."""
    return f"_{hashlib.sha256(overrides.encode()).hexdigest()[:6]}" if overrides else ""


OmegaConf.register_new_resolver("method", folder_word, replace=True)
OmegaConf.register_new_resolver("seeds_of", seeds_of, replace=True)
OmegaConf.register_new_resolver(
    "or_else", lambda given, other: other if given is None else given, replace=True
)
OmegaConf.register_new_resolver("mark", mark, replace=True)


def again(folder: Path) -> str:
    """The override that has the same command go on in a sweep's folder."""
    named = folder.parent.name == "outputs"
    return f"sweep={folder.name}" if named else f"hydra.sweep.dir={folder}"


class Failure(NamedTuple):
    status: int  # that a run of its own would have exited with
    why: str
    overrides: list[str]


class Failures(Callback):
    """Remembers where the sweep of this process is, and forgets what failed in it before.

    A sweep of runs that are elsewhere, as with resume=, leaves no folder of its own.
    """

    folder: ClassVar[Path | None] = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        Failures.folder = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Failures.folder = Path(config.hydra.sweep.dir)
        shutil.rmtree(Failures.folder / FAILED, ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if folder.is_dir() and {held.name for held in folder.iterdir()} == {"multirun.yaml"}:
            with suppress(OSError):  # another process may be at work there
                (folder / "multirun.yaml").unlink()
                folder.rmdir()


def record(sweep: Path, job: int, failure: Failure) -> None:
    """Leaves word of a failed job in the sweep's folder. Raises OSError."""
    (sweep / FAILED).mkdir(exist_ok=True)
    write_json(sweep / FAILED / f"{job}.json", failure._asdict())


def failures() -> dict[int, Failure]:
    """The failed jobs of the sweep that this process started, by number."""
    if Failures.folder is None:
        return {}
    files = (Failures.folder / FAILED).glob("*.json")
    found = {int(file.stem): Failure(**json.loads(file.read_bytes())) for file in files}
    return dict(sorted(found.items()))


def lost(error: RuntimeError) -> str | None:
    """A launcher's own complaint in one line: no such cluster, or a job whose process died."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals["__name__"].partition(".")[0] not in ("joblib", "submitit"):
        return None
    said, _, _ = str(error).partition("---")  # what the job printed comes below
    return " ".join(said.split()).removesuffix(" Error stream produced:")
