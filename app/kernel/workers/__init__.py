"""Several processes over one listening socket: a supervisor, and its workers, which run the same command.

The supervisor imports only the standard library, reads no settings and opens no database: it binds the sockets that
workers ask for, starts and replaces workers, and answers for all of them.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from app.kernel.product import NAME

VARIABLE = f"{NAME.upper()}_WORKER"
"""Environment variable: number of a worker, how many there are, supervisor's process id, descriptors of its links."""
MOST = 64
"""Maximum number of workers."""
HEARTBEAT_S = 1.0
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
ONE_SIGNAL_S = 0.3
"""The same signal within this time is one: timeout(1) and others send it to the process, and to its process group."""
HANDLED = (*STOP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the supervisor handles."""


class LastSignal:
    """The last stop signal, to tell one that is sent twice from a second one."""

    def __init__(self) -> None:
        self._number, self._at = 0, 0.0

    def is_same(self, number: int) -> bool:
        """Return whether a signal repeats the last one within a moment; otherwise remember it."""
        now = time.monotonic()
        if number == self._number and now - self._at < ONE_SIGNAL_S:
            return True
        self._number, self._at = number, now
        return False


def become_supervisor(name: str, count: int, root: Path) -> NoReturn:
    """Replace this process by the supervisor of so many workers, which run the command of this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the supervisor handles them
    program = str(Path(__file__).with_name("__main__.py"))
    own = [sys.executable, *sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable, "-P", program, name, str(count), str(root), *own])  # noqa: S606 - no shell
