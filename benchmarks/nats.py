"""Events through NATS JetStream: the rate of the relay, the consumer against nats-py, and the time until handled.

All in one run: `python -m benchmarks.nats [events]`. nats-py does nothing but fetch and acknowledge.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, ClassVar

import uvloop
from nats.errors import TimeoutError as Late

from app.kernel.config import LoggerSettings, NatsSettings, QueueSettings
from app.kernel.db.listener import listener
from app.kernel.db.postgres import database
from app.kernel.process import Process
from app.kernel.queue import Subscriber
from app.kernel.queue.consumer import Consumer
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport import EventTransport
from app.kernel.queue.transport.nats.connection import nats
from app.kernel.queue.transport.nats.outbox import CHANNEL, OutboxEvents
from app.kernel.queue.transport.nats.relay import Relay
from app.kernel.queue.transport.nats.stream import Stream, Subscription, consumer_name
from app.kernel.queue.transport.postgres import PostgresEvents
from app.kernel.telemetry import logs
from app.processes import load_settings, new_process
from benchmarks.measure import Table, postgres, scratch
from benchmarks.queue import percentile
from tests.support.nats import nats_server

EVENTS = 15_000
ROUNDS = 3
FETCH = 500
CONCURRENCY = 200
PER_S, TRICKLE_S = 100, 5
IN_ORDER = 500
PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Happened:
    event_type: ClassVar[str] = "bench.happened"
    number: int
    at: float


class Fleet:
    """A relay and a consumer, which run when they are asked to."""

    def __init__(self, p: Process, db: Any, stream: Stream) -> None:
        self.p, self.db, self.stream = p, db, stream
        self.queue = Queue(OutboxEvents())
        self.settings = replace(p.settings[QueueSettings], concurrency=CONCURRENCY)

    @asynccontextmanager
    async def relaying(self) -> AsyncGenerator[None]:
        heard, stop = await self.p.use(listener), asyncio.Event()
        relay = Relay(self.db, self.stream.nats, self.stream, 0.5)
        with heard.subscribed(CHANNEL, lambda _: relay.wake.set(), relay.wake.set):
            task = asyncio.ensure_future(relay.run(stop))
            try:
                yield
            finally:
                stop.set()
                await task

    @asynccontextmanager
    async def consuming(self, subscribers: list[Subscriber]) -> AsyncGenerator[None]:
        heard, stop = await self.p.use(listener), asyncio.Event()
        given = (heard, subscribers, self.settings, self.queue.events)
        task = asyncio.ensure_future(Consumer(self.db, _conninfo(self.p), *given, stream=self.stream).run(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def publish(self, count: int) -> None:
        for start in range(0, count, 1000):
            await self.queue.publish(self.db, *(Happened(n, 0.0) for n in range(start, min(start + 1000, count))))


def _conninfo(p: Process) -> Any:
    settings = p.settings
    from app.kernel.config import PostgresSettings

    found = settings[PostgresSettings]
    return lambda **_: f"host={found.host} port={found.port} user={found.user} dbname={found.db}"


async def relayed_per_s(fleet: Fleet, count: int) -> float:
    """Return the rate at which the relay sends what waits."""
    await fleet.publish(count)
    started = time.monotonic()
    async with fleet.relaying(), asyncio.timeout(PATIENCE_S):
        while await fleet.db.one("SELECT FROM kernel.event_outbox LIMIT 1") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return count / (time.monotonic() - started)


async def own_loop_per_s(fleet: Fleet, subscriber: str, count: int) -> float:
    """Return the rate of nats-py's own loop over a consumer with as many events."""
    jetstream = fleet.stream.nats.client.jetstream()
    pulled = await jetstream.pull_subscribe_bind(consumer_name(subscriber), fleet.stream.settings.stream)
    done, started = 0, time.monotonic()
    while done < count:
        with suppress(Late):
            for message in await pulled.fetch(FETCH, timeout=1):
                await message.ack()
                done += 1
    await fleet.stream.nats.client.flush()
    return count / (time.monotonic() - started)


async def consumed_per_s(fleet: Fleet, subscriber: str, count: int) -> float:
    """Return the rate of our consumer over as many events."""
    done, started, finished = 0, 0.0, asyncio.Event()

    async def hear(_: Happened) -> None:
        nonlocal done, started
        started = started or time.monotonic()
        done += 1
        if done >= count:
            finished.set()

    async with fleet.consuming([Subscriber(subscriber, Happened, hear)]):
        async with asyncio.timeout(PATIENCE_S):
            await finished.wait()
        return count / (time.monotonic() - started)


