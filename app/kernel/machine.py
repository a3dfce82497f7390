"""What the machine, or the control groups of a container or unit, let this process use."""

import os
from pathlib import Path, PurePosixPath

_FILES = {True: ("memory.max", "memory.high"), False: ("memory.limit_in_bytes",)}
"""By whether it is version 2 of control groups."""


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the lowest memory limit of the control groups that this process is in, or the memory of the machine.

    Both versions of control groups (cgroups(7)). In a container, its own is the root.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        for part in ("", *PurePosixPath(path).parts[1:]):
            folder /= part
            texts = [_text(folder / name).strip() for name in _FILES[not controllers]]
            found = min([found, *(int(text) for text in texts if text.isdecimal())])
    return found


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
