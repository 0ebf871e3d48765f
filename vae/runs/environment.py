"""The versions, the revision of the code, the device and the threads that a run is made with."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from vae.runs.folder import ENVIRONMENT
from vae.utils.files import read_json, write_json

_PACKAGES = ("torchvision", "hydra-core", "tensorboard", "numpy", "mlxtend", "pydantic")

_OF_REPOSITORY = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_NAMESPACE",
}
"""Variables that say where the repository of another command is."""


def describe_environment(device: torch.device) -> dict[str, object]:
    """Return versions, git revision, device and number of threads of this process, by name.

    The git revision is that of `git_revision`.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "git": git_revision(Path(__file__).parent),
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


def git_revision(package: Path) -> str | None:
    """Return the git revision of the code in a folder; None if git does not track this code.

    A package may be installed in an environment inside of another project's repository. Git finds
    that repository, but its revision says nothing about the package.

    Args:
        package: A folder of this package. Worktrees, submodules and copies that are committed to
            a larger repository have a revision too.

    Returns:
        The hash of the commit, with "-dirty" after it if tracked files have been changed. None
        without git, or if git refuses to read the repository because another user owns it.
    """
    # A git hook sets these variables, and git prefers them to the folder that -C names.
    environment = {key: value for key, value in os.environ.items() if key not in _OF_REPOSITORY}

    def git(*arguments: str) -> bytes:
        # Another process may be working in the repository, so git must not lock its index.
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout

    try:
        git("ls-files", "--error-unmatch", "--", "__init__.py")
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD").decode().strip() + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
