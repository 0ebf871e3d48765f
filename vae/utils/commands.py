"""Commands of this project as text that can be pasted into a shell."""

import os
import shlex
import shutil
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]


def script_command(script: str, *words: object) -> str:
    """Return the command that runs a script of this project in the same way as this process.

    Args:
        script: `train.py` or `evaluate.py`.
        *words: The arguments. An override must already be written in Hydra's grammar; see
            `vae.cli.overrides.override`.
    """
    path = _CHECKOUT / script
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return shlex.join([*_python(), str(path), *map(str, words)])


def tensorboard_command(folder: Path) -> str:
    """Return the command that shows a folder in TensorBoard."""
    program = ["tensorboard"]
    if _is_run_by_uv():
        program = ["uv", "run", "tensorboard"]
    elif shutil.which("tensorboard") is None:
        program = [*_python(), "-m", "tensorboard.main"]
    return shlex.join([*program, "--logdir", str(folder)])


def _python() -> list[str]:
    """Return the words that start this Python interpreter."""
    if _is_run_by_uv():
        return ["uv", "run"]
    found = shutil.which("python")
    is_this_one = found is not None and Path(found).parent.samefile(Path(sys.executable).parent)
    return ["python"] if is_this_one else [sys.executable]


def _is_run_by_uv() -> bool:
    return "UV" in os.environ  # `uv run` sets this variable
