"""The load: jobs and events that are enqueued while everything else goes wrong, and which of them are certain."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.kernel.config import load
from app.kernel.db import Database
from app.kernel.db.postgres import database as provider
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.postgres import PostgresEvents
from app.processes import sections
from tests.chaos.deployment import Deployment
from tests.chaos.module.jobs import GROUP, LIMITED, NARROW, PLAIN, TX, Happened, Work

GROUPS = 8
LIMITED_KEYS = 3


@asynccontextmanager
async def database_of(deployment: Deployment) -> AsyncGenerator[Database]:
    """Open the deployment's database from here."""
    settings = load(deployment.project.root, sections(), {"APP_ENV": "test", **deployment.database.env})
    async with Process("chaos", settings, deployment.project.root).opened() as p:
        yield await p.use(provider)


@dataclass
class Load:
    """Enqueues, and keeps account: `confirmed` was committed; of `maybe`, the commit was not answered."""

    rng: random.Random
    every_s: float
    confirmed: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    maybe: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    refused: int = 0
    queue: Queue = field(default_factory=lambda: Queue(PostgresEvents()))
    _last: Counter[str] = field(default_factory=Counter)

    async def run(self, db: Database, stop: asyncio.Event) -> None:
        """Enqueue until asked to stop."""
        while not stop.is_set():
            await self._once(db)
            await asyncio.sleep(self.every_s)

    async def _once(self, db: Database) -> None:
        wanted = self._wanted()
        committing = False
        try:
            async with db.begin() as tx:
                for task, work, options in wanted:
                    if isinstance(work, Happened):
                        await self.queue.publish(tx, work)
                    else:
                        await self.queue.enqueue(tx, task, work, **options)
                committing = True
        except Unavailable:
            into = self.maybe if committing else None
        else:
            into = self.confirmed
        if into is None:
            self.refused += len(wanted)
            return
        for task, work, _ in wanted:
            if isinstance(work, Happened):
                into["chaos.told"].add(("", work.number))
                into["chaos.told_in_order"].add(("", work.number))
            else:
                into[task.name].add((work.key, work.number))

    def _wanted(self) -> list[tuple]:
        """Return what the next transaction enqueues."""
        group, limited = f"g{self.rng.randrange(GROUPS)}", f"l{self.rng.randrange(LIMITED_KEYS)}"
        found: list[tuple] = [
            (PLAIN, self._work(PLAIN.name), {}),
            (TX, self._work(TX.name), {}),
            (GROUP, self._work(GROUP.name, group), {"group_key": group}),
            (LIMITED, self._work(LIMITED.name, limited), {"concurrency_key": limited}),
        ]
        if self.rng.random() < 0.3:
            found.append((None, Happened(self._next("chaos.told")), {}))
        if self.rng.random() < 0.3:
            found.append((PLAIN, self._work(PLAIN.name), {"delay_s": self.rng.uniform(0.5, 3)}))
        if self.rng.random() < 0.3:
            found.append((NARROW, self._work(NARROW.name), {}))
        return found

    def _next(self, kind: str) -> int:
        self._last[kind] += 1
        return self._last[kind]

    def _work(self, kind: str, key: str = "") -> Work:
        return Work(self._next(kind), key, self.rng.randrange(0, 150))
