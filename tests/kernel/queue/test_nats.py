"""What can happen to events in NATS only: outages, a full stream, repeated delivery, lost subscriptions."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from loguru import logger

from app.kernel.config import NatsSettings, load
from app.kernel.db import Transaction
from app.kernel.queue import Subscriber
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.nats.outbox import OutboxEvents
from app.kernel.queue.transport.nats.stream import Stream
from app.processes import sections
from tests.kernel.queue.conftest import Bench, connected
from tests.support.nats import NatsServer, nats_server
from tests.support.project import ROOT, Project


@dataclass(frozen=True)
class Moved:
    event_type: ClassVar[str] = "test.moved"
    steps: int


@pytest.fixture
def own_nats(tmp_path: Path) -> "AsyncIterator[NatsServer]":
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def broker(bench: Bench, own_nats: NatsServer) -> AsyncIterator[Bench]:
    """The queue with events through a server that the test may kill."""
    settings = load(ROOT, sections(), {"APP_ENV": "test", "NATS_URL": own_nats.url, "NATS_TIMEOUT": "1s"})[NatsSettings]
    await bench.db.run("CREATE TABLE heard (steps integer)")
    async with connected(settings) as connection:
        short = replace(bench.settings, lease=1.0)
        yield replace(bench, settings=short, queue=Queue(OutboxEvents()), stream=Stream(connection, settings, 1.0))


async def hear(tx: Transaction, event: Moved) -> None:
    await tx.run("INSERT INTO heard VALUES (%s)", (event.steps,))


TX = Subscriber("a", Moved, hear, mode="tx")


async def counted(bench: Bench) -> list[tuple]:
    return await bench.rows("SELECT count(*), count(DISTINCT steps) FROM heard")


async def test_a_killed_server_loses_nothing_and_events_published_meanwhile_arrive_afterwards(
    broker: Bench, own_nats: NatsServer
) -> None:
    async with broker.consuming([TX], "x"), broker.consuming([TX], "y"):
        for start in (0, 100, 200):
            await broker.queue.publish(broker.db, *(Moved(n) for n in range(start, start + 50)))
            own_nats.stop()
            await broker.queue.publish(broker.db, *(Moved(n) for n in range(start + 50, start + 100)))
            own_nats.start()
        await broker.until(lambda: counted(broker), [(300, 300)], 30)


async def test_an_event_that_is_delivered_again_after_its_transaction_is_ignored(broker: Bench) -> None:
    assert broker.stream is not None
    async with broker.consuming([TX]):
        await broker.queue.publish(broker.db, Moved(1))
        await broker.until(lambda: counted(broker), [(1, 1)])
        info = await broker.stream.info()
        assert info is not None
        await broker.stream.nats.call(
            f"STREAM.UPDATE.{broker.stream.settings.stream}", info["config"] | {"duplicate_window": 100_000_000}
        )
        await asyncio.sleep(0.3)  # the server forgets the id of the message
        await broker.db.run(
            "INSERT INTO kernel.event_outbox (event_id, type, version, payload)"
            " SELECT id, type, version, payload FROM kernel.events"
        )
        await broker.queue.publish(broker.db, Moved(2))
        await broker.until(lambda: counted(broker), [(2, 2)])
        await broker.until(lambda: broker.rows("SELECT count(*) FROM kernel.event_outbox"), [(0,)])
        found = await broker.stream.info()
        assert found is not None
        assert found["state"]["last_seq"] == 3
    assert await counted(broker) == [(2, 2)]
    assert await broker.states() == []


async def test_events_wait_in_the_database_while_the_stream_is_full(broker: Bench) -> None:
    assert broker.stream is not None
    small = replace(broker, stream=replace(broker.stream, settings=replace(broker.stream.settings, max_bytes=20_000)))
    await small.queue.events.subscribe(small.db, [TX])
    async with small.consuming([]):
        await small.queue.publish(small.db, *(Moved(n) for n in range(200)))

        async def is_refused() -> bool:
            ((left,),) = await small.rows("SELECT count(*) FROM kernel.event_outbox")
            return 0 < left < 200

        await small.until(is_refused, True)
    async with small.consuming([TX]):
        await small.until(lambda: counted(small), [(200, 200)], 30)


async def test_a_deleted_consumer_is_made_again(broker: Bench) -> None:
    assert broker.stream is not None
    async with broker.consuming([TX]):
        await broker.queue.publish(broker.db, Moved(1))
        await broker.until(lambda: counted(broker), [(1, 1)])
        await broker.stream.nats.call(f"STREAM.DELETE.{broker.stream.settings.stream}")
        await broker.queue.publish(broker.db, Moved(2))
        await broker.until(lambda: counted(broker), [(2, 2)])


RELAYING = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'
        AND query LIKE '%trace_context FROM kernel.event_outbox%'
"""


