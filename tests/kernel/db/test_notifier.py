"""Notifications that are sent after commits."""

import asyncio

from app.composition import constraints
from app.kernel.config import load
from app.kernel.db.listener import listening
from app.kernel.db.notifier import Notifier
from app.kernel.db.postgres import database as provider
from app.kernel.errors import Invalid
from app.kernel.process import Process
from app.processes import sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT


async def test_one_statement_at_a_time_sends_what_has_come_meanwhile_and_equal_ones_once() -> None:
    sent: list[list[str]] = []
    gate = asyncio.Event()

    async def send(_: list[str], payloads: list[str]) -> None:
        sent.append(payloads)
        if len(sent) == 2:
            notifier.add([("jobs", "4")])
            raise Invalid("these are lost, the next ones are not")
        await gate.wait()

    notifier = Notifier(send)
    notifier.add([("jobs", "1")])
    await asyncio.sleep(0)
    for _ in range(100):
        notifier.add([("jobs", "2"), ("jobs", "3")])
    assert sent == [["1"]]
    gate.set()
    await notifier.sent()
    notifier.add([("jobs", "1")])
    await notifier.sent()
    assert sent == [["1"], ["2", "3"], ["4"], ["1"]]


async def test_a_transaction_notifies_when_it_has_committed_also_if_the_process_ends_then(
    database: TestDatabase,
) -> None:
    heard: list[str] = []
    began, notify = asyncio.Event(), "SELECT kernel.notify_after_commit('jobs', %s)"
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with listening(lambda **_: database.conninfo) as listener, asyncio.timeout(20):
        with listener.subscribed("jobs", heard.append, began.set):
            await began.wait()
            async with Process("test", settings, ROOT, constraints=constraints()).opened() as p:
                db = await p.use(provider)
                async with db.begin() as tx:
                    await tx.one(notify, ("in a transaction",))
                    await db.one(notify, ("alone",))
                    while heard != ["alone"]:
                        await asyncio.sleep(0.01)
                async with db.begin() as tx:
                    await tx.one(notify, ("last",))
            while heard != ["alone", "in a transaction", "last"]:
                await asyncio.sleep(0.01)
