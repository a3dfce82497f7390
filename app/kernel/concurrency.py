"""Deadlines, shared work, and fair queueing."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from app.kernel.errors import RateLimited, Unavailable

_AGAIN_S = 5


class Deadlines:
    """Deadlines of equal length, so that one timer of the loop serves all of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._pending: dict[Callable[[], None], float] = {}  # in order of expiry
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, expire: Callable[[], None]) -> None:
        """Call `expire` once at the deadline, unless `end` is called before."""
        loop = asyncio.get_running_loop()
        at = self._pending[expire] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(at, self._look, loop)

    def end(self, expire: Callable[[], None]) -> None:
        """Cancel the deadline. Safe to repeat."""
        self._pending.pop(expire, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._pending:
                expire, at = next(iter(self._pending.items()))
                if at > loop.time():
                    break
                del self._pending[expire]
                expire()
        finally:
            first = next(iter(self._pending.values()), None)
            self._timer = None if first is None else loop.call_at(first, self._look, loop)


class Shared:
    """Runs one call at a time; callers that arrive while it runs share its result or error.

    With a lock, each waiting caller would retry after a failure, and the last would wait for many timeouts.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._running: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Wait for the running call. It continues when the caller is cancelled."""
        if self._running is None:
            self._running = asyncio.ensure_future(self._work())
            self._running.add_done_callback(self._ended)
        await asyncio.shield(self._running)

    def _ended(self, running: "asyncio.Task[None]") -> None:
        self._running = None
        if not running.cancelled():
            running.exception()  # all callers may have been cancelled


class Turns:
    """Fair queueing: at most `at_once` holders at a time, and groups of waiters are served in turn.

    With `most` holders and waiters, a new waiter displaces the last one of the longest group.
    """

    def __init__(self, at_once: int, most: int, most_of_group: int, longest_s: float) -> None:
        self._free = at_once
        self._room = most
        self._most_of_group = most_of_group
        self._longest_s = longest_s
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._fresh: deque[str] = deque()  # groups that have not been served yet
        self._served: deque[str] = deque()
        self._fresh_first = True

    @asynccontextmanager
    async def turn(self, group: str = "") -> AsyncGenerator[None]:
        """Wait for a turn, which ends with the context. The group without a name has no limit of its own.

        Raises RateLimited when too many of the group wait, Unavailable when too many wait in total or on timeout.
        """
        if self._free and not self._lines:
            self._free -= 1
            self._room -= 1
        else:
            await self._wait(group)
        try:
            yield
        finally:
            self._end()

    async def _wait(self, group: str) -> None:
        waiting = len(self._lines.get(group, ()))
        if group and waiting >= self._most_of_group:
            raise RateLimited("too many of these at once from this address", retry_after_s=_AGAIN_S)
        if not self._room:
            self._make_room(waiting)
        place = self._join(group)
        try:
            async with asyncio.timeout(self._longest_s):
                await place
        except BaseException as error:
            if not place.done() or place.cancelled():
                self._leave(group, place)
            elif place.exception() is None:  # its turn came at the same moment
                self._end()
            if isinstance(error, TimeoutError):
                raise _too_many() from None
            raise

    def _join(self, group: str) -> asyncio.Future[None]:
        if group not in self._lines:
            self._lines[group] = deque()
            self._fresh.append(group)
        place = asyncio.get_running_loop().create_future()
        self._lines[group].append(place)
        self._room -= 1
        return place

    def _leave(self, group: str, place: asyncio.Future[None]) -> None:
        line = self._lines.get(group, ())
        if place not in line:
            return
        self._lines[group].remove(place)
        self._room += 1
        if not line:
            del self._lines[group]
            (self._fresh if group in self._fresh else self._served).remove(group)

    def _make_room(self, waiting: int) -> None:
        longest = max(self._lines, key=lambda group: len(self._lines[group]))
        if len(self._lines[longest]) <= waiting + 1:
            raise _too_many()
        last = self._lines[longest][-1]
        self._leave(longest, last)
        if not last.done():
            last.set_exception(_too_many())

    def _end(self) -> None:
        self._room += 1
        while self._lines:
            from_fresh = bool(self._fresh) and (self._fresh_first or not self._served)
            self._fresh_first = not from_fresh
            group = (self._fresh if from_fresh else self._served).popleft()
            place = self._lines[group].popleft()
            if self._lines[group]:
                self._served.append(group)
            else:
                del self._lines[group]
            if not place.done():
                place.set_result(None)
                return
            self._room += 1  # cancelled, but still in the queue
        self._free += 1


def _too_many() -> Unavailable:
    return Unavailable("too many of these at once; try again later", retry_after_s=_AGAIN_S)
