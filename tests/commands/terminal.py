"""A command on a pseudo-terminal: what a person at a keyboard sees, types and interrupts."""

import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.forks import Forked, fork, may_fork
from tests.support.leaks import WATCH
from tests.support.project import Project

# makes the terminal the controlling one, so that /dev/tty and Ctrl-C work, then becomes the command
_LAUNCH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
INTERRUPT, END = "\x03", "\x04"  # Ctrl-C, Ctrl-D


class Terminal:
    """A command that runs on a terminal of its own."""

    def __init__(
        self, command: Sequence[str], folder: Path, env: Mapping[str, str], columns: int = 80, *, forks: bool = False
    ) -> None:
        self._main, second = pty.openpty()
        fcntl.ioctl(second, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.seen = ""
        env = {"TERM": "xterm-256color", **env}
        self.popen: subprocess.Popen[bytes] | Forked
        if forks:
            self.popen = fork(command, env, [second] * 3, on_terminal=True)
        else:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, *command],
                cwd=folder,
                env=env,
                stdin=second,
                stdout=second,
                stderr=second,
                start_new_session=True,
            )
        os.close(second)

    def _read(self, deadline: float) -> bool:
        """Read what comes next; return whether there may be more."""
        left = deadline - time.monotonic()
        assert left > 0, f"nothing more came; seen so far: {self.seen!r}"
        if not select.select([self._main], [], [], left)[0]:
            return True
        try:
            data = os.read(self._main, 65536)
        except OSError as error:  # Linux says so when the last holder of the other end is gone
            if error.errno != errno.EIO:
                raise
            return False
        self.seen += data.decode(errors="replace")
        self.on_text()
        return bool(data)

    def on_text(self) -> None:
        """Called when something was shown."""

    def expect(self, text: str, seconds: float = 20) -> None:
        """Read until the text has been shown."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert self._read(deadline), f"ended without showing {text!r}: {self.seen!r}"

    def press(self, keys: str) -> None:
        """Type what is no secret, whether it is echoed or not."""
        os.write(self._main, keys.encode())

    def type(self, text: str) -> None:
        if not termios.tcgetattr(self._main)[3] & termios.ECHO:
            WATCH.secret("password typed", text.strip())
        os.write(self._main, text.encode())

    def wait(self, seconds: float = 30) -> int:
        """Read to the end; return the exit status."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.popen.wait(max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)  # a session of its own
        self.popen.wait(10)
        os.close(self._main)
        WATCH.texts.append(("a terminal", self.seen))


@contextlib.contextmanager
def terminal(project: Project, *args: str, env: dict[str, str] | None = None, columns: int = 80) -> Iterator[Terminal]:
    """Run a command on a terminal; it is ended when the context is left."""
    environment = project.environment({"TERM": "xterm-256color", **(env or {})})
    forks = may_fork(project.root, project.python, environment, args)
    command = args if forks else [project.python, "-m", "app", *args]
    opened = Terminal(command, project.root, environment, columns, forks=forks)
    try:
        yield opened
    finally:
        opened.close()
