"""Listens for notifications of PostgreSQL on its own connection, which leads round a pooler."""

import asyncio
from collections.abc import Callable
from typing import LiteralString

import psycopg
from loguru import logger

from app.kernel.db.connection import Connection

_AGAIN_S = 1.0
_QUIET_S = 10.0  # then it checks the connection, which a network may have dropped silently
_ANSWER_S = 2.0


class Listener:
    """Calls `notified` with each notification, and with an empty one if some may have been missed.

    A notification is `q` and the name of a queue with ready jobs, or `c` and the id of a job to cancel.
    """

    def __init__(self, conninfo: Callable[[], str], notified: Callable[[str], None]) -> None:
        self._conninfo = conninfo
        self._notified = notified

    async def run(self) -> None:
        """Listen until cancelled. Reconnects after an outage, which it detects within seconds."""
        while True:
            try:
                connection = await Connection.connect(self._conninfo(), autocommit=True)
                async with connection:
                    await self._answered(connection, "LISTEN kernel_jobs")
                    self._notified("")
                    while True:
                        async for notification in connection.notifies(timeout=_QUIET_S):
                            self._notified(notification.payload)
                        await self._answered(connection, "SELECT 1")
            except psycopg.Error as error:
                logger.warning("listener: {}; trying again", " ".join(str(error).split()))
            await asyncio.sleep(_AGAIN_S)

    @staticmethod
    async def _answered(connection: Connection, statement: LiteralString) -> None:
        """Run a statement; close the connection if the server does not answer."""
        mute = asyncio.get_running_loop().call_later(_ANSWER_S, connection.hang_up)
        try:
            await connection.execute(statement)
        finally:
            mute.cancel()
