"""Limits in Redis: the same as in PostgreSQL, and no failure is lost with Redis."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.kernel.errors import RateLimited
from app.kernel.redis.address import address
from app.kernel.redis.connections import Redis, connected
from app.modules.auth.domain.limits import Limit, Try
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sign_ins import GIVE_BACK, given_back
from app.modules.auth.shared_limits import SharedLimits
from tests.kernel.queue.conftest import Bench, bench
from tests.kernel.redis.conftest import waited
from tests.support.valkey import Valkey, servers

__all__ = ["bench"]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with servers() as found:
        found.append(Valkey(tmp_path / "valkey"))
        yield found[0]


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Redis]:
    made = connected(address(valkey.url), "system", 1.0)
    await made.open()
    watching = asyncio.ensure_future(made.watch())
    yield made
    watching.cancel()
    await made.close()


async def outcome(limits: Limits, bench: Bench, asked: list[Limit]) -> tuple[object, Try | None]:
    """Return what a reservation answers, without the prefix of its keys, and the attempt."""
    try:
        tried = await limits.reserve(bench.db, asked)
    except RateLimited as refused:
        return (str(refused), (refused.retry_after_s or 0) > 1), None
    counted = sorted(limit.key[1:] for limit in tried.limits)
    found = {key[1:]: (tally.failed, tally.pending) for key, tally in tried.tallies.items()}
    return (counted, found), tried


async def settle(limits: Limits, bench: Bench, tried: Try, forgiven: str) -> None:
    """Do what a sign-in does."""
    async with bench.db.begin() as tx:
        await tx.run("WITH " + GIVE_BACK + "SELECT", given_back(tried, forgiven=forgiven))
    await limits.settled(tried, forgiven)


async def test_redis_and_postgresql_decide_alike(bench: Bench, redis: Redis) -> None:
    """Random attempts, decided in random order, of names and passwords that meet each other's limits."""
    chosen = random.Random(20261128)
    sides = [("p", Limits()), ("r", SharedLimits(redis))]
    pending: list[tuple[Try, Try, str]] = []
    refusals = 0
    for step in range(500):
        name, password = chosen.choice("abcdef"), chosen.choice("uvwxyz")
        if pending and (chosen.random() < 0.45 or len(pending) > 6):
            *tries, name = pending.pop(chosen.randrange(len(pending)))
            action = chosen.choice(("fail", "fail", "fail", "give back", "settle"))
            for (prefix, limits), tried in zip(sides, tries, strict=True):
                if action == "fail":
                    await limits.fail(bench.db, tried)
                elif action == "give back":
                    await limits.give_back(bench.db, tried)
                else:
                    await settle(limits, bench, tried, f"{prefix}{name}")
            continue
        if chosen.random() < 0.3 and not pending:  # otherwise PostgreSQL forgets that they are pending
            key = chosen.choice((name, password, "address"))
            for prefix, limits in sides:
                await limits.forget(bench.db, f"{prefix}{key}")
            continue
        answers, tries = [], []
        for prefix, limits in sides:
            of_name = Limit(f"{prefix}{name}", 8, locks_from=4)
            asked = [of_name, Limit(f"{prefix}address", 30), Limit(f"{prefix}{password}", 4, once_for=of_name.key)]
            answer, tried = await outcome(limits, bench, asked)
            answers.append(answer)
            tries.append(tried)
        assert answers[0] == answers[1], f"step {step}"
        refusals += tries[0] is None
        if tries[0] is not None and tries[1] is not None:
            assert not tries[0].shared_as
            assert tries[1].shared_as
            pending.append((tries[0], tries[1], name))
    assert 40 < refusals < 250
    kept = "SELECT substr(key, 2), hits - pending FROM auth.limits WHERE key ~ %s AND hits > pending AND key !~ ':'"
    failures = [sorted(await bench.rows(kept, f"^{prefix}")) for prefix, _ in sides]
    assert failures[0] == failures[1], "PostgreSQL has every failure"


