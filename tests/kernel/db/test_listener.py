"""The listening connection: what it delivers, and how it notices that nothing is delivered any more."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from psycopg.conninfo import make_conninfo

from app.kernel.db import listener as module
from app.kernel.db.listener import Listener, listening
from app.kernel.telemetry import metrics
from tests.conftest import TestDatabase
from tests.support.proxy import Proxy, proxy_to

NOTIFICATION = re.compile(rb"A\0\0\0.....[a-z_0-9]+\0[^\0]*\0", re.DOTALL)  # NotificationResponse of the protocol


@dataclass
class Heard:
    """What a subscription has received; `missed` counts the times that some may have been missed."""

    payloads: list[str] = field(default_factory=list)
    missed: int = 0

    def note(self) -> None:
        self.missed += 1


@dataclass
class Bench:
    """A listening connection through a proxy."""

    listener: Listener
    proxy: Proxy
    database: TestDatabase
    connects: list[None]

    @contextmanager
    def hearing(self, channel: str) -> Iterator[Heard]:
        heard = Heard()
        with self.listener.subscribed(channel, heard.payloads.append, heard.note):
            yield heard

    def notify(self, channel: str, payload: str) -> None:
        self.database.run("SELECT pg_notify(%s, %s)", channel, payload)


@pytest.fixture
async def bench(database: TestDatabase) -> AsyncIterator[Bench]:
    connects: list[None] = []
    server = database.server

    with proxy_to(server.host, server.port) as proxy:

        def conninfo(**_: object) -> str:
            connects.append(None)
            return make_conninfo(database.conninfo, host="127.0.0.1", port=proxy.port)

        async with listening(conninfo) as listener:
            yield Bench(listener, proxy, database, connects)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"PROVE_S": 0.2, "ANSWER_S": 0.5, "_AGAIN_S": 0.05}.items():
        monkeypatch.setattr(module, name, seconds)


async def until(true: Callable[[], object], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def reconnects() -> float:
    found = re.search(r"^db_listener_reconnects_total (\S+)$", metrics.exposition()[0].decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def test_each_subscription_receives_its_channel_while_it_lasts(bench: Bench) -> None:
    await asyncio.sleep(0.05)
    assert not bench.connects  # not before somebody subscribes
    with bench.hearing("first") as first:
        assert not bench.listener.is_live
        await until(lambda: bench.listener.is_live)
        bench.notify("first", "1")
        await until(lambda: first.payloads == ["1"])
        with bench.hearing('Second, "quoted"') as second, bench.hearing("first") as same:
            assert not bench.listener.is_live
            await until(lambda: bench.listener.is_live)
            assert (first.missed, second.missed, same.missed) == (1, 1, 1)
            for number in range(200):
                bench.notify("first", f"a{number}")
                bench.notify('Second, "quoted"', f"b{number}")
            await until(lambda: len(second.payloads) == 200)
        await until(lambda: len(first.payloads) == 201)
        assert same.payloads == first.payloads[1:] == [f"a{number}" for number in range(200)]
        assert second.payloads == [f"b{number}" for number in range(200)]
        bench.notify('Second, "quoted"', "late")
        bench.notify("first", "last")
        await until(lambda: first.payloads[-1] == "last")
        assert (same.payloads[-1], second.payloads[-1]) == ("a199", "b199")
    assert len(bench.connects) == 1


async def test_a_subscription_that_fails_does_not_affect_the_others(bench: Bench) -> None:
    def fail(*_: str) -> None:
        raise ValueError("of the subscription")

    with bench.listener.subscribed("jobs", fail, fail), bench.hearing("jobs") as other:
        await until(lambda: bench.listener.is_live)
        bench.notify("jobs", "1")
        await until(lambda: other.payloads == ["1"])
    assert (other.missed, len(bench.connects)) == (1, 1)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("cut", ["silently", "deaf", "closed"])
async def test_a_connection_that_delivers_nothing_is_replaced(bench: Bench, cut: str) -> None:
    before = reconnects()
    with bench.hearing("jobs") as heard:
        await until(lambda: bench.listener.is_live)
        bench.notify("jobs", "before")
        await until(lambda: heard.payloads == ["before"])
        await asyncio.sleep(4 * module.PROVE_S)
        assert (heard.missed, reconnects() - before) == (1, 0)  # silence alone is no outage
        if cut == "silently":
            bench.proxy.forget()
        elif cut == "deaf":  # it answers statements
            bench.proxy.lost = NOTIFICATION
        else:
            bench.database.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
        await until(lambda: not bench.listener.is_live)
        bench.notify("jobs", "missed")
        bench.proxy.lost = re.compile(rb"(?!)")
        await until(lambda: bench.listener.is_live)
        assert (heard.missed, reconnects() - before) == (2, 1)
        bench.notify("jobs", "after")
        await until(lambda: heard.payloads == ["before", "after"])


def test_an_outage_is_noticed_within_half_a_minute() -> None:
    assert module.PROVE_S + module.ANSWER_S <= 30