async def late_ms(fleet: Fleet, subscriber: str, mode: Any = "at_least_once") -> list[float]:
    """Return how long each event took from the call that publishes it until it was handled."""
    took: list[float] = []

    async def hear(*given: Any) -> None:
        took.append((time.monotonic() - given[-1].at) * 1000)

    count = PER_S * TRICKLE_S
    async with fleet.relaying(), fleet.consuming([Subscriber(subscriber, Happened, hear, mode=mode)]):
        await asyncio.sleep(1)
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await asyncio.sleep(max(0.0, begun + number / PER_S - time.monotonic()))
                group.create_task(fleet.queue.publish(fleet.db, Happened(number, time.monotonic())))
        async with asyncio.timeout(PATIENCE_S):
            while len(took) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    return took[count // 20 :]


async def in_order_per_s(fleet: Fleet, events: EventTransport, count: int) -> float:
    """Return the rate of a subscriber in order, of events that wait when it starts."""
    heard: list[float] = []
    last = -1

    async def hear(happened: Happened) -> None:
        nonlocal last
        assert happened.number == last + 1
        last = happened.number
        heard.append(time.monotonic())

    subscriber = Subscriber("bench.in_order", Happened, hear, in_order=True)
    await events.subscribe(fleet.db, [subscriber])
    queue = Queue(events)
    async with fleet.relaying(), fleet.consuming([subscriber]):
        for number in range(count):
            await queue.publish(fleet.db, Happened(number, 0.0))
        async with asyncio.timeout(PATIENCE_S):
            while len(heard) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    await fleet.db.run("DELETE FROM kernel.subscriptions")
    return (count - 1) / (heard[-1] - heard[0])


async def run(p: Process, count: int, table: Table) -> None:
    async with p.opened():
        db, connection = await p.use(database), await p.use(nats)
        stream = Stream(connection, p.settings[NatsSettings], p.settings[QueueSettings].lease)
        fleet = Fleet(p, db, stream)
        for name in ("bench.own", "bench.ours"):
            await fleet.queue.events.subscribe(db, [Subscriber(name, Happened, asyncio.sleep)])
        await stream.ensure([Subscription(name, Happened.event_type, False) for name in ("bench.own", "bench.ours")])
        table.add("relay, events a second", await relayed_per_s(fleet, count), "", least=15_000)
        own, ours = (
            [await own_loop_per_s(fleet, "bench.own", count)],
            [await consumed_per_s(fleet, "bench.ours", count)],
        )
        for _ in range(ROUNDS - 1):  # in turns, as the load of the machine changes
            await relayed_per_s(fleet, count)
            own.append(await own_loop_per_s(fleet, "bench.own", count))
            ours.append(await consumed_per_s(fleet, "bench.ours", count))
        table.add("nats-py: fetch and acknowledge, events a second", median(own), "")
        table.add("consumer, events a second", median(ours), "")
        ratios = [one / other for one, other in zip(ours, own, strict=True)]
        table.add("consumer against nats-py", median(ratios), "", least=0.7)
        await db.run("DELETE FROM kernel.subscriptions")
        for mode in ("at_least_once", "tx"):
            took = await late_ms(fleet, f"bench.{mode}", mode)
            most = (4, 20) if mode == "at_least_once" else (None, None)
            table.add(f"from publish to handled at {PER_S}/s, {mode}, p50", percentile(took, 0.5), " ms", most=most[0])
            table.add("the same, p99", percentile(took, 0.99), " ms", most=most[1])
        await db.run("DELETE FROM kernel.subscriptions")
        for words, events in (("NATS", OutboxEvents()), ("PostgreSQL", PostgresEvents())):
            per_s = await in_order_per_s(fleet, events, IN_ORDER)
            table.add(f"in order over {words}, events a second", per_s, "")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    table = Table("NATS JetStream")
    with scratch() as folder, postgres(folder / "pg") as server, nats_server(folder / "nats") as broker:
        settings = load_settings(
            {
                "postgres.host": server.host,
                "postgres.port": server.port,
                "postgres.user": server.user,
                "postgres.db": "app",
                "nats.url": broker.url,
                "logger.output": str(folder / "log"),
                "logger.format": "json",
            }
        )
        logs.configure(settings[LoggerSettings], "run-bench")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(new_process("run-bench", settings), count, table))
    table.show()


if __name__ == "__main__":
    main()
