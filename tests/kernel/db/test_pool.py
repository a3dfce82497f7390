"""The pool alone: who waits, who is served, and what is left of an outage of any length."""

import asyncio
from dataclasses import dataclass, field

import pytest

from app.kernel.db import pool as pool_module
from app.kernel.db.pool import Pool, PoolUse
from app.kernel.errors import Unavailable


@dataclass(eq=False)
class Line:
    """A connection that is open until it is dropped."""

    idle_since: float = 0.0
    opened_in: int = 0
    retire_at: float = 0.0
    open: bool = True

    def reusable(self) -> bool:
        return self.open

    def drop(self) -> None:
        self.open = False


@dataclass
class Server:
    """Hands out lines, or refuses."""

    away: bool = False
    attempts: int = 0
    at_once: int = 0
    most_at_once: int = 0
    lines: list[Line] = field(default_factory=list)

    async def connect(self) -> Line:
        self.attempts += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0.001)
            if self.away:
                raise Unavailable("it is away", retry_after_s=2)
        finally:
            self.at_once -= 1
        self.lines.append(Line())
        return self.lines[-1]

    @property
    def open(self) -> int:
        return sum(line.open for line in self.lines)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause between attempts of a thousandth of the real one: a minute lasts as long as 17 hours."""
    monkeypatch.setattr(pool_module, "_AGAIN_S", 0.00025)


def made(server: Server, size: int = 3, queue: int = 5) -> Pool:
    return Pool(server.connect, size=size, queue=queue)


async def outcome(pool: Pool, wait_s: float = 0.01) -> str:
    try:
        pool.give_back(await pool.take(wait_s))
    except Unavailable as error:
        return str(error)
    return "served"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("rate", [1, 10, 50])
async def test_an_outage_leaves_nobody_waiting_however_long_it_was_and_whatever_came(rate: int) -> None:
    server = Server()
    pool = made(server)
    assert await outcome(pool, 5) == "served"
    server.lines[0].drop()
    pool.drop_idle()
    server.away = True
    await outcome(pool)
    for _ in range(300):  # 15 minutes in steps of three seconds
        seen = await asyncio.gather(*(outcome(pool, 0.003) for _ in range(rate)))
        assert set(seen) <= {"it is away", "the database is unavailable"}
        assert pool.use() == PoolUse(0, 0, 0, 3)
    assert server.most_at_once == 1
    attempts = server.attempts
    await asyncio.sleep(0.02)
    assert server.attempts <= attempts + 1, "attempts go on although nobody waits"
    server.away = False
    assert set(await asyncio.gather(*(outcome(pool, 1) for _ in range(5)))) == {"served"}
    await pool.close()
    assert server.open == 0


async def test_who_waits_when_the_server_comes_back_is_served_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_AGAIN_S", 0.05)
    server = Server(away=True)
    pool = made(server)
    waiting = [asyncio.create_task(outcome(pool, 20)) for _ in range(5)]
    await asyncio.sleep(0.2)
    server.away = False
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == ["served"] * 5
    await pool.close()


async def test_no_more_are_lent_than_the_size_and_no_more_wait_than_the_queue() -> None:
    server = Server()
    pool = made(server, size=2, queue=2)
    lent = [await pool.take(1), await pool.take(1)]
    waiting = [asyncio.create_task(pool.take(10)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many requests"):
        await pool.take(10)
    urgent = asyncio.create_task(pool.take(10, urgent=True))
    await asyncio.sleep(0.05)
    assert len(server.lines) == 2
    for line in lent:
        pool.give_back(line)
    assert await urgent is lent[0], "who is urgent comes first"
    assert await waiting[0] is lent[1]
    waiting[1].cancel()
    await asyncio.wait(waiting)
    assert pool.use() == PoolUse(2, 0, 0, 2)
    await pool.close()


async def test_a_cancelled_waiter_keeps_no_connection_at_whatever_moment() -> None:
    server = Server()
    pool = made(server, size=1)
    for turns in range(12):
        line = await pool.take(1)
        waiter = asyncio.create_task(pool.take(10))
        await asyncio.sleep(0)
        pool.give_back(line)
        for _ in range(turns % 4):
            await asyncio.sleep(0)
        if waiter.done():
            pool.give_back(waiter.result())
        waiter.cancel()
        await asyncio.wait([waiter])
        assert pool.use() == PoolUse(0, 1, 0, 1), turns
    await pool.close()


@pytest.mark.parametrize("thaws", [True, False], ids=["answered late", "lost"])
async def test_an_attempt_without_an_answer_goes_on_and_short_ones_are_made_beside_it(
    monkeypatch: pytest.MonkeyPatch, thaws: bool
) -> None:
    monkeypatch.setattr(pool_module, "_OVERDUE_S", 0.05)
    server, mute, thawed = Server(), True, asyncio.Event()
    pending = most_pending = 0

    async def connect() -> Line:
        nonlocal pending, most_pending
        pending += 1
        most_pending = max(most_pending, pending)
        try:
            if mute:
                await thawed.wait()
        finally:
            pending -= 1
        return await server.connect()

    pool: Pool = Pool(connect, size=2, queue=20)
    for _ in range(10):
        assert set(await asyncio.gather(*(outcome(pool, 0.1) for _ in range(10)))) == {"the database is unavailable"}
    waiting = [asyncio.create_task(outcome(pool, 20)) for _ in range(10)]
    await asyncio.sleep(0.1)
    mute = False
    if thaws:
        thawed.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*waiting) == ["served"] * 10
    assert most_pending <= 3, "two at first, and a short one"
    await asyncio.sleep(0.05)
    assert server.open <= 2
    await pool.close()
    assert (pending, server.open) == (0, 0)


async def test_one_more_is_opened_when_all_are_mute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_STUCK_S", 0.05)
    server = Server()
    pool = made(server, size=2)
    mute = [await pool.take(1), await pool.take(1)]
    for _ in range(20):
        assert await outcome(pool, 5) == "served"
    assert server.open == 3
    for line in mute:
        line.drop()
        pool.give_back(line)
    assert pool.use() == PoolUse(0, 1, 0, 2)
    await asyncio.gather(*(outcome(pool, 1) for _ in range(5)))
    assert server.open <= 2
    await pool.close()


async def test_renewing_closes_idle_connections_at_once_and_lent_ones_when_they_come_back() -> None:
    server = Server()
    pool = made(server)
    first, second = await pool.take(1), await pool.take(1)
    pool.give_back(first)
    pool.renew()
    assert (first.open, second.open) == (False, True)
    pool.give_back(second)
    assert not second.open
    assert await pool.take(1) not in (first, second)
    await pool.close()


async def test_connections_retire_and_those_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    pool = made(server)
    lines = [await pool.take(1) for _ in range(3)]
    lines[0].retire_at = 0
    for line in lines:
        pool.give_back(line)
    assert [line.open for line in lines] == [False, True, True]
    monkeypatch.setattr(pool_module, "_IDLE_S", 0.01)
    await asyncio.sleep(0.02)
    pool.give_back(await pool.take(1))  # the one that was used last
    assert [line.open for line in lines] == [False, False, True]
    await pool.close()


async def test_an_unexpected_error_of_connecting_is_an_outage_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_AGAIN_S", 0.01)
    broken = True
    server = Server()

    async def connect() -> Line:
        if broken:
            raise KeyError("what nobody thought of")
        return await server.connect()

    pool: Pool = Pool(connect, size=2, queue=2)
    assert await outcome(pool, 0.05) == "the database is unavailable"
    broken = False
    assert await outcome(pool, 5) == "served"
    await pool.close()


async def test_a_closed_pool_refuses_who_waits_and_who_comes() -> None:
    server = Server(away=True)
    pool = made(server)
    waiting = asyncio.create_task(outcome(pool, 10))
    await asyncio.sleep(0.01)
    await pool.close()
    assert "stopping" in await waiting
    assert "stopping" in await outcome(pool)
