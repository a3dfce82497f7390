"""Checks of `app doctor`."""

from collections.abc import AsyncIterator

from app.kernel.doctor import Check, Finding, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME


async def unpacked(d: Deployment) -> AsyncIterator[Finding]:
    """Report orders that are not packed an hour after they were placed."""
    sql = "SELECT count(*) FROM orders.orders WHERE state = 'placed' AND created_at < now() - interval '1 hour'"
    (count,) = await d.one(sql)
    if count:
        yield warn(f"{count} orders wait for more than an hour", f"{NAME} jobs list --task orders.pack")


CHECKS = (Check("orders", "work", "Orders are packed soon.", unpacked),)
