"""Orders on a real database, in this process."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from app.kernel.actions import Database, Note
from app.kernel.actions.compose import make
from app.kernel.cache import Invalidations
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.modules.orders.domain import OpenOrders, OrderNotFound, OrderPacked, TooManyOrders
from app.modules.orders.orders import NewOrder, OrderRef, Orders, OrdersWanted
from app.modules.orders.settings import OrdersSettings
from tests.conftest import TestDatabase
from tests.kernel.doctor.planted import Planted


async def test_an_order_that_was_packed_is_not_cancelled(process: Process) -> None:
    db, orders = await make(process, Database), await make(process, Orders)
    async with db.begin() as tx:
        order = await orders.place(tx, NewOrder("tea"), Note())
        await orders.pack(tx, OrderRef(order.id))
        with pytest.raises(OrderPacked):
            await orders.cancel(tx, OrderRef(order.id), Note())


async def test_a_cancelled_order_is_not_packed(process: Process) -> None:
    db, orders = await make(process, Database), await make(process, Orders)
    async with db.begin() as tx:
        order = await orders.place(tx, NewOrder("tea"), Note())
        await orders.cancel(tx, OrderRef(order.id), Note())
        await orders.pack(tx, OrderRef(order.id))
    assert [found.state for found in (await orders.list(db, OrdersWanted())).items] == ["cancelled"]


async def test_no_more_orders_are_open_than_the_settings_allow(process: Process, database: TestDatabase) -> None:
    # in place of what the settings say
    process.made[OrdersSettings] = replace(process.settings[OrdersSettings], max_open=1)
    db, orders = await make(process, Database), await make(process, Orders)
    async with db.begin() as tx:
        await orders.place(tx, NewOrder("tea"), Note())
        with pytest.raises(TooManyOrders):
            await orders.place(tx, NewOrder("coffee"), Note())
    assert database.all("SELECT type FROM kernel.events") == [("orders.order_placed",)]


async def test_the_number_of_open_orders_is_remembered_until_it_changes(
    process: Process, database: TestDatabase
) -> None:
    db, orders = await make(process, Database), await make(process, Orders)
    invalidations = await make(process, Invalidations)
    async with asyncio.timeout(10):
        while not invalidations.is_live:
            await asyncio.sleep(0.01)
    assert await orders.count_open(db) == OpenOrders(0)
    database.run("INSERT INTO orders.orders (id, item, quantity) VALUES (gen_random_uuid(), 'tea', 1)")
    assert await orders.count_open(db) == OpenOrders(0)
    async with db.begin() as tx:
        await orders.place(tx, NewOrder("tea"), Note())
    assert await orders.count_open(db) == OpenOrders(2)


async def test_an_unknown_order_cannot_be_cancelled(process: Process) -> None:
    db, orders = await make(process, Database), await make(process, Orders)
    async with db.begin() as tx:
        with pytest.raises(OrderNotFound):
            await orders.cancel(tx, OrderRef(uuid7()), Note())


async def test_an_order_that_nobody_packs_is_found_by_doctor(
    process: Process, database: TestDatabase, tmp_path: Path
) -> None:
    await make(process, Database)  # migrates
    found = Planted(tmp_path, database.env)
    assert await found.examine("orders") == {}
    database.run(
        "INSERT INTO orders.orders (id, item, quantity, created_at) SELECT gen_random_uuid(), 'tea', 1, '2026-01-01'"
    )
    assert await found.examine("orders") == {"orders": ("warn", "1 orders wait for more than an hour")}
    assert found.findings[0].fix == "app jobs list --task orders.pack"
