"""Orders, and refusals."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.errors import Conflict, NotFound

State = Literal["placed", "packed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Order:
    """An order."""

    id: UUID
    item: str
    quantity: int
    state: State
    created_at: datetime

    columns: ClassVar[Columns] = (
        Column("order", "id"),
        Column("item"),
        Column("quantity"),
        Column("state"),
        Column("placed", "created_at"),
    )


@dataclass(frozen=True, slots=True)
class OpenOrders:
    """How many orders wait to be packed."""

    count: int


class OrderNotFound(NotFound):
    code = "ORDER_NOT_FOUND"
    title = "There is no such order"


class TooManyOrders(Conflict):
    code = "TOO_MANY_ORDERS"
    title = "Too many orders are open"


class OrderPacked(Conflict):
    code = "ORDER_PACKED"
    title = "The order is packed"
