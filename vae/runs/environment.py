"""The versions, the revision of the code, the device and the threads that a run is made with."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from vae.runs.folder import ENVIRONMENT
from vae.utils.files import read_json, write_json

_PACKAGES = ("torchvision", "hydra-core", "tensorboard", "numpy", "mlxtend", "pydantic")


def describe_environment(device: torch.device) -> dict[str, object]:
    """Return versions, git revision, device and number of threads of this process, by name.

    The git revision is None outside a checkout, and ends with "-dirty" if tracked files have been
    changed.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "git": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,  # includes the build, which the package's version lacks
        **{package: version(package) for package in _PACKAGES},
        "device": gpu or str(device),
        "threads": torch.get_num_threads(),
    }


def record_environment(folder: Path, current: dict[str, object], step: int) -> None:
    """Write the environment of a new run, or append the environment of a resumed run.

    Args:
        folder: The run folder.
        current: The environment of this process.
        step: The step from which the run is resumed; 0 for a new run.
    """
    recorded = read_json(folder / ENVIRONMENT) if step else {}
    if recorded:
        resumed = [*recorded.get("went_on", []), {"from_step": step, **current}]
        current = recorded | {"went_on": resumed}
    write_json(folder / ENVIRONMENT, current)


def _git_revision() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
