"""Shares something scarce fairly: those who wait are served in turns, group by group."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.kernel.errors import RateLimited, Unavailable

_AGAIN_S = 5


class Turns:
    """At most `at_once` work at a time, and no group of those who wait delays another one by its size.

    A group that begins to wait is served soon: in turns with those that were served before. When `most` work or wait,
    the longest line gives up its last place to a shorter one.
    """

    def __init__(self, at_once: int, most: int, most_of_group: int, longest_s: float) -> None:
        self._free = at_once
        self._room = most
        self._most_of_group = most_of_group
        self._longest_s = longest_s
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._fresh: deque[str] = deque()  # groups that were not served since they began to wait
        self._served: deque[str] = deque()
        self._fresh_first = True

    @asynccontextmanager
    async def turn(self, group: str = "") -> AsyncGenerator[None]:
        """Wait for a turn, which ends with the context. Without a name, a group has no bound of its own.

        Raises RateLimited when too many of the group wait, Unavailable when too many wait, or this one does too long.
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
            elif place.exception() is None:  # it was our turn at the same moment
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
            self._room += 1  # cancelled, and not left yet
        self._free += 1


def _too_many() -> Unavailable:
    return Unavailable("too many of these at once; try again later", retry_after_s=_AGAIN_S)
