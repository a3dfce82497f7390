"""Notifications after commits.

PostgreSQL commits transactions that notify one after the other, each with its wait for the disk. What may be lost with
this process, such as a call that wakes workers, is therefore notified after the commit, for many commits at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import psycopg
from loguru import logger

from app.kernel.errors import Refusal

_FOLD_S = 0.002
_LAST_S = 2.0

NOTIFY = """
    SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, payload)
    FROM unnest(%(channels)s::text[], %(payloads)s::text[]) AS n (channel, payload)
"""


class Notifier:
    """Sends notifications soon, equal ones once. At most one statement is in progress."""

    def __init__(self, send: Callable[[list[str], list[str]], Awaitable[object]]) -> None:
        """`send` is given channels and payloads."""
        self._send = send
        self._pending: dict[tuple[str, str], None] = {}
        self._sending: asyncio.Task[None] | None = None

    def add(self, notifications: Iterable[tuple[str, str]]) -> None:
        """Send channels and payloads soon."""
        self._pending.update(dict.fromkeys(notifications))
        if self._sending is None:
            self._sending = asyncio.ensure_future(self._work())

    async def sent(self) -> None:
        """Wait until everything is sent, for two seconds at most."""
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=_LAST_S)

    async def _work(self) -> None:
        try:
            while self._pending:
                pending, self._pending = self._pending, {}
                channels, payloads = zip(*pending, strict=True)
                try:
                    await self._send(list(channels), list(payloads))
                except (Refusal, psycopg.Error) as error:  # workers find the jobs when they poll
                    logger.debug("{} notifications are lost: {}", len(pending), error)
                await asyncio.sleep(_FOLD_S)
        finally:
            self._sending = None
