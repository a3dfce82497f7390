"""The side of systemd in its notification protocol (sd_notify(3)): it starts, watches and restarts a service."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.support.project import Running


@dataclass
class Inbox:
    """A notification socket, and the fields that it was sent with their times of arrival."""

    address: str
    sock: socket.socket
    received: list[tuple[float, str, str]] = field(default_factory=list)

    def wait(self, field_name: str, value: str = "", seconds: float = 20, *, after: int = 0) -> str:
        """Return the value of the first field of this name after some fields, and containing a text."""
        deadline = time.monotonic() + seconds
        while True:
            for _, name, sent in self.received[after:]:
                if name == field_name and value in sent:
                    return sent
            left = deadline - time.monotonic()
            assert left > 0, f"no {field_name}={value} within {seconds} s; got {self.fields()}"
            self.read(left)

    def read(self, seconds: float) -> bool:
        """Read one message if one comes in time."""
        self.sock.settimeout(max(seconds, 0.001))
        try:
            message = self.sock.recv(65536).decode()
        except TimeoutError:
            return False
        now = time.monotonic()
        self.received += [(now, *line.partition("=")[::2]) for line in message.split("\n")]
        return True

    def fields(self) -> list[str]:
        """Return what was received so far, as `NAME=value`."""
        while self.read(0):
            pass
        return [f"{name}={value}" for _, name, value in self.received]


@contextmanager
def inbox(address: str) -> Iterator[Inbox]:
    """Open a notification socket: a path, or an abstract name that begins with `@`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        try:
            yield Inbox(address, sock)
        finally:
            if not address.startswith("@"):
                Path(address).unlink(missing_ok=True)


@dataclass
class Unit:
    """A service with `Type=notify`, `WatchdogSec` and `Restart=on-failure`."""

    start: Callable[[dict[str, str]], Running]
    inbox: Inbox
    watchdog_s: float
    ended: list[int] = field(default_factory=list)
    """The exit statuses of the processes that were restarted."""
    gaps: list[float] = field(default_factory=list)
    """Times between pings."""

    def __post_init__(self) -> None:
        self.process = self._started()

    def _started(self) -> Running:
        self._from = len(self.inbox.received)
        return self.start({"NOTIFY_SOCKET": self.inbox.address, "WATCHDOG_USEC": str(int(self.watchdog_s * 1e6))})

    def wait_until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Watch the service, as systemd does, until a condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.inbox.fields()[self._from :]} {self.process.said()}"
            self.inbox.read(0.05)
            self._watch()

    def is_ready(self) -> bool:
        """Return whether the present process has reported that it is ready."""
        return any(name == "READY" for _, name, _ in self.inbox.received[self._from :])

    def _watch(self) -> None:
        received = self.inbox.received[self._from :]
        ready = next((at for at, name, _ in received if name == "READY"), None)
        if ready is not None:
            fed = [ready, *(at for at, name, _ in received if name == "WATCHDOG" and at > ready)]
            self.gaps = [after - before for before, after in pairwise(fed)]
            if time.monotonic() - fed[-1] > self.watchdog_s:
                self.process.signal(signal.SIGABRT)
                self.process.wait(10)
        if self.process.popen.poll() is not None:
            self.ended.append(self.process.popen.returncode)
            self.process = self._started()
