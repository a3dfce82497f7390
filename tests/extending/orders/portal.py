"""The interface of orders to other modules: events."""

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID


@dataclass(frozen=True, slots=True)
class OrderPlaced:
    """An order was placed."""

    event_type: ClassVar[str] = "orders.order_placed"
    order_id: UUID
    item: str
