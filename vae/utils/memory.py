"""How much memory this process can use, within the limits of its container or cluster."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_ALL_GROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return how many bytes this process can use without swapping and without being killed.

    It is the free memory of the system or, if that is less, of a control group of Linux that
    contains the process. Docker and Slurm limit the memory of their processes by control groups:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    import psutil

    return min([psutil.virtual_memory().available, *_available_in_groups()])


def _available_in_groups() -> Iterator[int]:
    """Yield the free bytes of each control group that contains this process and has a limit."""
    lines = []
    with suppress(OSError):  # the system is not Linux
        lines = _GROUPS_OF_PROCESS.read_text().splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:  # version 2
            top, limit, usage, cache = _ALL_GROUPS, "max", "current", "inactive_file"
        elif "memory" in controllers.split(","):  # version 1
            top = _ALL_GROUPS / "memory"
            limit, usage, cache = "limit_in_bytes", "usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = top / name.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            # A container sees no group above the group of the container. "max" means no limit.
            with suppress(OSError, ValueError):
                free = int((folder / f"memory.{limit}").read_text())
                free -= int((folder / f"memory.{usage}").read_text())
                lines_of_statistics = (folder / "memory.stat").read_text().splitlines()
                statistics = dict(map(str.split, lines_of_statistics))
                yield free + int(statistics.get(cache, 0))  # Linux drops cached files if needed
