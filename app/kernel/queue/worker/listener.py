"""Hears what PostgreSQL notifies, on a connection of its own. Without it (behind a pooler), polling is what remains."""

import asyncio
from collections.abc import Callable
from typing import LiteralString

import psycopg
from loguru import logger

from app.kernel.db.connection import Connection

_AGAIN_S = 1.0
_QUIET_S = 10.0  # then it asks for a sign of life: a network may have dropped the connection without a word
_ANSWER_S = 2.0


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
                connection = await Connection.connect(self._conninfo, autocommit=True)
                async with connection:
                    await self._answered(connection, "LISTEN kernel_jobs")
                    self._told("")
                    while True:
                        async for notification in connection.notifies(timeout=_QUIET_S):
                            self._told(notification.payload)
                        await self._answered(connection, "SELECT 1")
            except psycopg.Error as error:
                logger.warning("listener: {}; trying again", " ".join(str(error).split()))
            await asyncio.sleep(_AGAIN_S)

    @staticmethod
    async def _answered(connection: Connection, statement: LiteralString) -> None:
        """Run a statement; hang up on a server that does not answer."""
        mute = asyncio.get_running_loop().call_later(_ANSWER_S, connection.hang_up)
        try:
            await connection.execute(statement)
        finally:
            mute.cancel()
