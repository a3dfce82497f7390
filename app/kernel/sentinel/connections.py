"""Measures the connections of all clients, also of other programs, to the server and to a PgBouncer before it."""

import asyncio
import time
from dataclasses import dataclass

import psycopg
from loguru import logger

from app.kernel.db import Database
from app.kernel.db.connection import Connection
from app.kernel.db.server import Server
from app.kernel.telemetry import metrics
from app.kernel.text import error_text

_EVERY_S = 15.0
_CONSOLE_S = 3.0
_REFUSED_S = 600.0

_USE = """
    SELECT (SELECT sum(numbackends)::int FROM pg_stat_database),
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0)
"""


@dataclass(slots=True)
class ConnectionWatch:
    """Records `db_server_connections` every 15 seconds."""

    db: Database
    server: Server
    due_at: float = 0.0
    console_at: float = 0.0

    async def measure(self) -> None:
        """Measure if it is due. Raises Unavailable."""
        if (now := time.monotonic()) < self.due_at:
            return
        self.due_at = now + _EVERY_S
        row = await self.db.one(_USE)
        assert row is not None
        metrics.server_connections(self.server.label, used=row[0], max=row[1])
        if self.server.is_pooled and now >= self.console_at:
            await self._measure_pooler(now)

    async def _measure_pooler(self, now: float) -> None:
        """Ask PgBouncer's console, if its `stats_users` has our role. Another pooler has none."""
        try:
            async with asyncio.timeout(_CONSOLE_S):
                connection = await Connection.connect(self.server.console_conninfo(), autocommit=True)
                async with connection:
                    items = dict(await (await connection.execute("SHOW LISTS")).fetchall())
                    found = await (await connection.execute("SHOW CONFIG")).fetchall()
                    pools = await (await connection.execute("SHOW POOLS")).fetchall()
        except TimeoutError:
            return
        except psycopg.Error as error:  # it has just served the pool, so it refuses
            level = "DEBUG" if self.console_at else "INFO"
            logger.log(level, "connections of PgBouncer are not measured: {}; see its stats_users", error_text(error))
            self.console_at = now + _REFUSED_S
            return
        config = {row[0]: row[1] for row in found}
        waiting = sum(int(row[3]) for row in pools)
        used, most = int(items["used_clients"]), int(config["max_client_conn"])
        metrics.server_connections(self.server.pool_label, used=used, max=most, waiting=waiting)
