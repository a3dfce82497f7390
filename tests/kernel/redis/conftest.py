"""Servers shared by the tests of a file, and connections that are closed when a test ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from app.kernel.redis.address import address
from app.kernel.redis.connections import Redis, connected
from app.kernel.telemetry import metrics
from tests.support.valkey import Valkey, servers


def waited() -> int:
    """Return how many commands have waited for an answer in vain, or were refused by a server, so far."""
    found = metrics._REDIS_DURATION._durations.items()
    return sum(sum(durations.counts) for (_, outcome), durations in found if outcome == "failed")


Connect = Callable[..., Awaitable[Redis]]


@pytest.fixture
def started() -> Iterator[list[Valkey]]:
    """Servers that end with the test."""
    with servers() as found:
        yield found


@pytest.fixture
def valkey(started: list[Valkey], tmp_path_factory: pytest.TempPathFactory) -> Valkey:
    """A server that the test may freeze or kill."""
    started.append(Valkey(tmp_path_factory.mktemp("valkey")))
    return started[-1]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open connections as a process does, probing while Redis is unavailable."""
    opened: list[tuple[Redis, asyncio.Task[None]]] = []

    async def open_(url: str, root_cert: str = "system", timeout_s: float = 1.0) -> Redis:
        made = connected(address(url), root_cert, timeout_s)
        await made.open()
        opened.append((made, asyncio.ensure_future(made.watch())))
        return made

    yield open_
    for made, watching in opened:
        watching.cancel()
        await asyncio.wait({watching})
        await made.close()
