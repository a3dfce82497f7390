"""What every command promises about its output."""

import json
import subprocess
from typing import Any


def refused(done: "subprocess.CompletedProcess[str]", status: int) -> str:
    """Check that a command ended with the status and one line on stderr; return the line."""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("app: ")
    return line


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
