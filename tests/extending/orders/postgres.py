"""Orders in `orders.orders`."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Queries, Transaction
from app.modules.orders.domain import OpenOrders, Order, State


@dataclass(frozen=True, slots=True)
class PostgresOrders:
    """Orders in `orders.orders`."""

    async def add(self, tx: Transaction, order_id: UUID, item: str, quantity: int, limit: int) -> Order | None:
        """Store a new order; return it, or None when `limit` orders are open already.

        Concurrent calls may each find room for one more.
        """
        sql = """
            INSERT INTO orders.orders (id, item, quantity)
            SELECT %s, %s, %s WHERE (SELECT count(*) FROM orders.orders WHERE state = 'placed') < %s
            RETURNING id, item, quantity, state, created_at
        """
        row = await tx.one(sql, (order_id, item, quantity, limit))
        return None if row is None else Order(*row)

    async def page(self, db: Queries, state: State | None, limit: int, after: UUID | None) -> list[Order]:
        """Return orders after a given one, newest first."""
        sql = """
            SELECT id, item, quantity, state, created_at FROM orders.orders
            WHERE (%(state)s::text IS NULL OR state = %(state)s) AND (%(after)s::uuid IS NULL OR id < %(after)s)
            ORDER BY id DESC LIMIT %(limit)s
        """
        return [Order(*row) for row in await db.all(sql, {"state": state, "after": after, "limit": limit})]

    async def count_open(self, db: Queries) -> OpenOrders:
        """Return the number of orders that are not packed."""
        [(count,)] = await db.all("SELECT count(*) FROM orders.orders WHERE state = 'placed'")
        return OpenOrders(count)

    async def locked(self, tx: Transaction, order_id: UUID) -> Order | None:
        """Lock an order until the transaction ends, and return it."""
        sql = "SELECT id, item, quantity, state, created_at FROM orders.orders WHERE id = %s FOR UPDATE"
        row = await tx.one(sql, (order_id,))
        return None if row is None else Order(*row)

    async def set_state(self, tx: Transaction, order_id: UUID, state: State) -> None:
        """Change the state of an order."""
        await tx.run("UPDATE orders.orders SET state = %s WHERE id = %s", (state, order_id))

    async def delete_cancelled(self, db: Queries, retention_s: float) -> int:
        """Delete cancelled orders that were placed more than `retention_s` ago; return their number."""
        sql = """
            DELETE FROM orders.orders
            WHERE state = 'cancelled' AND created_at < now() - make_interval(secs => %s)
        """
        return await db.run(sql, (retention_s,))
