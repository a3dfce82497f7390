"""Reads on replicas of the database: streaming standbys that lag only a little (ADR 41).

The position of the primary in its WAL is measured every second, and what each replica has replayed. A replica is as
stale as the last measurement whose position it has replayed is old, so an idle primary causes no lag, and no clock but
that of this process is used.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, LiteralString, TypeVar

import psycopg
from loguru import logger

from app.kernel.cache import Invalidations, invalidate
from app.kernel.config import PostgresSettings
from app.kernel.db import Database, Parameters, Queries, Row, Transaction
from app.kernel.db.pool import Pool
from app.kernel.db.postgres import PostgresDatabase, database
from app.kernel.db.server import server
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.telemetry import metrics
from app.kernel.text import error_text

T = TypeVar("T")

_EVERY_S = 1.0
_SAMPLES = 1000
_WAIT_S = 0.5  # for a connection to a replica; then the primary is asked
_MOST_WRITERS = 100_000
_TOPIC = "replicas"
_EVERYBODY = ""
_PRIMARY = "it is the primary"

WRITTEN = "SELECT (pg_current_wal_lsn() - '0/0')::bigint, system_identifier FROM pg_control_system()"
REPLAYED = """
    SELECT CASE WHEN pg_is_in_recovery() THEN (pg_last_wal_replay_lsn() - '0/0')::bigint END, system_identifier
    FROM pg_control_system()
