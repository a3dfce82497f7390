"""The memory limit of control groups, as the kernel shows them in /proc and /sys."""

import os
from pathlib import Path

import pytest

from app.kernel import machine
from app.modules.auth import settings
from app.modules.auth.settings import hashes_that_fit

MIB = 2**20
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
UNLIMITED = "9223372036854771712"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"memory.max": f"{128 * MIB}"}, 128 * MIB),  # in a container
        ("0::/\n", {"memory.max": "max", "memory.high": f"{96 * MIB}"}, 96 * MIB),
        ("0::/a/b\n", {"a/memory.max": f"{64 * MIB}", "a/b/memory.max": "max"}, 64 * MIB),
        ("0::/a/b\n", {"a/memory.max": f"{64 * MIB}", "a/b/memory.max": f"{32 * MIB}"}, 32 * MIB),
        ("0::/a/b\n", {"a/memory.max": f"{32 * MIB}", "a/b/memory.max": f"{64 * MIB}"}, 32 * MIB),
        ("0::/a\n", {"b/memory.max": f"{64 * MIB}"}, MACHINE),  # that of another group
        ("0::/../a\n", {}, MACHINE),
        ("0::/a\n", {"a/memory.max": "max"}, MACHINE),
        ("5:cpu,memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": f"{128 * MIB}"}, 128 * MIB),
        ("5:memory:/x\n", {"memory/memory.limit_in_bytes": f"{96 * MIB}"}, 96 * MIB),  # in a container
        ("5:memory:/x\n", {"memory/x/memory.limit_in_bytes": UNLIMITED}, MACHINE),
        ("5:cpu:/x\n", {"memory/x/memory.limit_in_bytes": f"{96 * MIB}"}, MACHINE),
        ("5:memory:/a:b\n", {"memory/a:b/memory.limit_in_bytes": f"{96 * MIB}"}, 96 * MIB),
        ("", {"memory.max": f"{96 * MIB}"}, MACHINE),
    ],
)
def test_the_lowest_limit_of_all_groups_counts(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    given = {f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}
    for name, text in {"proc/self/cgroup": groups, **given}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.memory_bytes(tmp_path) == expected
    (tmp_path / "proc/self/cgroup").unlink()
    assert machine.memory_bytes(tmp_path) == MACHINE


@pytest.mark.parametrize(
    ("memory", "cores", "workers", "expected"),
    [
        (64, 8, 1, 1),
        (128, 8, 1, 1),
        (207, 8, 1, 1),
        (208, 8, 1, 2),
        (208, 1, 1, 1),
        (100_000, 2, 1, 2),
        (100_000, 64, 1, 8),
        (512, 8, 4, 1),
        (1024, 8, 4, 2),
        (100_000, 2, 4, 1),
    ],
)
def test_one_password_is_hashed_for_each_core_as_far_as_memory_suffices(
    monkeypatch: pytest.MonkeyPatch, memory: int, cores: int, workers: int, expected: int
) -> None:
    monkeypatch.setattr(settings, "memory_bytes", lambda: memory * MIB)
    monkeypatch.setattr(settings, "cores", lambda: cores)
    assert hashes_that_fit(workers) == expected
