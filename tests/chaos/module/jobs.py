"""Handlers that keep account of themselves: of their effects in the database, of their runs in a journal.

The journal is a file of each worker. What is written there stays when the worker is killed or the database is away.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, LiteralString

from app.kernel.actions import Database, Transaction, subscriber, task
from app.kernel.db import Queries
from app.kernel.process import Process
from app.kernel.queue import Schedule, Task

LIMIT = 2
SCHEDULE_COUNT = 50


@dataclass(frozen=True, slots=True)
class Work:
    """`number` tells jobs of one kind apart; of one key, numbers rise in the order of enqueueing."""

    number: int
    key: str = ""
    for_ms: int = 0


@dataclass(frozen=True, slots=True)
class Happened:
    """Something has happened."""

    event_type: ClassVar[str] = "chaos.happened"

    number: int


PLAIN = Task("chaos.plain", Work, max_attempts=1000)
TX = Task("chaos.tx", Work, max_attempts=1000)
GROUP = Task("chaos.group", Work, max_attempts=1000)
LIMITED = Task("chaos.limited", Work, max_attempts=1000, concurrency=LIMIT)
NARROW = Task("chaos.narrow", Work, max_attempts=1000, queue="narrow")
GATED = Task("chaos.gated", Work)
GATED_TX = Task("chaos.gated_tx", Work)
FLAKY = Task("chaos.flaky", Work)
TICK = Task[None]("chaos.tick", max_attempts=1000)

SCHEDULES = [Schedule(TICK, every_s=1, misfire="all", name=f"chaos.tick_{n:02}") for n in range(SCHEDULE_COUNT)]

_EFFECT: LiteralString = """
    INSERT INTO chaos.effects (kind, key, number, before, worker)
    SELECT %(kind)s, %(key)s, %(number)s, max(number), %(worker)s
    FROM chaos.effects WHERE kind = %(kind)s AND key = %(key)s
"""


async def _leave_effect(db: Queries, kind: str, number: int, key: str = "") -> None:
    """Insert an effect, with the highest number of its key that is there already."""
    await db.run(_EFFECT, {"kind": kind, "key": key, "number": number, "worker": os.getpid()})


class Journal:
    """What a worker has begun and ended; beside it the gate, at which jobs wait while it exists."""

    def __init__(self, folder: Path) -> None:
        self._gate = folder / "gate"
        self._file = os.open(folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _write(self, *entry: object) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")

    @contextmanager
    def run(self, kind: str, number: int, key: str = "") -> Iterator[None]:
        self._write(time.monotonic(), "began", kind, key, number)
        ended = "failed"
        try:
            yield
            ended = "ended"
        finally:
            self._write(time.monotonic(), ended, kind, key, number)

    async def wait_at_gate(self) -> None:
        while self._gate.exists():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def journal(p: Process) -> AsyncGenerator[Journal]:
    """Provide the journal of this worker."""
    yield Journal(Path(os.environ["CHAOS_JOURNAL"]))


PROVIDERS = {Journal: journal}


@dataclass(frozen=True, slots=True)
class Handlers:
    """Handlers that keep account of themselves."""

    journal: Journal

    @task(PLAIN)
    async def plain(self, db: Database, work: Work) -> None:
        await self._at_least_once(db, PLAIN.name, work)

    @task(LIMITED)
    async def limited(self, db: Database, work: Work) -> None:
        await self._at_least_once(db, LIMITED.name, work)

    @task(NARROW)
    async def narrow(self, db: Database, work: Work) -> None:
        await self._at_least_once(db, NARROW.name, work)

    @task(TX)
    async def tx(self, tx: Transaction, work: Work) -> None:
        await self._once(tx, TX.name, work)

    @task(GROUP)
    async def group(self, tx: Transaction, work: Work) -> None:
        await self._once(tx, GROUP.name, work)

    @task(GATED)
    async def gated(self, db: Database, work: Work) -> None:
        with self.journal.run(GATED.name, work.number):
            await self.journal.wait_at_gate()
            await _leave_effect(db, GATED.name, work.number)

    @task(GATED_TX)
    async def gated_tx(self, tx: Transaction, work: Work) -> None:
        with self.journal.run(GATED_TX.name, work.number):
            await _leave_effect(tx, GATED_TX.name, work.number)
            await self.journal.wait_at_gate()

    @task(FLAKY)
    async def flaky(self, db: Database, work: Work) -> None:
        """Fail the first time."""
        await _leave_effect(db, FLAKY.name, work.number)
        done = "SELECT count(*) FROM chaos.effects WHERE kind = %s AND number = %s"
        if await db.one(done, (FLAKY.name, work.number)) == (1,):
            raise RuntimeError("the first time")

    @task(TICK)
    async def tick(self, tx: Transaction) -> None:
        await _leave_effect(tx, TICK.name, 0)

    @subscriber("chaos.told", Happened, max_attempts=1000)
    async def told(self, db: Database, event: Happened) -> None:
        with self.journal.run("chaos.told", event.number):
            await _leave_effect(db, "chaos.told", event.number)

    @subscriber("chaos.told_in_order", Happened, max_attempts=1000, in_order=True)
    async def told_in_order(self, tx: Transaction, event: Happened) -> None:
        with self.journal.run("chaos.told_in_order", event.number):
            await _leave_effect(tx, "chaos.told_in_order", event.number)

    async def _at_least_once(self, db: Database, kind: str, work: Work) -> None:
        """Take the time, then leave the effect."""
        with self.journal.run(kind, work.number, work.key):
            await asyncio.sleep(work.for_ms / 1000)
            await _leave_effect(db, kind, work.number, work.key)

    async def _once(self, tx: Transaction, kind: str, work: Work) -> None:
        """Leave the effect, then take the time: what it saw is of its beginning."""
        with self.journal.run(kind, work.number, work.key):
            await _leave_effect(tx, kind, work.number, work.key)
            await asyncio.sleep(work.for_ms / 1000)