async def test_another_relay_sends_what_a_frozen_one_holds_and_none_of_it_twice(
    broker: Bench, own_nats: NatsServer, project: Project
) -> None:
    assert broker.stream is not None
    await broker.queue.events.subscribe(broker.db, [TX])
    env = {"NATS_URL": own_nats.url, "QUEUE_EVENTS_TRANSPORT": "nats", "NATS_TIMEOUT": "500ms"}
    frozen = project.start("run-event-consumer", env=env)
    url = await asyncio.to_thread(frozen.ready)

    async def has_consumer() -> bool:
        return broker.stream is not None and await broker.stream.consumer("a") is not None

    await broker.until(has_consumer, True)
    assert own_nats.process is not None
    own_nats.process.send_signal(signal.SIGSTOP)  # so that the relay waits for it, and holds its lock
    await broker.queue.publish(broker.db, *(Moved(n) for n in range(50)))
    await broker.until(lambda: broker.rows(RELAYING), [(1,)])
    frozen.signal(signal.SIGSTOP)
    own_nats.process.send_signal(signal.SIGCONT)
    async with broker.consuming([TX]):
        for published in (50, 100):
            await broker.queue.publish(broker.db, *(Moved(n) for n in range(published, published + 50)))
            await broker.until(lambda: broker.rows("SELECT count(*) FROM kernel.event_outbox"), [(0,)])
            frozen.signal(signal.SIGCONT)
        await broker.until(lambda: counted(broker), [(150, 150)])
        found = await broker.stream.info()
        assert found is not None
        assert found["state"]["last_seq"] == 150
    assert httpx.get(f"{url}/health").status_code == 200
    assert await asyncio.to_thread(frozen.stop) == 0


