"""What a run was made with: versions, and the revision of the code."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

ENVIRONMENT = "environment.json"

_PACKAGES = ("torchvision", "hydra-core", "tensorboard", "numpy", "mlxtend", "pydantic")


def environment(device: torch.device) -> dict[str, object]:
    """Names of versions; the git revision is None outside a checkout, and says if it is dirty."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "git": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,  # with the build, which the package's version lacks
        **{package: version(package) for package in _PACKAGES},
        "device": gpu or str(device),
        "threads": torch.get_num_threads(),
    }


def _git_revision() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
