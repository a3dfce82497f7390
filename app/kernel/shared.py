"""Work that many want at the same time, done once for all of them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Shared:
    """Does one thing at a time: whoever asks while it is under way gets its result, or its error, too.

    With a lock each would begin anew after the one before has failed, and a queue of them wait for many timeouts.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._running: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Wait until it is done. It goes on when whoever asked is cancelled."""
        if self._running is None:
            self._running = asyncio.ensure_future(self._work())
            self._running.add_done_callback(self._ended)
        await asyncio.shield(self._running)

    def _ended(self, running: "asyncio.Task[None]") -> None:
        self._running = None
        if not running.cancelled():
            running.exception()  # nobody may be left to hear of it
