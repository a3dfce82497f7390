"""Signals to a process that has not begun yet, or has ended: nothing is open then, so asking it to stop ends it."""

import faulthandler
import os
import signal
import sys

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def end_at_once(status: int) -> None:
    """Let signals that stop end this process with a status, without cleaning up. Safe to repeat."""
    for number in _STOP:
        # no exception: raised in an import, it would be lost, or taken for an error of what is imported
        signal.signal(number, lambda _number, _frame: os._exit(status))


def heed_while_loading() -> None:
    """Answer signals as documented from the first moment on: loading what a process needs takes longer than one."""
    end_at_once(0)
    for number in (signal.SIGHUP, signal.SIGUSR1):  # what rotates logs signals a process that only starts, too
        signal.signal(number, lambda _number, _frame: None)
    if sys.stdout.isatty():
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    faulthandler.register(signal.SIGUSR2, file=2)
