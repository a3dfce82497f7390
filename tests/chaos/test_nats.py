"""Events through NATS: switching to it and back, and killed servers, relays and consumers. Nothing is lost."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from app.kernel.config import load
from app.kernel.db.postgres import PostgresDatabase
from app.kernel.db.postgres import database as provider
from app.kernel.process import Process
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport import EventTransport
from app.kernel.queue.transport.nats.outbox import OutboxEvents
from app.kernel.queue.transport.postgres import PostgresEvents
from app.processes import sections
from tests.conftest import TestDatabase
from tests.support.nats import nats_cluster, nats_server
from tests.support.project import Project, Running, add_feature

SOURCE = '''
"""Subscribers that leave a row for each event."""

from dataclasses import dataclass
from typing import ClassVar

from app.kernel.actions import Database, Transaction, subscriber

_LEAVE = "INSERT INTO public.heard (kind, number) VALUES (%s, %s)"


@dataclass(frozen=True, slots=True)
class Counted:
    event_type: ClassVar[str] = "test.counted"
    number: int


@dataclass(frozen=True, slots=True)
class Ears:
    """Hear."""

    @subscriber("platform.hear", Counted)
    async def hear(self, db: Database, event: Counted) -> None:
        """Hear."""
        await db.run(_LEAVE, ("any", event.number))

    @subscriber("platform.hear_tx", Counted)
    async def hear_tx(self, tx: Transaction, event: Counted) -> None:
        """Hear once."""
        await tx.run(_LEAVE, ("tx", event.number))

    @subscriber("platform.hear_in_order", Counted, in_order=True)
    async def hear_in_order(self, tx: Transaction, event: Counted) -> None:
        """Hear in order."""
        await tx.run(_LEAVE, ("order", event.number))
'''
KINDS = ("any", "order", "tx")


@dataclass(frozen=True)
class Counted:
    event_type: ClassVar[str] = "test.counted"
    number: int


@dataclass
class Publisher:
    """Publishes through a transport that may be changed, as when its process is replaced."""

    db: PostgresDatabase
    transport: EventTransport
    numbers: list[int] = field(default_factory=list)

    async def run(self, counter: list[int], stop: asyncio.Event) -> None:
        while not stop.is_set():
            counter[0] += 1
            number = counter[0]
            await Queue(self.transport).publish(self.db, Counted(number))
            self.numbers.append(number)
            await asyncio.sleep(0.1)


@pytest.fixture
async def db(database: TestDatabase, project: Project) -> AsyncIterator[PostgresDatabase]:
    settings = load(project.root, sections(), {"APP_ENV": "test", **database.env})
    async with Process("test", settings, project.root).opened() as p:
        opened = await p.use(provider)
        await opened.run(
            "CREATE TABLE public.heard (seq bigint GENERATED ALWAYS AS IDENTITY, kind text, number integer)"
        )
        yield opened


@pytest.fixture
def hearing(project: Project, tmp_path: Path) -> Project:
    """A copy of the project with subscribers."""
    copied = project.copy(tmp_path / "copy")
    add_feature(copied, "ears:Ears", SOURCE)
    copied.env |= {"QUEUE_LEASE": "2s", "NATS_STREAM": "test-events"}
    return copied


@asynccontextmanager
async def publishing(*publishers: Publisher) -> AsyncIterator[None]:
    counter, stop = [0], asyncio.Event()
    tasks = [asyncio.ensure_future(publisher.run(counter, stop)) for publisher in publishers]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def consumers(project: Project, count: int, env: dict[str, str]) -> list[Running]:
    started = [project.start("run-event-consumer", env=env) for _ in range(count)]
    for running in started:
        await asyncio.to_thread(running.ready, 60)
    return started


async def stop(running: Sequence[Running]) -> None:
    for one in running:
        one.signal(signal.SIGTERM)
    assert [await asyncio.to_thread(one.wait) for one in running] == [0] * len(running), [r.said() for r in running]


async def heard(db: PostgresDatabase, publishers: Sequence[Publisher], seconds: float = 40) -> dict[str, list[int]]:
    """Wait until every subscriber has heard every event that was published; return what each heard, in order."""
    wanted = len({number for publisher in publishers for number in publisher.numbers})
    deadline = asyncio.get_running_loop().time() + seconds
    counted = "SELECT kind, count(DISTINCT number) FROM public.heard GROUP BY kind ORDER BY kind"
    while (counts := await db.all(counted)) != [(kind, wanted) for kind in KINDS]:
        left = await db.all("SELECT task, state, count(*) FROM kernel.jobs GROUP BY task, state")
        assert asyncio.get_running_loop().time() < deadline, f"heard {counts} of {wanted}; jobs: {left}"
        await asyncio.sleep(0.1)
    rows = await db.all("SELECT kind, number FROM public.heard ORDER BY seq")
    assert await db.all("SELECT task FROM kernel.dead_letters") == []
    return {kind: [number for of, number in rows if of == kind] for kind in KINDS}


async def test_the_documented_switch_to_nats_and_back_loses_and_doubles_nothing(
    hearing: Project, db: PostgresDatabase, tmp_path: Path
) -> None:
    publishers = [Publisher(db, PostgresEvents()), Publisher(db, PostgresEvents())]
    with nats_server(tmp_path / "nats") as server:
        with_url = {"NATS_URL": server.url}
        old = await consumers(hearing, 1, {})
        async with publishing(*publishers):
            new = await consumers(hearing, 1, with_url)  # 1. consumers know NATS
            await stop(old)
            for publisher in publishers:  # 2. publishers use it, one process after the other
                publisher.transport = OutboxEvents()
                await asyncio.sleep(0.4)
            (sent,) = (await db.all("SELECT count(*) FROM kernel.event_inbox"))[0]
            assert sent > 0  # events went through NATS
            for publisher in publishers:  # back: 1. publishers leave it
                publisher.transport = PostgresEvents()
                await asyncio.sleep(0.3)
            drained = ["doctor", "--only", "outbox", "--only", "nats"]  # 2. nothing is on its way
            while (await asyncio.to_thread(hearing.app, *drained, env=with_url)).returncode:
                await asyncio.sleep(0.2)
            last = await consumers(hearing, 1, {})  # 3. consumers forget it
            await stop(new)
        found = await heard(db, publishers)
        await stop(last)
    numbers = sorted(number for publisher in publishers for number in publisher.numbers)
    assert {kind: sorted(found[kind]) for kind in KINDS} == dict.fromkeys(KINDS, numbers)


async def test_killed_servers_relays_and_consumers_lose_nothing_and_tx_effects_are_there_once(
    hearing: Project, db: PostgresDatabase, tmp_path: Path
) -> None:
    publisher = Publisher(db, OutboxEvents())
    with nats_cluster(tmp_path / "nats") as servers:
        env = {"NATS_URL": ",".join(server.url for server in servers), "NATS_REPLICAS": "3"}
        running = await consumers(hearing, 2, env)
        async with publishing(publisher):
            await asyncio.sleep(0.5)
            for number in (0, 1):  # each holds the relay's lock half of the time, and consumes
                running[number].signal(signal.SIGKILL)
                running[number].wait()
                running[number] = (await consumers(hearing, 1, env))[0]
                servers[number].stop()
                await asyncio.sleep(1)
                servers[number].start()
            servers[2].stop(signal.SIGTERM)
            servers[2].start()
            await asyncio.sleep(0.5)
        found = await heard(db, [publisher])
        await stop(running)
    assert sorted(found["tx"]) == sorted(publisher.numbers)
    assert found["order"] == sorted(publisher.numbers)
    assert set(found["any"]) == set(publisher.numbers)