async def test_attempts_side_by_side_stay_in_the_limit(bench: Bench, redis: Redis) -> None:
    limits, asked = SharedLimits(redis), [Limit("name", 10)]

    async def guess() -> bool:
        try:
            tried = await limits.reserve(bench.db, asked)
        except RateLimited:
            return False
        await asyncio.sleep(0)
        await limits.fail(bench.db, tried)
        return True

    evaluated = sum(await asyncio.gather(*(guess() for _ in range(60))))
    assert evaluated == 10
    assert await bench.rows("SELECT hits, pending FROM auth.limits") == [(10, 0)]


async def test_a_flush_forgets_no_failure(bench: Bench, redis: Redis, valkey: Valkey) -> None:
    limits, asked = SharedLimits(redis), [Limit("name", 3)]
    for _ in range(3):
        await limits.fail(bench.db, await limits.reserve(bench.db, asked))
        valkey.ask("FLUSHALL")
        valkey.ask("LPUSH", "app:limits:{auth}:name", "of somebody else")  # is overwritten
    with pytest.raises(RateLimited) as refused:
        await limits.reserve(bench.db, asked)
    assert not redis.trouble
    assert 800 < (refused.value.retry_after_s or 0) <= 900


async def test_the_window_ends_in_redis_as_it_does_in_postgresql(bench: Bench, redis: Redis, valkey: Valkey) -> None:
    limits, asked = SharedLimits(redis), [Limit("name", 1, window_s=2), Limit("p", 1, window_s=2, once_for="ann")]
    await limits.fail(bench.db, await limits.reserve(bench.db, asked))
    with pytest.raises(RateLimited):
        await limits.reserve(bench.db, asked)
    await asyncio.sleep(2.1)
    assert valkey.ask("KEYS", "app:limits:*") == []
    tried = await limits.reserve(bench.db, asked)
    assert [tally.failed for tally in tried.tallies.values()] == [0, 0]


async def test_an_outage_moves_the_count_to_postgresql_and_back(bench: Bench, redis: Redis, valkey: Valkey) -> None:
    limits, asked = SharedLimits(redis), [Limit("name", 4)]
    await limits.fail(bench.db, await limits.reserve(bench.db, asked))
    in_redis = await limits.reserve(bench.db, asked)
    valkey.freeze()
    before = waited()
    in_postgres = await limits.reserve(bench.db, asked)
    assert waited() == before + 1
    assert (in_postgres.shared_as, in_postgres.tallies["name"].failed) == ("", 1)
    await limits.fail(bench.db, in_postgres)
    await limits.fail(bench.db, in_redis)
    assert await bench.rows("SELECT hits, pending FROM auth.limits") == [(3, 0)]
    valkey.thaw()
    while redis.trouble:
        await asyncio.sleep(0.02)
    last = await limits.reserve(bench.db, asked)
    assert last.shared_as
    assert (last.tallies["name"].failed, last.tallies["name"].pending) == (3, 1), (
        "what was in flight is not left pending"
    )
    with pytest.raises(RateLimited):
        await limits.reserve(bench.db, asked)
    await limits.give_back(bench.db, last)
    await limits.forget(bench.db, "name")
    assert (await limits.reserve(bench.db, asked)).tallies["name"].failed == 0


async def test_a_failure_that_postgresql_could_not_count_stays_counted(bench: Bench, redis: Redis) -> None:
    class Broken:
        async def run(self, *_: object) -> int:
            raise ConnectionError

    limits, asked = SharedLimits(redis), [Limit("name", 2)]
    tried = await limits.reserve(bench.db, asked)
    with pytest.raises(ConnectionError):
        await limits.fail(Broken(), tried)  # type: ignore[arg-type]
    with pytest.raises(RateLimited):
        await limits.reserve(bench.db, [replace(asked[0])])


async def test_what_an_operator_unlocks_without_redis_is_unlocked_within_a_minute(
    bench: Bench, redis: Redis, valkey: Valkey
) -> None:
    limits, asked = SharedLimits(redis), [Limit("name", 1)]
    await limits.fail(bench.db, await limits.reserve(bench.db, asked))
    await Limits().forget(bench.db, "name")  # a command whose settings do not name Redis
    with pytest.raises(RateLimited):
        await limits.reserve(bench.db, asked)
    [key] = valkey.ask("KEYS", "app:limits:*")  # type: ignore[misc]
    valkey.ask("HSET", key, "at", int(time.time() * 1000) - 61_000)
    assert (await limits.reserve(bench.db, asked)).tallies["name"].failed == 0
