"""Settings of the orders module."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from app.kernel.config import Duration


@dataclass(frozen=True, slots=True)
class OrdersSettings:
    """Limits of orders."""

    section: ClassVar[str] = "orders"
    max_open: Annotated[int, Field(ge=1, le=1_000_000, description="maximum number of open orders")] = 100
    retention: Annotated[Duration, Field(ge=3600, description="cancelled orders are deleted after this")] = 86400.0
