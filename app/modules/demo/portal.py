"""The event of the demo."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class OrderPlaced:
    """A customer has placed an order."""

    event_type: ClassVar[str] = "demo.order_placed"
    number: int
    customer: str
    cents: int
