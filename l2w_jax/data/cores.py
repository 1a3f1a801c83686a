"""How many cores this process may use, which is not how many the machine has.

Needs Python alone, since it is also copied into exported folders.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

# Where Linux shows control groups, by which containers and schedulers limit processes.
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """The cores that this process is bound to, or fewer where control groups grant it less time.

    A limit of 2.5 cores' time counts as 3.
    """
    return max(1, min([_bound_cores(), *(math.ceil(limit) for limit in _limits())]))


def _bound_cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits() -> Iterator[float]:
    """Yields the limits, in cores, of this process's control groups and of those around them."""
    for folder in _group_folders():
        # Version 2 of control groups, which writes "max" for no limit, and version 1, with -1.
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            words = [word for name in names for word in _words(folder / name)]
            if len(words) == 2 and all(word.isdigit() for word in words):
                quota, period = map(int, words)
                yield quota / period


def _group_folders() -> Iterator[Path]:
    """Yields the folder of each control group for processor time that this process is in.

    Inside a container the paths may be those of the host, which do not exist there; the container's
    own group is then the root.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            root = _GROUPS / "cpu" if controllers else _GROUPS
            group = Path(path.lstrip("/"))
            yield from (root / inner for inner in (group, *group.parents))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
