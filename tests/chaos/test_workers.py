"""Eight workers share the work, and some of them die of it."""

import asyncio
from collections.abc import Callable

from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.postgres import PostgresEvents
from tests.chaos.deployment import CONSUMER, Deployment
from tests.chaos.load import database_of
from tests.chaos.module.jobs import GROUP, LIMIT, LIMITED, NARROW, Work
from tests.chaos.verdict import NARROW_LIMIT, Leased, Verdict, limits, most_at_once, order
from tests.support.project import eventually

WORKERS = 8
GROUP_COUNT, LIMITED_COUNT, NARROW_COUNT = 50, 50, 100  # more than is done while workers are killed


async def test_killed_workers_change_neither_the_order_of_groups_nor_limits(deployment: Deployment) -> None:
    database = deployment.database
    deployment.start(CONSUMER).ready()
    database.run("UPDATE kernel.queues SET concurrency = %s WHERE name = 'narrow'", NARROW_LIMIT)
    others = [deployment.start(CONSUMER) for _ in range(WORKERS - 1)]
    for other in others:
        other.ready()
    queue = Queue(PostgresEvents())
    async with database_of(deployment) as db, db.begin() as tx:
        for number in range(GROUP_COUNT):
            for key in "abcdefgh":
                await queue.enqueue(tx, GROUP, Work(number, key, 50), group_key=key)
        for number in range(LIMITED_COUNT):
            for key in "xyz":
                await queue.enqueue(tx, LIMITED, Work(number, key, 100), concurrency_key=key)
        for number in range(NARROW_COUNT):
            await queue.enqueue(tx, NARROW, Work(number, "", 150))

    def done(kind: str) -> int:
        return len(database.all("SELECT DISTINCT key, number FROM chaos.effects WHERE kind = %s", kind))

    def at_least(kind: str, count: int) -> Callable[[], bool]:
        return lambda: done(kind) >= count

    for count in (5, 10):
        for kind in (GROUP.name, LIMITED.name, NARROW.name):
            eventually(at_least(kind, count))
            eventually(lambda kind=kind: deployment.kill_at_work(kind))
    eventually(lambda: database.all("SELECT count(*) FROM kernel.jobs") == [(0,)], 120)
    await deployment.stop(CONSUMER)

    assert [done(kind) for kind in (GROUP.name, LIMITED.name, NARROW.name)] == [
        8 * GROUP_COUNT,
        3 * LIMITED_COUNT,
        NARROW_COUNT,
    ]
    assert database.all("SELECT count(*) FROM chaos.effects WHERE kind = %s", GROUP.name) == [(8 * GROUP_COUNT,)]
    verdict = Verdict()
    order(verdict, database)
    runs = await asyncio.to_thread(deployment.runs)
    limits(verdict, runs, deployment.incidents)
    assert verdict.holds, verdict.table()
    leased = Leased(deployment.incidents)
    limited = [run for run in runs if run.kind == LIMITED.name]
    assert most_at_once(limited, leased.until, lambda run: run.key) == LIMIT, "the limit was never reached"
    assert {run.pid for run in runs} > {incident.pid for incident in deployment.incidents}
