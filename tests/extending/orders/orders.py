"""Orders: place, list, cancel and pack them."""

from dataclasses import dataclass, replace
from typing import Annotated
from uuid import UUID

from annotated_types import Interval, Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read, subscriber, task
from app.kernel.cache.computed import Cache
from app.kernel.fields import IdOf
from app.kernel.identifiers import uuid7
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.queue import Schedule, Task
from app.kernel.queue.enqueue import Queue
from app.modules.orders.domain import OpenOrders, Order, OrderNotFound, OrderPacked, State, TooManyOrders
from app.modules.orders.portal import OrderPlaced
from app.modules.orders.postgres import PostgresOrders
from app.modules.orders.settings import OrdersSettings


@dataclass(frozen=True, slots=True)
class NewOrder:
    """A new order."""

    item: Annotated[str, Len(1, 100), Doc("Name of the item.")]
    quantity: Annotated[int, Interval(ge=1, le=1000), Doc("Quantity.")] = 1


@dataclass(frozen=True, slots=True)
class OrdersWanted:
    """Filters and page of a list of orders."""

    state: Annotated[State | None, Doc("Filter by state.")] = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class OrderRef:
    """An order."""

    id: Annotated[UUID, Doc("Id of the order."), IdOf("order", ("orders.orders",), "orders list")]


OPEN = "orders.open"
"""The tag of what depends on which orders are open."""
PACK = Task("orders.pack", OrderRef)
PRUNE = Task[None]("orders.prune")
SCHEDULES = (Schedule(PRUNE, cron="23 * * * *", overlap="skip"),)


@dataclass(frozen=True, slots=True)
class Orders:
    """Place, list and cancel orders."""

    orders: PostgresOrders
    queue: Queue
    cache: Cache
    settings: OrdersSettings

    @change(
        "orders.place_order",
        POST="/orders/v1/orders",
        status=201,
        permission="orders:orders:write",
        raises=(TooManyOrders,),
        command="orders place",
        examples=("--item tea --quantity 2",),
    )
    async def place(self, tx: Transaction, new: NewOrder, note: Note) -> Order:
        """Place an order. It is packed soon. Not safe to repeat: each call places one."""
        order = await self.orders.add(tx, uuid7(), new.item, new.quantity, self.settings.max_open)
        if order is None:
            raise TooManyOrders(f"{self.settings.max_open} orders are open (orders.max_open)")
        note.target = order.id
        await self.queue.publish(tx, OrderPlaced(order.id, order.item))
        await self.cache.invalidate(tx, OPEN)
        return order

    @read(
        "orders.list_orders",
        GET="/orders/v1/orders",
        permission="orders:orders:read",
        command="orders list",
        examples=("--state placed",),
    )
    async def list(self, db: Database, wanted: OrdersWanted) -> Page[Order]:
        """List orders, newest first."""
        found = await self.orders.page(db, wanted.state, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @read("orders.count_open", GET="/orders/v1/open-orders", permission="orders:orders:read")
    async def count_open(self, db: Database) -> OpenOrders:
        """Count the orders that wait to be packed."""
        return await self.cache.get_or_compute(
            "orders.open", 60, OpenOrders, lambda: self.orders.count_open(db), tags=(OPEN,)
        )

    @change(
        "orders.cancel_order",
        POST="/orders/v1/orders/{id}/cancel",
        permission="orders:orders:write",
        raises=(OrderNotFound, OrderPacked),
        command="orders cancel",
        confirm="Cancel the order {id}?",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def cancel(self, tx: Transaction, order: OrderRef, note: Note) -> Order:
        """Cancel an order that is not packed. Safe to repeat."""
        found = await self.orders.locked(tx, order.id)
        if found is None:
            raise OrderNotFound(f"there is no order {order.id}")
        if found.state == "packed":
            raise OrderPacked(f"{order.id} is packed")
        note.recorded = found.state == "placed"
        await self.orders.set_state(tx, order.id, "cancelled")
        await self.cache.invalidate(tx, OPEN)
        return replace(found, state="cancelled")

    @subscriber("orders.pack_placed_orders", OrderPlaced)
    async def on_placed(self, tx: Transaction, event: OrderPlaced) -> None:
        """Enqueue the packing of an order."""
        await self.queue.enqueue(tx, PACK, OrderRef(event.order_id))

    @task(PACK)
    async def pack(self, tx: Transaction, order: OrderRef) -> None:
        """Pack an order unless it was cancelled. Exactly once, because it takes the transaction."""
        found = await self.orders.locked(tx, order.id)
        if found is not None and found.state == "placed":
            await self.orders.set_state(tx, order.id, "packed")
            await self.cache.invalidate(tx, OPEN)

    @task(PRUNE)
    async def prune(self, db: Database) -> int:
        """Delete cancelled orders past their retention; return their number. Safe to repeat."""
        return await self.orders.delete_cancelled(db, self.settings.retention)
