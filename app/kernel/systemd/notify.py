"""The notification protocol of systemd: sd_notify(3), without its library.

A message is a datagram of `NAME=value` lines to the socket that NOTIFY_SOCKET names. Without one, nothing is sent.
"""

import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping

_WAITING = 16  # messages; systemd was not reading


class Notifier:
    """Notifies systemd of the state of the process. Never blocks, never raises: a missing socket is ignored."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """`address` is a path, or an abstract name that begins with `@`. `watchdog_s` is 0 without a watchdog."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque(maxlen=_WAITING)
        self._status = ""

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> "Notifier":
        """Return the notifier that the environment describes, and remove it from there, because children inherit it."""
        address = environment.pop("NOTIFY_SOCKET", "")
        period, owner = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        is_ours = owner in ("", str(os.getpid()))
        return cls(address, int(period) / 1e6 if is_ours and period.isascii() and period.isdigit() else 0.0)

    @property
    def is_on(self) -> bool:
        """Whether systemd asked to be notified."""
        return bool(self._address)

    def ready(self) -> None:
        """Notify that start-up or a reload is complete."""
        self._tell("READY=1", "ready")

    def reloading(self) -> None:
        """Notify that a reload begins; `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", "reloading")

    def stopping(self, within_s: float) -> None:
        """Notify that the process stops, and of the time that it may take."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}", "draining")

    def extend(self, seconds: float) -> None:
        """Ask for more time to start or to stop."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """Set the text that `systemctl status` shows. Sends nothing if it has not changed."""
        text = " ".join(text.split())  # a line break would end the field
        if text != self._status and self._flush() and self._send(f"STATUS={text}".encode(errors="replace")):
            self._status = text

    def ping(self) -> None:
        """Reset the watchdog."""
        self._flush()
        self._send(b"WATCHDOG=1")

    def close(self) -> None:
        """Close the socket. Safe to repeat; a later message opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, message: str, status: str = "") -> None:
        """Send a message now or, if systemd is not reading, before the next one."""
        if not self._address:
            return
        if status:
            message, self._status = f"{message}\nSTATUS={status}", status
        self._waiting.append(message.encode())
        self._flush()

    def _flush(self) -> bool:
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()
        return not self._waiting

    def _send(self, message: bytes) -> bool:
        if not self._address:
            return False
        try:
            if self._socket is None:  # kept, because there may be no free file when it is needed
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(message, self._address)
        except (OSError, ValueError):
            return False
        return True
