"""Uploads that are killed at any moment: what is visible is whole, and what is left is cleaned."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.kernel.backup import Target, TargetUnavailable
from app.kernel.backup.targets.folder import Folder
from tests.support.project import ROOT, eventually
from tests.support.uploads import HALF, REPLACED, is_whole

KILLS = int(os.environ.get("KILLS", "12"))


@contextmanager
def uploader(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.uploads", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()
        process.wait(20)


@pytest.fixture
def place(target: Target, request: pytest.FixtureRequest) -> tuple[str, ...]:
    if isinstance(target, Folder):
        return "folder", target.label
    return "s3", str(request.getfixturevalue("seaweed").port), target.label


def found(target: Target, name: str) -> bytes:
    """Return an object, which a request that the server had received before the kill may replace meanwhile."""
    for _ in range(3):
        with suppress(TargetUnavailable):
            return b"".join(target.get(name))
    return b"".join(target.get(name))


def test_what_a_killed_upload_leaves_is_whole_or_not_visible(target: Target, place: tuple[str, ...]) -> None:
    rng, seen = random.Random(), set[str]()
    with uploader(*place) as process:
        for kill in range(KILLS):
            print(kill, file=process.stdin, flush=True)
            pid = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)
            for stored in list(target.list()):
                if stored.name not in seen or stored.name == REPLACED:
                    assert is_whole(found(target, stored.name)), stored.name
                    seen.add(stored.name)
    assert seen
    eventually(lambda: target.clean(0) == 0)
    if isinstance(target, Folder):
        assert not list(Path(target.label).rglob(".*"))


def test_what_an_upload_killed_in_its_middle_leaves_is_not_listed_and_is_cleaned(
    target: Target, place: tuple[str, ...]
) -> None:
    with uploader(*place) as process:
        print(HALF, file=process.stdin, flush=True)
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "stored a part\n"
        os.kill(pid, signal.SIGKILL)
    assert not list(target.list())
    assert target.clean(0) == 1
    assert target.clean(0) == 0
    if isinstance(target, Folder):
        assert not list(Path(target.label).rglob(".*"))
