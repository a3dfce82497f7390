"""The jobs of a shop, and how they fail: rarely, until a gateway is back, always, by taking too long."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from app.kernel.actions import subscriber, task
from app.kernel.db import Queries
from app.kernel.queue import NeverRetry, RetryAfter, Schedule, Task
from app.kernel.queue.enqueue import Queue
from app.modules.demo.portal import OrderPlaced

_CUSTOMERS = ("ada", "grace", "linus", "barbara", "edsger", "margaret", "donald", "hedy")
_RANDOM = Random(1815)  # noqa: S311 - nothing is secret here


@dataclass(frozen=True, slots=True)
class Order:
    """An order; its payment fails until a moment."""

    number: int
    customer: str
    cents: int
    card: str = ""
    fails_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Feed:
    """A file of a supplier."""

    url: str
    row: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that becomes smaller, within seconds."""

    path: str
    seconds: float


INVOICE = Task("demo.send_invoice", Order, max_attempts=5)
CHARGE = Task("demo.charge_card", Order, queue="payments", max_attempts=1)
IMPORT = Task("demo.import_feed", Feed, queue="imports", max_attempts=1)
REPORT = Task("demo.render_report", Order, queue="reports", max_attempts=1, timeout_s=0.5)
RESIZE = Task("demo.resize_picture", Picture, queue="pictures")
SYNC = Task("demo.sync_partner", Order, queue="partners")
CLEAN = Task[None]("demo.clean_carts")
STATEMENT = Task[None]("demo.monthly_statement")
RATES = Task[None]("demo.fetch_exchange_rates", max_attempts=2)
SCHEDULES = (
    Schedule(CLEAN, cron="*/5 * * * *", overlap="skip"),
    Schedule(STATEMENT, cron="30 2 1 * *", timezone="Europe/Berlin"),
    Schedule(RATES, every_s=120, misfire="skip"),
)


class CardDeclined(Exception):
    """The bank refuses the card."""


class GatewayUnreachable(Exception):
    """The payment gateway does not answer."""


@dataclass(frozen=True, slots=True)
class Shop:
    """Sell things, some of which go wrong."""

    queue: Queue

    @subscriber("demo.pack_order", OrderPlaced, in_order=True)
    async def pack(self, order: OrderPlaced) -> str:
        """Pack orders one after the other."""
        await asyncio.sleep(0.01)
        return f"parcel {order.number}"

    @subscriber("demo.tell_warehouse", OrderPlaced, max_attempts=8)
    async def tell_warehouse(self, order: OrderPlaced) -> None:
        """Send an order to the warehouse, which is restarting at times: the second attempt succeeds."""
        if order.number % 17 == 0 and _RANDOM.random() < 0.6:
            raise RetryAfter(5, "the warehouse restarts")

    @subscriber("demo.update_search", OrderPlaced, queue="search")
    async def update_search(self, order: OrderPlaced) -> str:
        """Update the index that customers search."""
        await asyncio.sleep(_RANDOM.random() / 20)
        return f"order {order.number}"

    @task(INVOICE)
    async def send_invoice(self, order: Order) -> None:
        """Send an invoice. The mail server refuses a connection at times, so some need a second attempt."""
        await asyncio.sleep(0.02)
        if _RANDOM.random() < 0.08:
            raise ConnectionRefusedError(f"mail.example.com:25 refused the invoice {order.number}")

    @task(CHARGE)
    async def charge_card(self, order: Order) -> None:
        """Charge a card. Until the gateway is back, this fails; retrying the dead letters then succeeds."""
        if order.fails_until is not None and datetime.now(UTC) < order.fails_until:
            raise GatewayUnreachable("gateway.example.com did not answer within 2 s")
        if order.cents > 90_000 and order.fails_until is None:
            raise CardDeclined(f"the bank declined {order.cents / 100:.2f} EUR")
        await asyncio.sleep(0.05)

    @task(IMPORT)
    async def import_feed(self, feed: Feed) -> int:
        """Import a row of a supplier's file. Some rows are broken, and stay so."""
        row = {"sku": feed.row} if feed.row % 9 else {"name": "without a number"}
        return int(row["sku"])

    @task(REPORT)
    async def render_report(self, order: Order) -> None:
        """Render a report. Large ones exceed their timeout."""
        await asyncio.sleep(2 if order.cents > 80_000 else 0.1)

    @task(RESIZE)
    async def resize_picture(self, picture: Picture) -> None:
        """Make a picture smaller, which takes a while."""
        if picture.path.endswith(".svg"):
            raise NeverRetry(f"{picture.path} is no bitmap")
        await asyncio.sleep(picture.seconds)

    @task(SYNC)
    async def sync_partner(self, order: Order) -> str:
        """Send an order to a partner."""
        await asyncio.sleep(0.1)
        return f"order {order.number}"

    @task(CLEAN)
    async def clean_carts(self) -> int:
        """Remove carts that nobody came back to."""
        return _RANDOM.randrange(40)

    @task(STATEMENT)
    async def monthly_statement(self) -> None:
        """Write the statement of a month."""

    @task(RATES)
    async def fetch_exchange_rates(self) -> None:
        """Fetch exchange rates. Every third time, the answer is not what was expected."""
        if datetime.now(UTC).minute % 6 == 0:
            raise ValueError("the rates have no EUR")

    async def sell(self, db: Queries, number: int, *, fails_until: datetime | None = None) -> None:
        """Place an order, with everything that follows from it."""
        who, cents = _RANDOM.choice(_CUSTOMERS), _RANDOM.randrange(500, 100_000)
        order = Order(number, f"{who}@example.com", cents, "4111 1111 1111 1111", fails_until)
        await self.queue.publish(db, OrderPlaced(number, order.customer, cents))
        picture = Picture(f"pictures/{number}.{'svg' if number % 30 == 0 else 'jpg'}", number % 7)
        feed = Feed(f"https://supplier.example.com/{number % 5}.csv", number)
        every: tuple[tuple[int, Task[Any], object], ...] = (
            (1, INVOICE, order),
            (2, CHARGE, order),
            (4, IMPORT, feed),
            (6, RESIZE, picture),
            (7, REPORT, order),
            (8, SYNC, order),
        )
        for orders, kind, payload in every:
            if number % orders == 0:
                await self.queue.enqueue(db, kind, payload)
