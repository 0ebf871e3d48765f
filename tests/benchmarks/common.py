"""What the benchmarks share: processes of their own, their memory, and words on the machine."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

# No torch up here: the peak memory of a process is, on Linux, no less than its parent's.

_EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def alone(*arguments: object, folder: str | None = None) -> Any:
    """Runs this script again, with these arguments: the JSON of its last line of output.

    With byte-code in place from the second time on, as it is wherever Python may write it.
    """
    command = [sys.executable, str(Path(sys.argv[0]).resolve()), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": _bytecode().name}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it more than doubles the imports' time
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=folder, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@cache
def _bytecode() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # removed at exit


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def hardware() -> dict[str, object]:
    """Versions, threads and the processor."""
    import torch

    from vae.runs.environment import describe_environment

    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    name = re.search(r"model name\s*: (.*)", cpuinfo)
    flags = re.search(r"flags\s*: (.*)", cpuinfo)
    has = flags[1].split() if flags else []
    return {
        **describe_environment(torch.device("cpu")),
        "cpu": name[1] if name else platform.processor(),
        "extensions": [extension for extension in _EXTENSIONS if extension in has],
    }


def described(hardware: dict[str, object]) -> str:
    """One line of it."""
    return (
        f"torch {hardware['torch']}, Python {hardware['python']}, {hardware['threads']} threads, "
        f"{hardware['cpu']} ({', '.join(hardware['extensions'])})"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column to the left, numbers to the right."""
    from tabulate import tabulate

    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align)
