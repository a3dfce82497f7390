"""Runs programs of PostgreSQL under their own account. Imports only the standard library."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

LINUX = sys.platform == "linux"
STEP_S = 0.02
STOP = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


class Account(NamedTuple):
    """User and group of PostgreSQL, and whether it gets CAP_DAC_READ_SEARCH."""

    uid: int
    gid: int
    search: bool = False


class Child(subprocess.Popen[bytes]):
    """A program of PostgreSQL under an account, stopped by the kernel when this process dies (Linux)."""

    def __init__(self, command: list[str], account: Account, output: int, folder: Path = Path("/")) -> None:
        self.account = account
        self.folder = folder
        self.parent = os.getpid()
        self.libc = ctypes.CDLL(None, use_errno=True)
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        super().__init__(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**kept, "LC_ALL": "C", "TZ": "UTC"},
            preexec_fn=self.prepare,
        )

    def prctl(self, option: int, *values: int) -> None:
        """Call prctl(2). Raises OSError."""
        if self.libc.prctl(option, *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0)[:4])) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    def prepare(self) -> None:
        """Drop privileges, then set the death signal, which a change of credentials would clear."""
        if self.account.uid != os.geteuid():
            if self.account.search:
                self.prctl(28, 4)  # PR_SET_SECUREBITS, NO_SETUID_FIXUP: else access(2) ignores capabilities
            os.setgroups([])
            os.setgid(self.account.gid)
            os.setuid(self.account.uid)
            if self.account.search:  # CAP_DAC_READ_SEARCH, bit 2 of the effective, permitted and inheritable sets
                header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(4, 4, 4, 0, 0, 0)
                if self.libc.capset(header, sets) != 0:
                    raise OSError(ctypes.get_errno(), "capset")
                self.prctl(47, 2, 2)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
        os.chdir(self.folder)
        if LINUX:
            self.prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
            if os.getppid() != self.parent:
                os._exit(1)


class Adopted:
    """A server that another supervisor started, with the used part of `Child`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """Return None while it runs."""
        with contextlib.suppress(OSError):
            return os.kill(self.pid, 0)
        return 0

    def send_signal(self, number: int) -> None:
        """Send a signal; ignored when it has ended."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, number)


def telling(log: bytes) -> str:
    """Return the most specific line of a server's log."""
    lines = log.decode(errors="replace").splitlines()
    lines = [line for line in lines if "the database system is" not in line]  # answers to clients
    found = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "error:", "could not"))]
    return (found or lines or ["it wrote nothing"])[-1].strip()


def stop(server: Child | Adopted, *, orderly: bool = True) -> None:
    """Stop the server within a time limit: cleanly, or at once when its data need not be saved."""
    for number, patience_s in STOP if orderly else STOP[1:]:
        if server.poll() is None:
            server.send_signal(number)
        deadline = time.monotonic() + patience_s
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(STEP_S)
