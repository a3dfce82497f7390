"""Calls back what takes too long, for next to nothing when it does not."""

import asyncio
from collections.abc import Callable


class Deadlines:
    """Deadlines that are all the same time after their beginning, so one timer of the loop does for all of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._pending: dict[Callable[[], None], float] = {}  # in the order of expiring
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, expire: Callable[[], None]) -> None:
        """Call `expire` once when the time is over, unless it ends before."""
        loop = asyncio.get_running_loop()
        at = self._pending[expire] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(at, self._look, loop)

    def end(self, expire: Callable[[], None]) -> None:
        """Do not call it any more. Safe to repeat."""
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
