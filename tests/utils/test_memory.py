"""The memory that a process can use, within the limits of control groups."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from vae.utils import memory
from vae.utils.memory import available_memory

SYSTEM = 10**12


@pytest.fixture
def groups(tmp_path, monkeypatch) -> Callable[..., None]:
    """Write the control groups of a system with a terabyte of free memory."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": SYSTEM}))
    monkeypatch.setattr(memory, "_GROUPS_OF_PROCESS", tmp_path / "process")
    monkeypatch.setattr(memory, "_ALL_GROUPS", tmp_path / "groups")

    def write(groups_of_process: str, files: dict[str, object]) -> None:
        (tmp_path / "process").write_text(groups_of_process)
        for name, content in files.items():
            file: Path = tmp_path / "groups" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")

    return write


def test_without_control_groups_the_memory_of_the_system_counts(groups):
    assert available_memory() == SYSTEM
    groups("0::/\n", {"memory.max": "max", "memory.current": 5, "memory.stat": ""})
    assert available_memory() == SYSTEM


def test_the_smallest_limit_above_the_process_counts(groups):
    files = {"memory.stat": "anon 300\ninactive_file 100", "memory.current": 400}
    job = {"slurm/job/memory.max": 1000} | {f"slurm/job/{k}": v for k, v in files.items()}
    step = {"slurm/job/step/memory.max": "max"} | {
        f"slurm/job/step/{k}": v for k, v in files.items()
    }
    groups("0::/slurm/job/step\n", job | step)
    assert available_memory() == 700


def test_the_limit_of_a_container_with_the_first_version_counts(groups):
    """The container sees its group as the topmost one."""
    files = {"limit_in_bytes": 1000, "usage_in_bytes": 400, "stat": "total_inactive_file 100"}
    groups(
        "5:cpu,cpuacct:/docker/1\n4:hugetlb,memory:/docker/1\n1:name=systemd:/docker/1\n",
        {f"memory/memory.{name}": content for name, content in files.items()},
    )
    assert available_memory() == 700
