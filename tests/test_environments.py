"""Processes and commands in odd environments: they work, or end with one clear line."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from app.processes import PROCESSES
from tests.conftest import postgres_binaries, required
from tests.support.debian import DebianServer, debian_server
from tests.support.project import ROOT, Project
from tests.test_streams import CONTRACT, commands

MOUNTS = """
    mount --bind "$ROOT" /mnt
    for place in /tmp /dev/shm; do mount -t tmpfs -o size=64k,nr_inodes=40 none $place; done
    mkdir -p "$ROOT" && mount --bind /mnt "$ROOT" && mount -o remount,bind,ro "$ROOT"
    for place in /tmp /dev/shm; do
        cat /dev/zero > $place/full 2> /dev/null
        number=0; while touch $place/$number 2> /dev/null; do number=$((number + 1)); done
    done
"""
ALONE = {
    "stdin closed": '[ "$2" != app ] || exec <&-',
    "no HOME, TERM or LANG": "unset HOME TERM LANG LC_ALL",
    "LANG=C": "export LANG=C LC_ALL=C",
    "umask 077": "umask 077",
    "64 open files": "ulimit -n 64",
    "deleted working directory": 'cd "$(mktemp -d)" && rmdir "$PWD"',
    "read-only checkout, full /tmp": MOUNTS,
}
TOGETHER = {
    "bare": "; ".join(script for name, script in ALONE.items() if script != MOUNTS and name != "LANG=C"),
    "confined": f'{MOUNTS}\n{ALONE["LANG=C"]}; cd "$ROOT"',
}
CONDITIONS = ALONE if os.environ.get("APP_TEST_EVERY_ENVIRONMENT") == "1" else TOGETHER


@pytest.fixture(scope="module")
def server() -> Iterator[DebianServer]:
    """A server that is reached over TCP, because the folders of sockets go away."""
    with debian_server(postgres_binaries()) as started:
        yield started


@pytest.fixture(params=CONDITIONS)
def odd(request: pytest.FixtureRequest, cli: Project, server: DebianServer, tmp_path: Path) -> Project:
    """The project, whose processes run in an odd environment."""
    script = CONDITIONS[request.param]
    begin = "#!/bin/sh\n"
    if MOUNTS in script:
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            required("permission to make mount namespaces")
        begin = '#!/bin/sh\n[ -n "$INSIDE" ] || INSIDE=yes exec unshare --mount "$0" "$@"\nunset INSIDE\n'
        if ROOT.is_relative_to("/tmp"):
            pytest.skip("the checkout is in the /tmp that would be full")
    copied = cli.copy(tmp_path / "copy")
    wrapper = cli.scratch / "python"
    run = f'export PYTHONPATH="$ROOT"\n{script}\nunset ROOT\nexec {shlex.quote(cli.python)} "$@"\n'
    wrapper.write_text(f"{begin}ROOT={shlex.quote(str(copied.root))}\n{run}")
    wrapper.chmod(0o755)
    return replace(copied, env={**cli.env, **server.env}, python=str(wrapper))


def test_every_process_serves_and_stops(odd: Project) -> None:
    for name in PROCESSES:
        odd.start(name)
    for process in odd.running:
        url = process.ready()
        assert httpx.get(f"{url}/health").status_code == 200
        assert "process_resident_memory_bytes" in httpx.get(f"{url}/metrics").text
    assert [process.stop() for process in odd.running] == [0] * len(PROCESSES)
    assert "".join(process.errors.read_text() for process in odd.running) == ""


def test_every_command_ends_as_documented_without_a_traceback(odd: Project) -> None:
    shutil.copytree(ROOT / "tests/support", odd.root / "tests/support")
    named = {name: words for name, words in commands().items() if not name.endswith(" --json") and name != "db shell"}
    named["migrate create"] = named.pop("migrate create")  # last, because its empty file would have to be written
    cases = [
        {"name": name, "args": words, "streams": ("closed", "out", "err"), "encoding": "ascii"}
        for name, words in {"migrate up": ["migrate", "up"], **named}.items()
    ]
    done = subprocess.run(
        [odd.python, "-m", "tests.support.streams"],
        cwd=odd.root, env=odd.environment(), input=json.dumps(cases), capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert [case for case in ended if case["status"] not in CONTRACT or "Traceback" in case["err"]] == []
    whole = [case for case in ended if case["name"].split() == named.get(case["name"])]  # those without an argument
    reads = [case for case in whole if case["name"].endswith((" list", "config show", " status", " plan", "--help"))]
    assert len(reads) > 8
    # these need a target of backups, too
    ended_well = [case["status"] == 0 or case["name"].startswith("backup ") for case in reads]
    assert [(case["name"], case["err"]) for case, is_well in zip(reads, ended_well, strict=True) if not is_well] == []
    cannot_write = [case["err"] for case in ended if case["name"] in ("support-bundle", "migrate create")]
    lines = [[line for line in said.splitlines() if not line.startswith("hint: ")] for said in cannot_write]
    assert all(len(said) <= 1 for said in lines), cannot_write