async def test_a_subscription_to_which_nothing_comes_although_events_wait_is_reported_and_made_anew(
    broker: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broker.stream is not None
    monkeypatch.setattr("app.kernel.queue.transport.nats.intake._WATCH_EVERY_S", 1.0)
    monkeypatch.setattr("app.kernel.queue.transport.nats.pull._EXPIRES_S", 60.0)  # so that no deadline is first
    subscribe, made, said = broker.stream.nats.subscribe, list[Any](), list[str]()

    async def recorded(subject: str, arrived: Any) -> Any:
        made.append(await subscribe(subject, arrived))
        return made[-1]

    monkeypatch.setattr(broker.stream.nats, "subscribe", recorded)
    sink = logger.add(said.append, level="WARNING", format="{message}")
    try:
        async with broker.consuming([TX]):
            await broker.queue.publish(broker.db, Moved(0))
            await broker.until(lambda: counted(broker), [(1, 1)])
            await asyncio.sleep(1.2)  # a look at one that works
            assert said == []
            [pulling] = [subscription for subscription in made if "*" not in subscription.subject]
            await pulling.unsubscribe()  # as after an outage
            await broker.queue.publish(broker.db, *(Moved(n) for n in range(1, 4)))
            await broker.until(lambda: counted(broker), [(4, 4)])
    finally:
        logger.remove(sink)
    assert [line.strip() for line in said] == ["3 events wait in NATS for a, and none arrives; subscribing anew"]


async def test_a_message_of_somebody_else_is_ignored(broker: Bench) -> None:
    assert broker.stream is not None
    async with broker.consuming([TX]):
        await broker.queue.publish(broker.db, Moved(1))
        await broker.until(lambda: counted(broker), [(1, 1)])
        subject, publish = broker.stream.subject("test.moved"), broker.stream.nats.client.publish
        await publish(subject, b"{}")
        await publish(subject, b"{", headers={"Nats-Msg-Id": "00000000-0000-7000-8000-000000000000"})
        await broker.queue.publish(broker.db, Moved(2))
        await broker.until(lambda: counted(broker), [(2, 2)])
        await broker.until(lambda: broker.rows("SELECT count(*) FROM kernel.dead_letters"), [(1,)])
    assert (await broker.dead())[0].startswith("the payload does not fit: ")


ID = "00000000-0000-7000-8000-{:012}"
HOSTILE = [
    (b'"\\u0000"', {}),
    (b'{"steps": NaN}', {}),
    (b'{"steps": 1e999999}', {}),
    (b'"\\ud800"', {}),
    (b"[" * 100_000, {}),
    (b"1" * 5000, {}),
    (b"\xff", {}),
    (b'{"steps": 99999999999999999999}', {}),
    (b'{"steps": 7}', {"Event-Version": "99999999999"}),
    (b'{"steps": 7}', {"Event-Version": "-1"}),
    (b'{"steps": 7}', {"Event-Version": "x"}),
    (b'{"steps": 7}', {"traceparent": "00-" + "0" * 400}),
    (b'{"steps": 7}', {"traceparent": "\x00\ud7ff"}),
    (b"", {}),
]


@pytest.mark.parametrize("in_order", [False, True])
async def test_hostile_messages_stop_nobody(broker: Bench, in_order: bool) -> None:
    assert broker.stream is not None
    subscriber = replace(TX, in_order=in_order, max_attempts=1)
    async with broker.consuming([subscriber]):
        await broker.queue.publish(broker.db, Moved(-1))
        await broker.until(lambda: counted(broker), [(1, 1)])
        subject, publish = broker.stream.subject("test.moved"), broker.stream.nats.client.publish
        for number, (payload, headers) in enumerate(HOSTILE):
            await publish(subject, payload, headers={"Nats-Msg-Id": ID.format(number)} | headers)
        await broker.queue.publish(broker.db, Moved(-2))
        await broker.until(lambda: broker.rows("SELECT steps FROM heard ORDER BY 1"), [(-2,), (-1,), (7,), (7,)], 30)
        await broker.until(lambda: broker.rows("SELECT count(*) FROM kernel.dead_letters"), [(8,)])
    assert await broker.states() == []


def test_without_nats_a_consumer_is_not_ready_and_an_api_is(project: Project) -> None:
    away = {"NATS_URL": "nats://127.0.0.1:1", "QUEUE_EVENTS_TRANSPORT": "nats"}
    consumer, everything = project.start("run-event-consumer", env=away), project.start("run-all-in-one", env=away)
    answer = httpx.get(f"{consumer.url()}/ready")
    assert answer.status_code == 503
    assert list(answer.json()["missing"]) == ["nats"]
    everything.ready()
    assert [consumer.stop(), everything.stop()] == [0, 0]


def test_without_an_address_or_the_client_library_one_line_says_what_is_missing(
    project: Project, tmp_path: Path
) -> None:
    refused = project.app("config", "validate", env={"QUEUE_EVENTS_TRANSPORT": "nats"})
    assert refused.returncode == 78
    assert "nats needs the address of a server; set NATS_URL" in refused.stderr
    (tmp_path / "none" / "nats").mkdir(parents=True)
    (tmp_path / "none" / "nats" / "__init__.py").write_text("raise ImportError")
    env = {"NATS_URL": "nats://127.0.0.1:1", "PYTHONPATH": str(tmp_path / "none")}
    running = project.start("run-event-consumer", env=env)
    assert running.wait() == 78
    assert "app: nats.url: NATS needs the package nats-py\nhint: pip install 'nats-py[nkeys]>=2.16'\n" in running.said()
