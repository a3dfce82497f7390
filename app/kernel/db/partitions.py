"""Partitions by time: made ahead, detached without blocking readers, dropped by age."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import LiteralString, cast

import psycopg
from loguru import logger

from app.kernel.db.connection import Connection
from app.kernel.db.refusals import refusal_of
from app.kernel.db.retention import PARTITIONED, Partitions
from app.kernel.db.server import server
from app.kernel.errors import Unavailable
from app.kernel.process import Process

_TIMEOUTS = "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false)"
_STATEMENT_MS, _BUILD_WAIT_MS = 60_000, 60_000
_LOCK_MS, _TRIES, _PAUSE_S = 100, 50, 0.1
"""Whoever waits for a lock keeps others waiting: a step waits briefly, and often."""
_MOST_STEPS = 10_000
_LOCK = (1802661741, 1)


async def keep_partitions(connection: Connection, parent: str, keep_s: float | None) -> tuple[int, int]:
    """Bring the partitions of a table in order; return the numbers of those made and dropped. None keeps all.

    `kernel.partition_step` says what is next. Each step is a statement of its own: DETACH ... CONCURRENTLY cannot run
    in a transaction. Safe to repeat, also after a kill. Does nothing while another session does the same. Raises
    psycopg.Error: LockNotAvailable behind a transaction that has read the table for seconds; the next time goes on.
    """
    made = dropped = 0
    if not await _one(connection, "SELECT pg_try_advisory_lock(%s, %s)", *_LOCK):
        return made, dropped
    try:
        for _ in range(_MOST_STEPS):
            step = await _one(connection, "SELECT kernel.partition_step(%s, %s)", parent, keep_s)
            if step is None:
                break
            logger.debug("partitions of {}: {}", parent, step)
            await _patiently(connection, parent, keep_s, cast("LiteralString", step))  # it quotes the names
            made += step.startswith("SELECT kernel.make_partition(")
            dropped += step.startswith("DROP TABLE")
    finally:
        if not connection.closed:
            await connection.execute("SELECT pg_advisory_unlock(%s, %s)", _LOCK)
    return made, dropped


async def _patiently(connection: Connection, parent: str, keep_s: float | None, step: LiteralString) -> None:
    """Execute a step as soon as its locks are free. A detachment that was begun is for another step to finish."""
    builds = " INDEX CONCURRENTLY " in step  # may take long, and keeps nobody waiting while it waits
    timeouts = ("0", f"{_BUILD_WAIT_MS}") if builds else (f"{_STATEMENT_MS}", f"{_LOCK_MS}")
    for left in reversed(range(_TRIES)):
        try:
            await connection.execute(_TIMEOUTS, timeouts)
            await connection.execute(step)
        except psycopg.errors.LockNotAvailable:
            if await _one(connection, "SELECT kernel.partition_step(%s, %s)", parent, keep_s) != step:
                return
            if not left:
                raise
            await asyncio.sleep(_PAUSE_S)
        else:
            return


async def _one(connection: Connection, sql: LiteralString, *parameters: object) -> str | None:
    row = await (await connection.execute(sql, parameters)).fetchone()
    return row[0] if row else None


@dataclass(frozen=True, slots=True)
class PostgresPartitions:
    """The partitioned tables of the kernel, kept over a session with the server itself."""

    conninfo: Callable[[], str]

    async def keep(self, keep_s: dict[str, float]) -> tuple[int, int]:
        """Bring the partitions of all tables in order; return the numbers of those made and dropped.

        Raises Unavailable, also when a reader of many seconds is in the way of one of them; the others are then done.
        """
        made = dropped = 0
        failed: psycopg.Error | None = None
        try:
            async with await Connection.connect(self.conninfo(), autocommit=True) as connection:
                for parent in PARTITIONED:
                    try:
                        done = await keep_partitions(connection, parent, keep_s[parent])
                    except psycopg.errors.LockNotAvailable as error:
                        failed = error
                    else:
                        made, dropped = made + done[0], dropped + done[1]
        except psycopg.Error as error:
            raise (refusal_of(error) or error) from error
        if failed is not None:
            raise Unavailable("a transaction has been reading old partitions for long") from failed
        return made, dropped


@asynccontextmanager
async def partitions(p: Process) -> AsyncGenerator[Partitions]:
    """Provide the partitions."""
    found = await p.use(server)
    yield PostgresPartitions(lambda: found.conninfo(statement_timeout=_STATEMENT_MS))
