"""Several processes over one listening socket: a supervisor, and its workers, which run the same command.

The supervisor imports only the standard library, reads no settings and opens no database: it binds the sockets that
workers ask for, starts and replaces workers, and answers for all of them.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from app.kernel.product import NAME

VARIABLE = f"{NAME.upper()}_WORKER"
"""Environment variable: number of a worker, how many there are, supervisor's process id, descriptors of its links."""
MOST = 64
"""Maximum number of workers."""
HEARTBEAT_S = 1.0
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
HANDLED = (*STOP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the supervisor handles."""


def become_supervisor(name: str, count: int, root: Path) -> NoReturn:
    """Replace this process by the supervisor of so many workers, which run the command of this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the supervisor handles them
    program = str(Path(__file__).with_name("__main__.py"))
    own = [sys.executable, *sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable, "-P", program, name, str(count), str(root), *own])  # noqa: S606 - no shell
