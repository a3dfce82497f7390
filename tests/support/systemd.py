"""The side of systemd in its notification protocol (sd_notify(3)): it starts, watches and restarts a service."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


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
