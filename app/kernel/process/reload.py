"""Reloading on SIGHUP: reads again what may change while a process runs."""

import asyncio
from collections.abc import Awaitable, Callable

from loguru import logger

from app.kernel.config import Misconfigured
from app.kernel.errors import Refusal
from app.kernel.systemd.notify import Notifier
from app.kernel.text import error_text

Reload = Callable[[], Awaitable[str | None]]
"""Reloads one thing. Returns what it did, or None if nothing changed."""

_LIMIT_S = 10.0


class Reloads:
    """The callbacks of a process. Requests that arrive during a reload cause one more reload."""

    def __init__(self) -> None:
        self._callbacks: list[tuple[str, Reload]] = []
        self._requested = asyncio.Event()

    def add(self, name: str, callback: Reload) -> None:
        """Add a callback. Callbacks run in this order."""
        self._callbacks.append((name, callback))

    def request(self) -> None:
        """Request a reload. Safe to repeat."""
        self._requested.set()

    async def run(self, notify: Notifier) -> None:
        """Reload after each request, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            notify.reloading()
            await self._reload()
            notify.ready()

    async def _reload(self) -> None:
        """Run all callbacks, one after the other, and log what they did. Their errors are logged."""
        did_nothing = True
        for name, callback in self._callbacks:
            try:
                async with asyncio.timeout(_LIMIT_S):
                    done = await callback()
            except TimeoutError:
                did_nothing = False
                logger.error("reloading {} took longer than {:g} s and was cancelled", name, _LIMIT_S)
            except BaseException as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                did_nothing = False
                expected = isinstance(error, Misconfigured | Refusal | OSError)
                reason = str(error) if expected else error_text(error)
                logger.opt(exception=not expected).error("reloading {} failed: {}", name, reason)
            else:
                if done is not None:
                    did_nothing = False
                    logger.info("reloaded {}: {}", name, done)
        if did_nothing:
            logger.info("nothing to reload")
