"""Signal handling before start-up and after shutdown, when nothing is open and a stop signal ends the process."""

import faulthandler
import os
import signal
import sys

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def end_at_once(status: int) -> None:
    """Exit with a status on stop signals, without cleanup. Safe to repeat."""
    for number in _STOP:
        # not an exception, which an import could swallow
        signal.signal(number, lambda _number, _frame: os._exit(status))


def heed_while_loading() -> None:
    """Handle signals as documented while the process loads."""
    end_at_once(0)
    for number in (signal.SIGHUP, signal.SIGUSR1):  # log rotation may also signal a starting process
        signal.signal(number, lambda _number, _frame: None)
    if sys.stdout.isatty():
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    faulthandler.register(signal.SIGUSR2, file=2)
    faulthandler.enable(file=2)  # SIGABRT, from systemd's watchdog, prints where the process hangs
