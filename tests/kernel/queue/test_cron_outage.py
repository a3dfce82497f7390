"""What cron managers do with schedules when they could not reach them for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.kernel.errors import Unavailable
from app.kernel.queue import Schedule, Task, cron
from app.kernel.queue.cron import CronManager
from tests.kernel.queue.conftest import Bench

TICK = Task[None]("tick")
GONE_AFTER_S = 0.5


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules are forgotten after half a second instead of a minute."""
    monkeypatch.setattr(cron, "_SEEN_EVERY_S", 0.1)
    monkeypatch.setattr(cron, "_GONE_AFTER_S", GONE_AFTER_S)


@asynccontextmanager
async def running(manager: CronManager) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.run(stop))
        yield
        stop.set()


async def names(bench: Bench) -> list[str]:
    return [name for (name,) in await bench.rows("SELECT name FROM kernel.schedules ORDER BY name")]


async def test_a_schedule_that_another_manager_had_locked_for_long_is_not_forgotten(bench: Bench) -> None:
    manager = CronManager(bench.db, [Schedule(TICK, every_s=3600)], 0.05)
    await manager.register()
    async with running(manager):
        await asyncio.sleep(2 * GONE_AFTER_S)  # by now it forgets
        async with bench.db.begin() as tx:  # as one does that catches up, or that froze
            await tx.run("SELECT FROM kernel.schedules FOR UPDATE")
            await asyncio.sleep(1.2)  # longer than forgetting waits to begin, shorter than it waits for a lock
        await asyncio.sleep(2 * GONE_AFTER_S)
        assert await names(bench) == ["tick"]


async def test_a_manager_starts_while_another_one_has_frozen_with_a_schedule_in_its_hands(bench: Bench) -> None:
    manager = CronManager(bench.db, [Schedule(TICK, every_s=3600)], 0.05)
    await manager.register()
    async with bench.db.begin() as tx:
        await tx.run("SELECT FROM kernel.schedules FOR UPDATE")
        await manager.register()
    await bench.db.run("UPDATE kernel.schedules SET seen_at = now() - interval '1 hour'")
    await manager.register()
    assert await bench.rows("SELECT now() - seen_at < interval '10 minutes' FROM kernel.schedules") == [(True,)]


async def test_after_an_outage_other_managers_have_time_to_say_what_they_know(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = asyncio.Event()
    inner = bench.db.begin

    @asynccontextmanager
    async def begin() -> AsyncIterator:
        if away.is_set():
            raise Unavailable("away")
        async with inner() as tx:
            yield tx

    manager = CronManager(bench.db, [Schedule(TICK, every_s=3600)], 0.05)
    await manager.register()
    await CronManager(bench.db, [Schedule(TICK, every_s=3600, name="of another release")], 0.05).register()
    keep = "UPDATE kernel.schedules SET seen_at = now() WHERE name = 'of another release'"
    monkeypatch.setattr(bench.db, "begin", begin)
    async with running(manager):
        for _ in range(8):  # the other manager lives
            await bench.db.run(keep)
            await asyncio.sleep(GONE_AFTER_S / 4)
        away.set()
        await asyncio.sleep(3 * GONE_AFTER_S)
        away.clear()
        await asyncio.sleep(GONE_AFTER_S / 2)  # the other one is a bit slower to come back
        await bench.db.run(keep)
        assert await names(bench) == ["of another release", "tick"]
        await asyncio.sleep(3 * GONE_AFTER_S)  # it is gone
        assert await names(bench) == ["tick"]


async def test_what_many_schedules_have_missed_is_caught_up_in_portions(bench: Bench) -> None:
    schedules = [Schedule(TICK, every_s=1, misfire="all", name=f"tick_{n:03}") for n in range(100)]
    manager = CronManager(bench.db, schedules, 0.05)
    await manager.register()
    await bench.db.run("UPDATE kernel.schedules SET next_fire_at = date_trunc('second', now()) - interval '10 minutes'")
    before = 0
    for _ in range(3):
        assert await manager.fire_due() == 100
        ((jobs,),) = await bench.rows("SELECT count(*) FROM kernel.jobs")
        assert 0 < jobs - before <= 1000
        before = jobs
    ((fewest, most),) = await bench.rows("SELECT min(fired_count), max(fired_count) FROM kernel.schedules")
    assert fewest == most
