"""Starts `app` as forks of a process that has loaded its modules: starting Python and importing takes most time.

What is forked runs like `python -m app`: its own process, arguments, environment, folder, streams and exit. Not forked
is what depends on how Python itself starts, see `may_fork`. What a command loads is tested in test_loaded_modules.
"""

import atexit
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import NoReturn

_LAZY = ("apprise", "boto3", "grpc", "hvac", "nats", "redis")  # rarely used, and large
_USED = ("apscheduler.triggers.cron", "argon2", "httpx2", "joserfc.jwt", "rich.table", "uvloop", "yoyo", "zxcvbn")
_MODES = ("r", "w", "w")
_TURN = threading.Lock()
_WAIT_S = 60.0
_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ", "MALLOC_", "GLIBC_", "OPENSSL_", "SSL_")
"""Variables that Python or a library reads when it is loaded."""


class Forked:
    """A process that was forked, with the used part of `subprocess.Popen`."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit status, minus the signal that ended it, or None while it runs."""
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended. Raises TimeoutExpired."""
        found = self._read(timeout)
        if found is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return found

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ready, _, _ = select.select([self._status], [], [], timeout)
            if ready:
                self.returncode = int(os.read(self._status, 32))
                os.close(self._status)
        return self.returncode

    def __del__(self) -> None:
        if self.returncode is None:
            os.close(self._status)


def may_fork(root: Path, python: str, env: dict[str, str], args: Sequence[str]) -> bool:
    """Return whether a process does not depend on how Python starts it."""
    here = Path(__file__).resolve().parents[2]
    usual = _environment()
    at_start = {name for name in env if name.startswith(_AT_START) and env[name] != usual.get(name)}
    return (root, python) == (here, sys.executable) and not at_start and "--workers" not in args


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}


def fork(args: Sequence[str], env: dict[str, str], streams: Sequence[int], *, on_terminal: bool = False) -> Forked:
    """Start `app` with arguments, and with file descriptors as stdin, stdout and stderr, which may be a terminal."""
    status, theirs = os.pipe()
    try:
        message = json.dumps({"args": list(args), "env": env, "on_terminal": on_terminal}).encode()
        with _TURN:
            server = _server()
            socket.send_fds(server, [len(message).to_bytes(4, "big")], [*streams, theirs])
            server.sendall(message)
            pid = int(server.recv(32))
    finally:
        os.close(theirs)
    return Forked(pid, status)


def forked(args: Sequence[str], env: dict[str, str], stdin: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run `app` to its end. Raises TimeoutExpired."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = fork(args, env, [given.fileno(), out.fileno(), err.fileno()])
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
        said = [file.seek(0) or file.read().decode() for file in (out, err)]
    return subprocess.CompletedProcess(["app", *args], status, *said)


@cache
def _server() -> socket.socket:
    """Start the process to fork from; it ends when this one does."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_WAIT_S)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forks"], cwd=root, env=_environment(), stdin=theirs.fileno()
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


def _receive(server: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message, empty at the end, and the file descriptors that came with it."""
    size, fds, _, _ = socket.recv_fds(server, 4, 4)
    message = b""
    while size and len(message) < int.from_bytes(size, "big"):
        part = server.recv(65536)
        if not part:
            return b"", fds
        message += part
    return message, fds


def _serve() -> list[str]:
    """Fork whenever asked; return, in the forked process alone, with its arguments."""
    server = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps the processes that wait
    while True:
        message, fds = _receive(server)
        if not message:
            os._exit(0)
        pid, started = os.pipe()
        if os.fork() == 0:  # waits for the process, and reports its exit status
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if (child := os.fork()) == 0:
                given = json.loads(message)
                if given["on_terminal"]:
                    os.setsid()  # before its id is known, to which signals may be sent
                os.write(started, str(os.getpid()).encode())
                server.detach()  # its file descriptor becomes stdin
                _become(given["env"], fds[:3])
                if given["on_terminal"]:
                    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
                return given["args"]
            _wait(child, fds[3])
        os.close(started)
        for fd in fds:
            os.close(fd)
        server.send(os.read(pid, 32))
        os.close(pid)


def _wait(child: int, report: int) -> NoReturn:
    os.closerange(0, report)
    os.closerange(report + 1, 64)
    _, status = os.waitpid(child, 0)
    try:
        os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
    finally:
        os._exit(0)


def _become(env: dict[str, str], streams: Sequence[int]) -> None:
    """Make of this process what Python makes of a new one."""
    os.environ.clear()
    os.environ.update(env)
    for fd, given in enumerate(streams):
        os.dup2(given, fd)
    os.closerange(3, 64)
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if fd == 2 else "strict"
        buffering = 1 if fd == 2 or os.isatty(fd) else -1
        stream = open(fd, _MODES[fd], buffering, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _end(status: int) -> NoReturn:
    """End as Python does, without freeing each object: that copies most of what is shared, and takes 0.1 s."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
    os._exit(status)


def load_everything() -> None:
    """Import all that commands and processes use, and read the settings once."""
    from app import ROOT
    from app import __path__ as path
    from app.kernel.config import load as read_settings
    from app.processes import sections

    for found in walk_packages(path, "app."):
        if not found.name.endswith("__main__") and not any(name in found.name for name in _LAZY):
            import_module(found.name)
    for name in _USED:
        import_module(name)
    read_settings(ROOT, sections(), {"APP_ENV": "test"})  # what it keeps are parsed files and validators


if __name__ == "__main__":
    load_everything()
    gc.collect()
    gc.freeze()
    arguments = _serve()
    sys.argv = ["app", *arguments]
    sys.orig_argv = [sys.executable, "-m", "app", *arguments]
    try:
        runpy.run_module("app", run_name="__main__", alter_sys=True)
    except SystemExit as asked:
        if isinstance(asked.code, int):
            _end(asked.code)
        raise
