"""Shared by the benchmarks: new processes, their memory, and a description of the machine."""

import argparse
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

# No torch is imported here: on Linux, a process inherits the peak memory of its parent.

_TREE = Path(__file__).parents[2]
_EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def run_in_new_process(*arguments: object, folder: str | None = None) -> Any:
    """Run this script again with other arguments; return the JSON in its last line of output.

    From the second time on, Python finds compiled byte-code, as it usually does.
    """
    command = [sys.executable, str(Path(sys.argv[0]).resolve()), *map(str, arguments)]
    process = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, cwd=folder, env=benchmark_environment()
    )
    return json.loads(process.stdout.splitlines()[-1])


def benchmark_environment() -> dict[str, str]:
    """Return an environment for processes that share a temporary folder of byte-code."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": _bytecode_folder().name}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # imports would take more than twice as long
    return environment


@cache
def _bytecode_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # removed at exit


def parser_of_trees(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser for a benchmark that runs train.py of several working trees.

    Args:
        description: The help text.
        rounds: The default number of rounds.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, help="train on MNIST in this writable torchvision root")
    add("--trees", type=Path, nargs="+", default=[_TREE], help="working trees; default: this one")
    add("--rounds", type=int, default=rounds)
    add("--run", type=Path, metavar="TREE", help=argparse.SUPPRESS)  # in this process
    add("overrides", nargs="*", help="after --: overrides of train.py, such as model=conv")
    return parser


def peak_memory() -> float:
    """Return the largest amount of memory that this process has had so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def hardware() -> dict[str, object]:
    """Return the versions, the number of threads and the processor."""
    import torch

    from vae.runs.environment import describe_environment

    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    name = re.search(r"model name\s*: (.*)", cpuinfo)
    flags = re.search(r"flags\s*: (.*)", cpuinfo)
    available = flags[1].split() if flags else []
    return {
        **describe_environment(torch.device("cpu")),
        "cpu": name[1] if name else platform.processor(),
        "extensions": [extension for extension in _EXTENSIONS if extension in available],
    }


def hardware_line(hardware: dict[str, object]) -> str:
    """Return a line about the result of `hardware`."""
    return (
        f"torch {hardware['torch']}, Python {hardware['python']}, {hardware['threads']} threads, "
        f"{hardware['cpu']} ({', '.join(hardware['extensions'])})"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, with the first column to the left and numbers to the right."""
    from tabulate import tabulate

    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align)
