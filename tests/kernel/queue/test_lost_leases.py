"""What a worker does with jobs whose lease it has lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.kernel.db import Transaction
from app.kernel.errors import Unavailable
from app.kernel.queue import Handler
from app.kernel.queue.worker.leases import Leases
from tests.kernel.queue.conftest import GREET, Bench, Greeting

LEASE_S = 1.0


async def rescued(bench: Bench) -> None:
    """Every lease runs out, and somebody notices before it can be renewed: what a frozen worker wakes up to."""
    async with bench.db.begin() as tx:
        await tx.run("UPDATE kernel.jobs SET leased_until = now() - interval '1 second' WHERE state = 'leased'")
        await Leases("somebody else", LEASE_S).rescue(tx)  # pyright: ignore[reportArgumentType] - a Queries will do


async def test_a_job_that_its_own_worker_has_leased_anew_stays_leased_when_the_first_run_ends(bench: Bench) -> None:
    gates = [asyncio.Event(), asyncio.Event(), asyncio.Event()]
    begun: list[asyncio.Event] = []

    async def greet(greeting: Greeting) -> None:
        gate = gates[len(begun)]
        begun.append(gate)
        await gate.wait()

    async def count() -> int:
        return len(begun)

    async def expiry() -> object:
        ((until,),) = await bench.rows("SELECT leased_until FROM kernel.jobs")
        return until

    lease_s = 3 * LEASE_S  # renewed with two thirds of it left, which a machine that stands still must not use up
    async with bench.consuming(greet, lease=lease_s):
        await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
        await bench.until(count, 1)
        await rescued(bench)
        await bench.until(count, 2)
        before = await expiry()
        gates[0].set()
        async with asyncio.timeout(lease_s):  # it is renewed, long before it runs out
            while await expiry() == before:
                await asyncio.sleep(0.05)
        renewed = await expiry()
        async with asyncio.timeout(lease_s):
            while await expiry() == renewed:
                await asyncio.sleep(0.05)
        assert await count() == 2
        gates[1].set()
        await bench.until(bench.finished, [("done", 1)])
    assert await count() == 2


async def test_a_job_that_was_fetched_ahead_is_not_begun_when_its_lease_has_run_out(bench: Bench) -> None:
    gate = asyncio.Event()
    begun: list[str] = []

    async def greet(greeting: Greeting) -> None:
        begun.append(greeting.name)
        await gate.wait()

    async def leased() -> int:
        return len([state for state, _ in await bench.states() if state == "leased"])

    async with bench.consuming(greet, lease=LEASE_S, concurrency=1) as running:
        running.consumer.fetcher.rate = 1e300  # so many jobs a second that it fetches ahead what it can
        await bench.queue.enqueue(bench.db, GREET, Greeting("first"))
        await bench.queue.enqueue(bench.db, GREET, Greeting("ahead"))
        await bench.until(leased, 2)
        await bench.db.run(
            "UPDATE kernel.jobs SET lease_token = gen_random_uuid(), leased_until = now() + interval '1 hour'"
        )
        await asyncio.sleep(1.1 * LEASE_S)  # the length of a lease, not a wait for something
        gate.set()
        await bench.queue.enqueue(bench.db, GREET, Greeting("later"))
        await bench.until(bench.finished, [("done", 1)])
        assert begun == ["first", "later"]
        assert await leased() == 2


async def test_a_job_is_not_begun_when_its_lease_has_run_out_while_its_transaction_began(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    begun: list[str] = []
    begin = bench.db.begin

    @asynccontextmanager
    async def late() -> AsyncIterator[Transaction]:
        async with begin() as tx:
            await gate.wait()
            yield tx

    async def greet(tx: Transaction, greeting: Greeting) -> None:
        begun.append(greeting.name)

    async def leased() -> list[tuple]:
        return await bench.rows("SELECT count(*) FROM kernel.jobs WHERE state = 'leased'")

    monkeypatch.setattr(bench.db, "begin", late)
    async with bench.consuming([Handler(GREET, greet, "tx")], lease=LEASE_S):
        await bench.queue.enqueue(bench.db, GREET, Greeting("frozen"))
        await bench.until(leased, [(1,)])
        await bench.db.run(
            "UPDATE kernel.jobs SET lease_token = gen_random_uuid(), leased_until = now() + interval '1 hour'"
        )
        await asyncio.sleep(1.1 * LEASE_S)  # the length of a lease, not a wait for something
        gate.set()
        await bench.queue.enqueue(bench.db, GREET, Greeting("later"))
        await bench.until(bench.finished, [("done", 1)])
    assert begun == ["later"]


async def test_a_worker_that_freezes_while_it_passes_a_turn_is_cut_off_and_does_not_delay_other_turns(
    bench: Bench,
) -> None:
    async def greet(greeting: Greeting) -> None:
        """Does nothing."""

    await bench.queue.enqueue(bench.db, GREET, Greeting("frozen"), group_key="one")
    (frozen,) = (await Leases("frozen", 60).fetch(bench.db, "default", 1, -(2**63), 0.0)).jobs

    async def freeze_before_the_commit() -> None:
        async with bench.db.begin() as tx:
            await Leases("frozen", 60).finish(tx, [frozen])
            await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
            await bench.queue.enqueue(bench.db, GREET, Greeting("you"), group_key="another")
            async with bench.consuming(greet):
                await bench.until(bench.finished, [("done", 1), ("done", 1)])
                await bench.until(idle, [(0,)])

    async def idle() -> list[tuple]:
        return await bench.rows(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state LIKE 'idle in transaction%%'"
        )

    with pytest.raises(Unavailable):  # the server has hung up
        await freeze_before_the_commit()
    assert await bench.states() == [("leased", 0)]
