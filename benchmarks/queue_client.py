"""What enqueues, publishes and fetches with our code, as a process. Started by benchmarks.queue.

`python -m benchmarks.queue_client fill COUNT | groups GROUPS COUNT | enqueue | trickle COUNT PER_S |
publish COUNT BATCH | publishers PUBLISHERS COUNT | fetch COUNT DB...`
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import uvloop
from psycopg import AsyncConnection

from app import ROOT
from app.kernel.config import PostgresSettings
from app.kernel.db.postgres import PostgresDatabase, database
from app.kernel.db.server import configured_server
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.postgres import PostgresEvents
from app.kernel.queue.worker.leases import ANY_RANK, Leases
from app.processes import load_settings
from benchmarks.queue_worker import NOTHING, Happened, Sent
from benchmarks.tally import Tally, moments

QUEUE = Queue(PostgresEvents())


async def fill(db: PostgresDatabase, count: int) -> None:
    """Enqueue what is worked off later."""
    await QUEUE.enqueue_many(db, NOTHING, (Sent() for _ in range(count)))


async def groups(db: PostgresDatabase, count: int, jobs: int) -> None:
    """Enqueue jobs of groups in turn."""
    async with db.begin() as tx:
        for number in range(jobs):
            await QUEUE.enqueue(tx, NOTHING, Sent(group=number % count), group_key=f"group{number % count}")


async def publishers(db: PostgresDatabase, count: int, transactions: int) -> None:
    """Measure concurrent publishers, on psycopg alone and on our pool.

    Transactions of one row, job or event, and the same as single statements, which commit by themselves.
    """
    await db.run("CREATE TABLE IF NOT EXISTS bench_rows (id uuid PRIMARY KEY, payload jsonb NOT NULL)")
    conninfo = configured_server(load_settings({})[PostgresSettings], "bench").conninfo()
    bare = [await AsyncConnection.connect(conninfo, autocommit=True) for _ in range(count)]

    async def row(publisher: int) -> None:
        await bare[publisher].execute("BEGIN")
        await bare[publisher].execute("INSERT INTO bench_rows VALUES (%s, %s)", (uuid7(), '{"at": 0}'))
        await bare[publisher].execute("COMMIT")

    async def row_alone(publisher: int) -> None:
        await bare[publisher].execute("INSERT INTO bench_rows VALUES (%s, %s)", (uuid7(), '{"at": 0}'))

    async def pooled(_: int) -> None:
        async with db.begin() as tx:
            await tx.run("INSERT INTO bench_rows VALUES (%s, %s)", (uuid7(), '{"at": 0}'))

    async def job(_: int) -> None:
        async with db.begin() as tx:
            await QUEUE.enqueue(tx, NOTHING, Sent())

    async def event(_: int) -> None:
        async with db.begin() as tx:
            await QUEUE.publish(tx, Happened(0))

    async def job_alone(_: int) -> None:
        await QUEUE.enqueue(db, NOTHING, Sent())

    async def event_alone(_: int) -> None:
        await QUEUE.publish(db, Happened(0))

    ways = {"row": row, "pooled": pooled, "job": job, "event": event}
    ways |= {"row_alone": row_alone, "job_alone": job_alone, "event_alone": event_alone}

    async def publisher(publish: Callable[[int], Awaitable[None]], number: int, most: int) -> None:
        for _ in range(most // count):
            await publish(number)

    found: dict[str, list[float]] = {}
    for turn in range(4):
        for name, publish in ways.items():
            started = time.monotonic()
            await asyncio.gather(*(publisher(publish, number, transactions) for number in range(count)))
            if turn:  # the first opens the connections
                found.setdefault(name, []).append(transactions // count * count / (time.monotonic() - started))
    for connection in bare:
        await connection.close()
    Tally.tell(**found)


async def enqueue(db: PostgresDatabase, one: int, batches: int, copied: int) -> None:
    """Measure the three ways in."""

    async def batch(count: int) -> None:
        await QUEUE.enqueue_many(db, NOTHING, [Sent()] * count)

    for _ in range(20):
        await QUEUE.enqueue(db, NOTHING, Sent())
        await batch(100)
    started = time.monotonic()
    for _ in range(one):
        await QUEUE.enqueue(db, NOTHING, Sent())
    after_one = time.monotonic()
    for _ in range(batches):
        await batch(100)
    after_batches = time.monotonic()
    await batch(copied)
    after_all = time.monotonic()
    Tally.tell(
        one=one / (after_one - started),
        batches=100 * batches / (after_batches - after_one),
        copied=copied / (after_all - after_batches),
    )


async def trickle(db: PostgresDatabase, count: int, per_s: int) -> None:
    """Enqueue one by one, at an even rate."""
    for moment in moments(count, per_s):
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        await QUEUE.enqueue(db, NOTHING, Sent(time.monotonic()))


async def publish(db: PostgresDatabase, count: int, batch: int) -> None:
    """Publish events; tell when the first was."""
    started = time.monotonic()
    for first in range(0, count, batch):
        await QUEUE.publish(db, *(Happened(number) for number in range(first, first + batch)))
    Tally.tell(started=started, ended=time.monotonic())


async def fetch(dbs: list[PostgresDatabase], count: int) -> None:
    """Measure fetches of a hundred, from one database after the other; complete what was fetched."""
    leases = Leases("bench", 30)
    took_s: list[list[float]] = [[] for _ in dbs]
    from_rank = [ANY_RANK for _ in dbs]
    for number in range(-20, count):
        for index, db in enumerate(dbs):
            if number % 10 == 0:
                from_rank[index] = ANY_RANK  # as the consumer does now and then
            started = time.monotonic()
            jobs = (await leases.fetch(db, "default", 100, from_rank[index], started)).jobs
            took_s[index] += [time.monotonic() - started] if number >= 0 else []
            from_rank[index] = jobs[-1].rank
            await leases.finish(db, jobs)
    Tally.tell(took_s=took_s)


async def main(what: str, *arguments: str) -> None:
    async with AsyncExitStack() as stack:

        async def opened(name: str) -> PostgresDatabase:
            settings = load_settings({"postgres.db": name} if name else {})
            return await (await stack.enter_async_context(Process("bench", settings, ROOT).opened())).use(database)

        if what == "fetch":
            await fetch([await opened(name) for name in arguments[1:]], int(arguments[0]))
        else:
            ways = {"fill": fill, "groups": groups, "enqueue": enqueue, "trickle": trickle, "publish": publish}
            work = ways.get(what, publishers)
            await work(await opened(""), *(int(text) for text in arguments))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
