"""Every command with standard streams that are closed, full or not UTF-8: an exit status, never a traceback."""

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TestDatabase
from tests.support.project import Project
from tests.test_cli import LEAVES, NODES, arguments, examples

CONTRACT = {0, 1, 2, 65, 67, 69, 73, 75, 77, 78}
JOB, LETTER = "0193505f-1c00-7000-8000-000000000001", "0193505f-1c00-7000-8000-000000000002"
STREAMS = {
    "as usual": ("nowhere", "out", "err"),
    "ASCII, stdin closed": ("closed", "out", "err"),
    "stdout closed": ("nowhere", "closed", "err"),
    "stdout full": ("nowhere", "full", "err"),
    "stderr closed": ("nowhere", "out", "closed"),
    "stderr full": ("nowhere", "out", "full"),
    "all closed": ("closed", "closed", "closed"),
}
READS = ("list", "show", "explain", "validate", "status", "plan", "--json", "--help", "--version")
EVERYTHING = os.environ.get("APP_TEST_EVERY_STREAM") == "1"  # else each command gets some of them: just streams
ROWS = f"""
    INSERT INTO kernel.jobs (id, queue, task, rank, max_attempts, timeout_s)
    VALUES ('{JOB}', 'größe', 'naïve', 0, 1, 1);
    INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at)
    VALUES ('{LETTER}', 'größe', 'naïve', 'ça ne va pas 😀', 1, 1, 1, now());
    INSERT INTO kernel.events (id, type, version, payload) VALUES ('{JOB}', 'füße', 1, '{{}}');
    INSERT INTO kernel.schedules (name, task, spec, misfire, next_fire_at) VALUES ('täglich', 't', 's', 'one', now());
    INSERT INTO kernel.errors (id, fingerprint, kind, type, title, culprit, count, processes, first_seen_at,
        last_seen_at, first_release, last_release, samples)
    VALUES ('{JOB}', 'f', 'job', 'T', 'ça ne va pas 😀', 'där', 1, '{{}}', now(), now(), '1', '1', '[]');
"""


def commands() -> dict[str, list[str]]:
    """Return a command line for each command that ends by itself: its example, about what is stored here."""
    found: dict[str, list[str]] = {"--help": ["--help"], "--version": ["--version"]}
    for name in LEAVES:
        if name.startswith("run-"):
            continue
        stored = LETTER if name.startswith("dead-letters") else JOB
        words = [stored if re.fullmatch(r"[0-9a-f]{8}-[-0-9a-f]{27}", word) else word for word in example(name)]
        found[name] = words
        if any(option.name == "as_json" for option in NODES[name].command.params):
            found[f"{name} --json"] = [*dict.fromkeys([*words, "--json"])]
    found["auth create-superuser --password-stdin"] = [
        "auth",
        "create-superuser",
        "--username",
        "x",
        "--password-stdin",
    ]
    return found


def example(name: str) -> list[str]:
    return arguments(examples(textwrap.dedent(NODES[name].command.help or "").replace("\b\n", ""))[0])


def conditions(number: int, name: str) -> list[str]:
    """Return the streams that a command is tried with."""
    first, *others = STREAMS
    if EVERYTHING:
        return list(STREAMS)
    if name.endswith("--json") and not name.endswith((" list --json", "show --json")):
        return []
    return [first, others[number % len(others)]]


@pytest.fixture
def outcomes(project: Project, database: TestDatabase, tmp_path: Path) -> list[dict[str, Any]]:
    copy = project.copy(tmp_path / "copy")
    (tmp_path / "copy" / "tests").symlink_to(project.root / "tests")
    database.run(ROWS)
    cases = [
        {"name": name, "how": how, "args": words, "streams": STREAMS[how]}
        | {"encoding": "ascii" if how.startswith("ASCII") else "utf-8"}
        for number, (name, words) in enumerate(commands().items())
        for how in conditions(number, name)
    ]
    done = subprocess.run(
        [copy.python, "-m", "tests.support.streams"],
        cwd=copy.root, env=copy.environment(), input=json.dumps(cases), capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def faults(case: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """Return what is wrong with how a command ended."""
    how, status, out, err = (case[key] for key in ("how", "status", "out", "err"))
    expected, reads = CONTRACT, case["name"].endswith(READS)
    cannot_write = how.startswith("stdout") and usual["out"] and usual["status"] == 0 and reads
    if cannot_write:
        expected = {1}
    elif reads and how != "all closed":
        expected = {usual["status"]}
    found = []
    if status not in expected:
        found.append(f"exit status {status}, expected {expected}")
    if "Traceback" in err or "Exception ignored" in err:
        found.append("a traceback")
    if cannot_write and not re.fullmatch(r"app: cannot write to stdout: .+\n", err):
        found.append("not one line that says so")
    if how.startswith("ASCII"):
        if not (out + err).isascii():
            found.append("not ASCII")
        if out and reads and "--json" in case["args"] and json.loads(out) != json.loads(usual["out"]):
            found.append("another JSON")
    return [f"app {' '.join(case['args'])} ({how}): {fault}: {err[-500:]}" for fault in found]


def test_no_command_fails_for_its_streams_other_than_by_its_exit_status(outcomes: list[dict[str, Any]]) -> None:
    usual = {case["name"]: case for case in outcomes if case["how"] == "as usual"}
    assert len(usual) > 40
    assert [fault for case in outcomes for fault in faults(case, usual[case["name"]])] == []
