"""Handlers that keep account of themselves: of their effects in the database, of their runs in a journal.

The journal is a file of each worker. What is written there stays when the worker is killed or the database is away.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, LiteralString

from app.kernel.db import Database, Queries, Transaction
from app.kernel.process import Process
from app.kernel.queue import Handler, Schedule, Subscriber, Task

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


class _Journal:
    def __init__(self, folder: Path) -> None:
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


@dataclass(frozen=True, slots=True)
class _Handlers:
    db: Database
    journal: _Journal
    gate: Path

    def at_least_once(self, task: Task[Work]) -> Handler:
        """Takes its time, then leaves its effect."""

        async def operation(work: Work) -> None:
            with self.journal.run(task.name, work.number, work.key):
                await asyncio.sleep(work.for_ms / 1000)
                await _leave_effect(self.db, task.name, work.number, work.key)

        return Handler(task, operation)

    def tx(self, task: Task[Work]) -> Handler:
        """Leaves its effect, then takes its time: what it saw is of its beginning."""

        async def operation(tx: Transaction, work: Work) -> None:
            with self.journal.run(task.name, work.number, work.key):
                await _leave_effect(tx, task.name, work.number, work.key)
                await asyncio.sleep(work.for_ms / 1000)

        return Handler(task, operation, "tx")

    async def wait_at_gate(self) -> None:
        while self.gate.exists():
            await asyncio.sleep(0.01)

    async def gated(self, work: Work) -> None:
        with self.journal.run(GATED.name, work.number):
            await self.wait_at_gate()
            await _leave_effect(self.db, GATED.name, work.number)

    async def gated_tx(self, tx: Transaction, work: Work) -> None:
        with self.journal.run(GATED_TX.name, work.number):
            await _leave_effect(tx, GATED_TX.name, work.number)
            await self.wait_at_gate()

    async def tick(self, tx: Transaction) -> None:
        await _leave_effect(tx, TICK.name, 0)

    async def told(self, event: Happened) -> None:
        with self.journal.run("chaos.told", event.number):
            await _leave_effect(self.db, "chaos.told", event.number)

    async def told_in_order(self, tx: Transaction, event: Happened) -> None:
        with self.journal.run("chaos.told_in_order", event.number):
            await _leave_effect(tx, "chaos.told_in_order", event.number)


async def handlers(p: Process) -> list[Handler | Subscriber]:
    """Return what consumers run."""
    from app.kernel.db.postgres import database

    folder = Path(os.environ["CHAOS_JOURNAL"])
    h = _Handlers(await p.use(database), _Journal(folder), folder / "gate")
    return [
        h.at_least_once(PLAIN),
        h.tx(TX),
        h.tx(GROUP),
        h.at_least_once(LIMITED),
        h.at_least_once(NARROW),
        Handler(GATED, h.gated),
        Handler(GATED_TX, h.gated_tx, "tx"),
        Handler(TICK, h.tick, "tx"),
        Subscriber("chaos.told", Happened, h.told, max_attempts=1000),
        Subscriber("chaos.told_in_order", Happened, h.told_in_order, "tx", max_attempts=1000, in_order=True),
    ]
