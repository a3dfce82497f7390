"""What every command promises about its output."""

import json
import subprocess
from typing import Any


def refused(done: "subprocess.CompletedProcess[str]", status: int) -> str:
    """Check that a command ended with the status and one line on stderr, and hints; return the line."""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    return one_line(done.stderr)


def one_line(stderr: str) -> str:
    """Check that an error is one line, and that only hints follow; return the line."""
    line, *hints = stderr.splitlines()
    assert line.startswith("app: ")
    assert all(hint.startswith("hint: ") for hint in hints), stderr
    return line


def last_line(stderr: str) -> str:
    """Return the line of an error after warnings; only hints follow it."""
    lines = stderr.splitlines()
    [at] = [number for number, line in enumerate(lines) if line.startswith("app: ")]
    return one_line("\n".join(lines[at:]))


def misused(done: "subprocess.CompletedProcess[str]") -> str:
    """Check that a command was refused for how it was called; return what it says is wrong."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    usage, hint, blank, error = done.stderr.splitlines()
    assert usage.startswith("Usage: app")
    assert hint.startswith("Try 'app")
    assert blank == ""
    assert error.startswith("Error: ")
    return error


def printed_json(done: "subprocess.CompletedProcess[str]") -> Any:
    """Check that a command succeeded with JSON on stdout and nothing else there; return it."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
