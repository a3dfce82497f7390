"""Limits on connections and on memory for request bodies, and the log of refusals."""

import asyncio
import os
import resource
import time
from collections import Counter
from typing import TYPE_CHECKING

from loguru import logger

from app.kernel.errors import Unavailable
from app.kernel.telemetry import metrics

if TYPE_CHECKING:
    from app.kernel.http.connection import Connection

SPARES = 8
"""Connections beyond the limit. They serve the probes and answer 503 to everything else."""
LEAST_CONNECTIONS = 4
OPERATIONS_CONNECTIONS = 50
"""Maximum of the operations endpoint."""
_OTHER_FILES = 12
_LOG_INTERVAL_S = 10.0
_LIMITS = {
    "full": "the connection limit (http_server.max_connections, or the limit of open files)",
    "address": "the connection limit of one address (half of all; not for http_server.trusted_proxies)",
    "files": "the limit of open files",
    "body": "the limit of request bodies in memory",
    "tls": "failed TLS handshakes",
}


def most_connections(wanted: int, pool_size: int) -> int:
    """Return the wanted number of connections, or fewer if the limit of open files has no room for them."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    room = limit - len(os.listdir("/dev/fd")) - pool_size - _OTHER_FILES - SPARES  # noqa: PTH208 - not their paths
    if room < min(wanted, 100):
        room = max(room, LEAST_CONNECTIONS)
        logger.warning("the limit of open files ({}) leaves room for {} connections; raise it", limit, room)
    return min(wanted, room)


class Refusals:
    """Counts and logs refusals: the first one at once, then their number every ten seconds."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def note(self, reason: str) -> None:
        """Count a refusal: `full`, `address`, `files`, `body` or `tls`."""
        metrics.client_refused(reason)
        self._counts[reason] += 1
        if reason not in self._timers:
            self._log(reason)

    def _log(self, reason: str) -> None:
        self._timers.pop(reason, None)
        if count := self._counts.pop(reason, 0):
            logger.bind(reason=reason, count=count).warning("refused {} because of {}", count, _LIMITS[reason])
            self._timers[reason] = asyncio.get_running_loop().call_later(_LOG_INTERVAL_S, self._log, reason)

    def close(self) -> None:
        """Log the remaining counts."""
        for reason, timer in list(self._timers.items()):
            timer.cancel()
            self._log(reason)
        for timer in self._timers.values():
            timer.cancel()


class Bodies:
    """The bytes of request bodies in memory, in total and by address."""

    def __init__(self, most_bytes: int, refusals: Refusals) -> None:
        self._most = most_bytes
        self._refusals = refusals
        self._all = 0
        self._of: Counter[str] = Counter()

    def take(self, address: str, size: int) -> Unavailable | None:
        """Count bytes of a client; return a refusal above the limit. One client may use half of it."""
        if self._all + size > self._most or self._of[address] + size > self._most // 2:
            self._refusals.note("body")
            return Unavailable("there are too many request bodies at once")
        self._all += size
        self._of[address] += size
        return None

    def give(self, address: str, size: int) -> None:
        """Release bytes of a client."""
        self._all -= size
        self._of[address] -= size
        if not self._of[address]:
            del self._of[address]


class Waiting(dict["Connection", float]):
    """Connections in one state, and since when; the oldest first."""

    def begin(self, connection: "Connection") -> None:
        """Add a connection; its time starts now."""
        self.pop(connection, None)
        self[connection] = time.monotonic()

    def end(self, connection: "Connection") -> None:
        """Remove a connection. Safe to repeat."""
        self.pop(connection, None)

    def first(self, least_s: float, address: str | None) -> "Connection | None":
        """Return the oldest connection, of an address or of all, if it has waited at least `least_s`."""
        latest = time.monotonic() - least_s
        for connection, since in self.items():
            if since > latest:
                break
            if address is None or connection.address == address:
                return connection
        return None

    def since(self, seconds: float) -> "list[Connection]":
        """Return the connections that have waited for `seconds`."""
        latest = time.monotonic() - seconds
        return [connection for connection, since in self.items() if since <= latest]

    def expire(self, seconds: float) -> None:
        """Remove and expire the connections that have waited for `seconds`."""
        for connection in self.since(seconds):
            self.end(connection)
            connection.expire()