"""


class Replica:
    """A replica: what it has replayed, how old that is, and why it is not used."""

    def __init__(self, label: str, db: Database, most_lag_s: float) -> None:
        self.label = label
        self.db = db
        self.replayed = 0
        self._most_lag_s = most_lag_s
        self._measured_at = self._current_at = time.monotonic()
        self._trouble = "it has not been measured yet"
        self._was_used: bool | None = None

    @property
    def lag_s(self) -> float:
        """How old its data may be, in seconds."""
        return time.monotonic() - self._current_at

    @property
    def trouble(self) -> str:
        """Why it is not used; empty if it is."""
        if self._trouble:
            return self._trouble
        return f"it lags by {self.lag_s:.0f} s" if self.lag_s > self._most_lag_s else ""

    @property
    def is_at_rest(self) -> bool:
        """Whether it is the primary now, so nothing is wrong."""
        return self._trouble == _PRIMARY

    def failed(self, why: str) -> None:
        """Leave it out until it is measured again."""
        self._trouble = why
        self._report()

    def has_replayed(self, position: int, samples: Sequence[tuple[float, int]]) -> None:
        """Record what it has replayed. `samples` are earlier positions of the primary, and when it was asked."""
        if samples and self._measured_at < samples[-1][0] and self.replayed > samples[-1][1]:
            self.failed("it is ahead of the primary, so it follows another one")
            return
        self.replayed, self._measured_at = position, time.monotonic()
        self._current_at = max((at for at, written in samples if written <= position), default=self._current_at)
        self._trouble = ""
        self._report()

    def _report(self) -> None:
        why = self.trouble
        if self._was_used is not (not why):
            self._was_used = not why
            state = f"left out: {why}" if why else "used"
            level = "WARNING" if why and not self.is_at_rest else "INFO"
            logger.log(level, "replica {} is {}", self.label, state)
        if self.is_at_rest:
            metrics.replica_at_rest(self.label)
        else:
            metrics.replica_measured(self.label, self.lag_s, is_used=not why)


class PostgresReplicas:
    """The replicas of the database. Whoever has changed something reads only where that is visible."""

    def __init__(
        self,
        primary: Database,
        replicas: Sequence[Replica],
        invalidations: Invalidations,
        most_lag_s: float,
        primary_label: Callable[[], str],
    ) -> None:
        """Run `watch` for as long as they are used."""
        self._primary_label = primary_label
        self._primary = primary
        self._replicas = replicas
        self._invalidations = invalidations
        self._most_lag_s = most_lag_s
        self._turn = count()
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._system: object = None
        self._writers: dict[str, tuple[float, float]] = {}
        """Who has written, the position that a replica must have replayed (infinite until it is known), and when."""
        invalidations.subscribe(_TOPIC, self._written)

    def reading(self, who: str) -> Database:
        """Return where to run the statements of a read: a replica, or the primary if none is fit."""
        if self._invalidations.is_live:
            least = max(self._writers.get(key, (0, 0))[0] for key in (who, _EVERYBODY))
            fit = [each for each in self._replicas if each.replayed >= least and not each.trouble]
            if fit:
                return _Reads(fit[next(self._turn) % len(fit)], self._primary)
        metrics.replica_read("none", "primary")
        return self._primary

    async def wrote(self, db: Queries, who: str) -> None:
        """Let this caller read what a transaction writes, in every process, as soon as it has committed."""
        if who:
            await invalidate(db, _TOPIC, [who])

    @property
    def trouble(self) -> str:
        """The replicas that are not used, with the reasons; empty if all are."""
        wrong = [each for each in self._replicas if each.trouble and not each.is_at_rest]
        return "; ".join(f"{each.label}: {each.trouble}" for each in wrong)

    def _written(self, writers: frozenset[str] | None) -> None:
        if writers is None or len(self._writers) >= _MOST_WRITERS:
            writers = frozenset({_EVERYBODY})
        for who in writers:
            self._writers[who] = math.inf, time.monotonic()

    async def watch(self) -> None:
        """Measure until cancelled."""
        await self._measure_primary()
        async with asyncio.TaskGroup() as group:
            group.create_task(_repeat(self._measure_primary))
            for replica in self._replicas:
                group.create_task(_repeat(partial(self._measure, replica)))

    async def _measure_primary(self) -> None:
        asked_at = time.monotonic()
        try:
            row = await self._primary.one(WRITTEN)
        except (Unavailable, psycopg.Error):
            return  # the database reports it; without measurements, replicas grow stale
        assert row is not None
        written, system = int(row[0]), row[1]
        if system != self._system or (self._samples and written < self._samples[-1][1]):  # another primary
            self._samples.clear()
            self._system = system
            self._written(None)
        self._samples.append((asked_at, written))
        oldest = asked_at - self._most_lag_s - _EVERY_S  # every replica in use has replayed what is older
        self._writers = {
            who: (written if position == math.inf and at < asked_at else position, at)
            for who, (position, at) in self._writers.items()
            if at >= oldest or position == math.inf
        }

    async def _measure(self, replica: Replica) -> None:
        try:
            row = await replica.db.one(REPLAYED)
        except (Unavailable, psycopg.Error) as error:
            replica.failed(error_text(error.__cause__ or error))
            return
        assert row is not None
        if row[0] is None and replica.label == self._primary_label():
            replica.failed(_PRIMARY)
        elif row[0] is None:
            replica.failed("it is no standby: it was promoted, or copied")
        elif self._system is None:
            replica.failed("the primary does not answer")
        elif row[1] != self._system:
            replica.failed("it is no copy of the primary")
        else:
            replica.has_replayed(int(row[0]), self._samples)


async def _repeat(measure: Callable[[], Awaitable[None]]) -> None:
    while True:
        await measure()
        await asyncio.sleep(_EVERY_S)


class _Reads:
    """The statements of one read, on a replica. After an error there it continues on the primary.

    Such as a conflict with recovery (40001), a schema that was not replayed yet, or a lost connection.
    """

    def __init__(self, replica: Replica, primary: Database) -> None:
        self._replica: Replica | None = replica
        self._primary = primary

    async def _run(self, work: Callable[[Database], Awaitable[T]]) -> T:
        if (replica := self._replica) is None:
            return await work(self._primary)
        try:
            result = await work(replica.db)
        except (Unavailable, psycopg.Error) as error:
            self._replica = None
            cause = error.__cause__ or error
            if getattr(cause, "sqlstate", None) is None:
                replica.failed(error_text(cause))
            logger.debug("replica {}: {}; reading from the primary", replica.label, error_text(cause))
            metrics.replica_read(replica.label, "repeated")
            return await work(self._primary)
        metrics.replica_read(replica.label, "done")
        return result

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row | None:
        return await self._run(lambda db: db.one(sql, parameters))

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        return await self._run(lambda db: db.all(sql, parameters))

    async def run(self, sql: LiteralString, parameters: Parameters = ()) -> int:
        return await self._primary.run(sql, parameters)

    async def copy(self, sql: LiteralString, rows: Iterable[Sequence[Any]]) -> None:
        await self._primary.copy(sql, rows)

    def begin(self) -> AbstractAsyncContextManager[Transaction]:
        return self._primary.begin()


@asynccontextmanager
async def replicas(p: Process, invalidations: Invalidations) -> AsyncGenerator[PostgresReplicas]:
    """Provide the replicas of the settings. Does not wait for them. Raises as `database` does."""
    settings = p.settings[PostgresSettings]
    primary, found = await p.use(database), await p.use(server)
    timeouts = {"statement_timeout": round(settings.statement_timeout * 1000)}
    sizes = {"size": settings.pool_size, "queue": settings.pool_queue}
    limits = min(_WAIT_S, settings.pool_timeout), settings.statement_timeout
    pools = {
        label: Pool(partial(found.open_reading, label, **timeouts), **sizes, level="DEBUG", name=f"replica {label}")
        for label in found.replica_labels
    }
    made = [
        Replica(label, PostgresDatabase(pool, *limits, p.constraints), settings.replica_max_lag)
        for label, pool in pools.items()
    ]
    opened = PostgresReplicas(primary, made, invalidations, settings.replica_max_lag, lambda: found.primary)
    p.degraded["replicas"] = lambda: opened.trouble
    watching = asyncio.ensure_future(opened.watch())
    try:
        yield opened
    finally:
        p.degraded.pop("replicas")
        while not watching.done():  # psycopg may lose a cancellation
            watching.cancel()
            await asyncio.wait({watching}, timeout=1)
        for pool in pools.values():
            await pool.close()
