"""Children that end with this process, whatever ends it. Run as a script, it becomes the program.

Imports only the standard library. A function that runs between fork and exec is not safe in a process with threads.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_PASSED = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "TZ")
_STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


def command_of(command: Sequence[str], *, nice: int = 0) -> list[str]:
    """Return a command that becomes another one, at a lower priority, and gets SIGTERM when this thread has ended."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(nice), *command]


def start(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.PIPE,
    account: tuple[int, int, list[int]] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a program with few variables of the environment besides `env`.

    On Linux it gets SIGTERM when the thread that called this has ended, unless it runs as another `account`: user,
    group, further groups.
    """
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    user, group, groups = account or (None, None, None)
    return subprocess.Popen(  # noqa: S603
        command_of(command, nice=os.nice(0))
        if account is None
        else command,  # the other account may not reach this interpreter
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd="/" if account else None,
        env={**passed, "LC_ALL": "C", **env},
        user=user,
        group=group,
        extra_groups=groups,
        start_new_session=True,  # Ctrl-C is for this process, which stops it
    )


def stop(child: "subprocess.Popen[bytes]") -> None:
    """End a child, and wait for it. Safe to repeat."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_S)
    if child.poll() is None:
        child.kill()
    child.wait()
    for stream in (child.stdout, child.stderr):
        if stream:
            stream.close()


def _yield_processors(nice: int) -> None:
    """Let others run first. A session of its own is a group of its own to the scheduler: sched(7), autogroup."""
    with suppress(OSError):  # units of systemd forbid it, and set their own
        os.nice(max(0, nice - os.nice(0)))
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text("19")


def _become(parent: int, nice: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)
    if nice > 0:
        _yield_processors(nice)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
