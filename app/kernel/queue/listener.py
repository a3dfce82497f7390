"""Hears what PostgreSQL notifies, on a connection of its own. Without it (behind a pooler), polling is what remains."""

import asyncio
from collections.abc import Callable

import psycopg
from loguru import logger

_AGAIN_S = 1.0


class Listener:
    """Calls `told` with each notification, and with an empty one whenever some may have been missed.

    They are `q` and the name of a queue with something to do, or `c` and the id of a job that is to be cancelled.
    """

    def __init__(self, conninfo: str, told: Callable[[str], None]) -> None:
        self._conninfo = conninfo
        self._told = told

    async def run(self) -> None:
        """Listen until cancelled; through outages, which it notices within seconds."""
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
                async with connection:
                    await connection.execute("LISTEN kernel_jobs")
                    self._told("")
                    async for notification in connection.notifies():
                        self._told(notification.payload)
            except psycopg.Error as error:
                logger.warning("listener: {}; trying again", " ".join(str(error).split()))
            await asyncio.sleep(_AGAIN_S)
