"""A pool of connections for one event loop; every wait has a timeout.

Requests that time out leave the queue, so an outage leaves no backlog. While the database is unavailable and requests
wait, one attempt to connect is made at a time; the first success ends the outage. An unanswered attempt continues,
because a frozen or slow server answers late; short attempts are made in parallel, because packets may be lost.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from loguru import logger

from app.kernel.db.connection import Connection
from app.kernel.db.refusals import DatabaseUnavailable, away
from app.kernel.errors import Unavailable

_AGAIN_S = 0.25  # between attempts to connect while the database is unavailable
_OVERDUE_S = 1.5
_PATIENCE_S = 12.0
_OPENING_AT_ONCE = 4
_STUCK_S = 1.0
_IDLE_S = 600.0
_LIFE_S = 3600.0


class PoolUse(NamedTuple):
    """State of a pool: connections in use and idle, waiting requests, maximum size."""

    used: int
    idle: int
    waiting: int
    most: int


class Pool:
    """A pool that opens connections on demand. A connection serves one request at a time.

    It has at most `size` connections, and one more while a request waits and none was returned for a second: when the
    network silently drops connections, all of them are in use until their statements time out.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        size: int,
        queue: int,
        level: str = "WARNING",
        name: str = "database",
    ) -> None:
        """`queue` is the maximum number of waiting requests, `level` the log level of an outage of `name`."""
        self._connect = connect
        self._size = size
        self._queue = queue
        self._level = level
        self._name = name
        self._idle: list[Connection] = []  # last in, first out
        self._waiting: OrderedDict[asyncio.Future[Connection], None] = OrderedDict()
        self._lent = 0
        self._openers: set[asyncio.Task[None]] = set()
        self._overdue: set[asyncio.Task[None]] = set()
        self._trouble: Unavailable | None = None
        self._progress_at = time.monotonic()
        self._generation = 0
        self._closed = False

    def take_idle(self) -> Connection | None:
        """Check the last used idle connection out, or return None."""
        if not self._idle:
            return None
        self._lent += 1
        return self._idle.pop()

    async def take(self, wait_s: float, *, urgent: bool = False) -> Connection:
        """Check a connection out; `urgent` requests are served first. Raises Unavailable."""
        if (idle := self.take_idle()) is not None:
            return idle
        if self._closed:
            raise _closed()
        if len(self._waiting) >= self._queue and not urgent:
            why = self._trouble or DatabaseUnavailable("too many requests are waiting for a database connection")
            raise Unavailable(str(why), why.retry_after_s, hint=why.hint)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection] = loop.create_future()
        self._waiting[waiter] = None
        if urgent:
            self._waiting.move_to_end(waiter, last=False)
        self._open_more()
        expires = loop.call_later(wait_s, self._expire, waiter)
        stuck = loop.call_later(_STUCK_S, lambda: self._open_more(stuck=True))
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back(waiter.result())  # cancelled and served at the same moment
            raise
        finally:
            expires.cancel()
            stuck.cancel()
            self._waiting.pop(waiter, None)

    def give_back(self, connection: Connection) -> None:
        """Return a connection to the pool; it is closed if it is not reusable."""
        now = connection.idle_since = self._progress_at = time.monotonic()
        self._lent -= 1
        worn = connection.opened_in != self._generation or connection.retire_at < now
        surplus = bool(self._idle) and self._lent + len(self._idle) >= self._size
        if self._closed or worn or surplus or not connection.reusable():
            connection.drop()
            self._open_more()
            return
        self._offer(connection)
        while self._idle and self._idle[0].idle_since < now - _IDLE_S:
            self._idle.pop(0).drop()

    def renew(self) -> None:
        """Close idle connections at once, and connections in use when they are returned."""
        self._generation += 1
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close idle connections, because one did not answer."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.drop()

    def use(self) -> PoolUse:
        """Return the current state of the pool."""
        return PoolUse(self._lent, len(self._idle), len(self._waiting), self._size)

    async def close(self) -> None:
        """Refuse waiting requests; close connections, those in use when they are returned. Safe to repeat."""
        self._closed = True
        for waiter in list(self._waiting):
            self._refuse(waiter, _closed())
        openers = set(self._openers)
        for opener in openers:
            opener.cancel()
        if openers:
            await asyncio.wait(openers, timeout=1)
        self.drop_idle()

    def _open_more(self, *, stuck: bool = False) -> None:
        """Open connections for waiting requests, within the limits."""
        spare = stuck and time.monotonic() - self._progress_at >= _STUCK_S
        room = self._size + spare - self._lent - len(self._idle)
        at_once = 1 if self._trouble else _OPENING_AT_ONCE
        wanted = min(len(self._waiting), room, at_once) - len(self._openers - self._overdue)
        for _ in range(0 if self._closed else wanted):
            opener = asyncio.ensure_future(self._open(_OVERDUE_S if self._overdue else _PATIENCE_S))
            self._openers.add(opener)
            opener.add_done_callback(self._opened)
            if not self._overdue:
                asyncio.get_running_loop().call_later(_OVERDUE_S, self._is_overdue, opener)

    def _is_overdue(self, opener: "asyncio.Task[None]") -> None:
        if opener in self._openers:
            self._overdue.add(opener)
            self._failed(away())
            self._open_more()

    async def _open(self, patience_s: float) -> None:
        """Open one connection; after a failure, wait before the next attempt."""
        generation, started = self._generation, time.monotonic()
        try:
            async with asyncio.timeout(patience_s):
                connection = await self._connect()
        except Exception as error:  # noqa: BLE001 - the next attempt may succeed
            self._failed(error)
            await asyncio.sleep(_AGAIN_S - (time.monotonic() - started))
            return
        if self._trouble is not None:
            logger.log("INFO" if self._level == "WARNING" else self._level, "{}: it is available again", self._name)
        self._trouble = None
        if self._lent + len(self._idle) > self._size:  # another attempt was faster
            connection.drop()
            return
        connection.opened_in = generation
        connection.retire_at = time.monotonic() + _LIFE_S * random.uniform(0.9, 1.1)  # noqa: S311 - not all at once
        self._lent += 1
        self.give_back(connection)

    def _failed(self, error: Exception) -> None:
        if self._trouble is None:
            logger.log(self._level, "{}: {}; retrying while requests wait", self._name, error.__cause__ or error)
        self._trouble = error if isinstance(error, Unavailable) else away()

    def _opened(self, opener: "asyncio.Task[None]") -> None:
        self._openers.discard(opener)
        self._overdue.discard(opener)
        self._open_more()

    def _offer(self, connection: Connection) -> None:
        """Pass a connection to the first waiter, or keep it idle."""
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                self._lent += 1
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    def _expire(self, waiter: "asyncio.Future[Connection]") -> None:
        busy = DatabaseUnavailable("no database connection became free in time", retry_after_s=2)
        self._refuse(waiter, busy if self._lent else self._trouble or away())

    def _refuse(self, waiter: "asyncio.Future[Connection]", why: Unavailable) -> None:
        self._waiting.pop(waiter, None)
        if not waiter.done():
            waiter.set_exception(Unavailable(str(why), why.retry_after_s, hint=why.hint))


def _closed() -> Unavailable:
    return Unavailable("this process is stopping; its database connections are closed")
