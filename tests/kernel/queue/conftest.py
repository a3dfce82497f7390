"""The queue on a real database, in this process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from app.composition import constraints
from app.kernel.config import NatsSettings, QueueSettings, load
from app.kernel.db.listener import Listener, listening
from app.kernel.db.postgres import PostgresDatabase
from app.kernel.db.postgres import database as provider
from app.kernel.db.server import server
from app.kernel.process import Process
from app.kernel.queue import Handler, Subscriber, Task
from app.kernel.queue.consumer import Consumer
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.nats.connection import Nats
from app.kernel.queue.transport.nats.outbox import CHANNEL, OutboxEvents
from app.kernel.queue.transport.nats.relay import Relay
from app.kernel.queue.transport.nats.stream import Stream
from app.kernel.queue.transport.postgres import PostgresEvents
from app.processes import sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT


@dataclass(frozen=True)
class Greeting:
    name: str
    times: int = 1


GREET = Task("greet", Greeting, max_attempts=3)


@dataclass
class Bench:
    """A migrated database with its queue, and consumers on it."""

    __test__ = False
    test: TestDatabase
    db: PostgresDatabase
    conninfo: str
    settings: QueueSettings
    queue: Queue
    stream: Stream | None = None
    """Where events go, unless they go through PostgreSQL."""

    @asynccontextmanager
    async def consuming(
        self, handlers: Sequence[Handler | Subscriber] | Any, worker: str = "", **changes: Any
    ) -> AsyncGenerator["Running"]:
        """Consume meanwhile; `changes` are of the settings. An operation alone handles GREET."""
        if not isinstance(handlers, list):
            handlers = [Handler(GREET, handlers)]
        settings = replace(self.settings, **{"poll_interval": 0.05, **changes})
        await self.queue.events.subscribe(self.db, [h for h in handlers if isinstance(h, Subscriber)])
        async with listening(lambda **_: self.conninfo) as listener:
            given = (handlers, settings, self.queue.events, worker)
            consumer = Consumer(self.db, lambda: self.conninfo, listener, *given, stream=self.stream)
            stop = asyncio.Event()
            running = Running(consumer, stop, asyncio.ensure_future(consumer.run(stop)), listener)
            tasks = {running.task}
            with ExitStack() as stack:
                if self.stream is not None:
                    relay = Relay(self.db, self.stream.nats, self.stream, settings.poll_interval)
                    stack.enter_context(listener.subscribed(CHANNEL, lambda _: relay.wake.set(), relay.wake.set))
                    tasks.add(asyncio.ensure_future(relay.run(stop)))
                try:
                    yield running
                finally:
                    stop.set()
                    await asyncio.wait(tasks, timeout=10)
                    for task in tasks:
                        assert task.done()
                        if not task.cancelled() and (error := task.exception()):
                            raise error

    async def rows(self, sql: Any, *parameters: object) -> list[tuple]:
        return [tuple(row) for row in await self.db.all(sql, parameters)]

    async def states(self) -> list[tuple]:
        return await self.rows("SELECT state, attempt FROM kernel.jobs ORDER BY seq")

    async def finished(self) -> list[tuple]:
        return await self.rows("SELECT outcome, attempt FROM kernel.finished_jobs ORDER BY finished_at")

    async def dead(self) -> list[str]:
        return [reason for (reason,) in await self.rows("SELECT reason FROM kernel.dead_letters ORDER BY died_at")]

    async def until(self, probe: Callable[[], Any], expected: Any, seconds: float = 15) -> None:
        """Wait until an asynchronous probe returns what is expected; fail with what it returned last."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (found := await probe()) != expected:
            assert loop.time() < deadline, f"expected {expected!r}, last was {found!r}"
            await asyncio.sleep(0.02)


@dataclass
class Running:
    """A consumer that runs."""

    consumer: Consumer
    stop: asyncio.Event
    task: "asyncio.Task[None]"
    listener: Listener

    async def listens(self) -> bool:
        return self.listener.is_live


@pytest.fixture
async def bench(database: TestDatabase) -> AsyncIterator[Bench]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with Process("test", settings, ROOT, constraints=constraints()).opened() as p:
        db = await p.use(provider)
        conninfo = (await p.use(server)).conninfo()
        yield Bench(database, db, conninfo, settings[QueueSettings], Queue(PostgresEvents()))


@asynccontextmanager
async def connected(settings: NatsSettings) -> AsyncGenerator[Nats]:
    """Stay connected meanwhile."""
    connection = Nats(settings)
    running = asyncio.ensure_future(connection.run())
    try:
        async with asyncio.timeout(10):
            await connection.connected.wait()
        yield connection
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture(params=["postgres", "nats"])
async def transport(bench: Bench, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """The same queue, with events through PostgreSQL, and through NATS."""
    if request.param == "postgres":
        yield bench
        return
    url = request.getfixturevalue("nats").url
    settings = load(ROOT, sections(), {"APP_ENV": "test", "NATS_URL": url, "NATS_STREAM": bench.test.name})[
        NatsSettings
    ]
    async with connected(settings) as connection:
        stream = Stream(connection, settings, bench.settings.lease)
        yield replace(bench, queue=Queue(OutboxEvents()), stream=stream)
        await connection.call(f"STREAM.DELETE.{settings.stream}")
