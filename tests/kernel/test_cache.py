"""The cache of a process: what it keeps, what invalidates it, and when it is bypassed."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import psycopg
import pytest

from app.kernel.actions.compose import make
from app.kernel.cache import CHANNEL, Invalidations, invalidate
from app.kernel.cache.local import LocalCache
from app.kernel.db import Database
from app.kernel.process import Process
from tests.conftest import TestDatabase


@dataclass
class Live:
    """Whether invalidations arrive."""

    is_live: bool = True


@pytest.fixture
def live() -> Live:
    return Live()


@pytest.fixture
def invalidations(live: Live) -> Invalidations:
    return Invalidations(lambda: live.is_live)


@pytest.fixture
def cache(invalidations: Invalidations) -> LocalCache[str]:
    return LocalCache("t", invalidations, 3)


def load(cache: LocalCache[str], key: str, *tags: str, seconds: float = 60) -> None:
    with cache.loading() as loading:
        loading.store(key, key.upper(), tags, seconds)


def kept(cache: LocalCache[str], *keys: str) -> list[str]:
    return [key for key in keys if cache.get(key) is not None]


def test_it_keeps_a_number_of_values_for_a_time_and_forgets_the_oldest(cache: LocalCache[str]) -> None:
    load(cache, "a", "x")
    load(cache, "b", "x", seconds=0)
    assert (cache.get("a"), cache.get("b"), len(cache)) == ("A", None, 2)
    for key in "cde":
        load(cache, key, "x")
    assert (kept(cache, *"abcde"), len(cache)) == (["c", "d", "e"], 3)
    load(cache, "e", "y")
    assert (kept(cache, *"cde"), len(cache)) == (["c", "d", "e"], 3)


@pytest.mark.parametrize(
    ("payload", "left"),
    [
        ('{"topic": "t", "tags": ["x"]}', "b"),
        ('{"topic": "t", "tags": ["x", "y"]}', ""),
        ('{"topic": "t", "tags": ["z"]}', "abc"),
        ('{"topic": "other", "tags": ["x"]}', "abc"),
        ('{"topic": "t", "tags": null}', ""),
        ("", ""),
        ("[]", ""),
        ('{"topic": "t"}', ""),
        ('{"topic": "t", "tags": 1}', ""),
    ],
)
def test_an_invalidation_reaches_what_has_its_tags_whether_stored_or_being_loaded(
    cache: LocalCache[str], invalidations: Invalidations, payload: str, left: str
) -> None:
    tags = {"a": ("x", "y"), "b": ("y",), "c": ("x",)}
    expected = [key for key in left if key != "b" or "y" not in payload]
    for key, its in tags.items():
        load(cache, key, *its)
    invalidations.received(payload)
    assert kept(cache, *tags) == expected
    for key, its in tags.items():  # invalidated after the loading has read, and before it stores
        with cache.loading() as loading:
            invalidations.received(payload)
            loading.store(key, "old", its, 60)
    assert kept(cache, *tags) == expected
    for key, its in tags.items():  # what begins afterwards is stored
        load(cache, key, *its)
    assert kept(cache, *tags) == list(tags)


def test_it_is_bypassed_while_invalidations_may_not_arrive_and_empty_afterwards(
    cache: LocalCache[str], invalidations: Invalidations, live: Live
) -> None:
    load(cache, "a", "x")
    live.is_live = False
    assert kept(cache, "a") == []
    with cache.loading() as loading:
        live.is_live = True
        invalidations.missed()
        loading.store("b", "B", ("x",), 60)  # was read before the process listened again
    assert kept(cache, *"ab") == []
    load(cache, "a", "x")
    assert kept(cache, "a") == ["a"]


async def test_an_invalidation_takes_effect_with_its_transaction_here_at_once_and_elsewhere_notified_once(
    process: Process, database: TestDatabase
) -> None:
    db, invalidations = await make(process, Database), await make(process, Invalidations)
    cache = LocalCache[str]("t", invalidations, 10)
    while not invalidations.is_live:
        await asyncio.sleep(0.01)
    other = await psycopg.AsyncConnection.connect(database.conninfo, autocommit=True)
    async with other:
        await other.execute(f"LISTEN {CHANNEL}")

        async def notified() -> list[str]:
            await other.execute("SELECT 1")
            return [note.payload async for note in other.notifies(timeout=0)]

        load(cache, "a", "x")
        async with db.begin() as tx:
            await invalidate(tx, "t", ["x", "é", "x"])
            await invalidate(tx, "t", ["é", "x"])
            await invalidate(tx, "t", [])
            assert kept(cache, "a") == ["a"]  # nothing is committed
            assert await notified() == []
        assert kept(cache, "a") == []
        assert await notified() == ['{"topic" : "t", "tags" : ["x","é"]}']
        with suppress(LookupError):
            async with db.begin() as tx:
                await invalidate(tx, "t", ["x"])
                raise LookupError
        assert await notified() == []
        tags = [f"{number:06}" for number in range(885)]
        await invalidate(db, "t", [*tags, "1234"])
        assert [len(payload) for payload in await notified()] == [7999]
        await invalidate(db, "t", [*tags, "12345"])
        assert await notified() == ['{"topic" : "t", "tags" : null}']

        load(cache, "a", "x")
        await other.execute(f"NOTIFY {CHANNEL}")  # by hand
        async with asyncio.timeout(5):
            while kept(cache, "a"):
                await asyncio.sleep(0.001)
