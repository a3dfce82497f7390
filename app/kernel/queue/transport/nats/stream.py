"""The stream of events and its consumers, one for each subscription. We create and change them.

The stream keeps an event until every consumer has acknowledged it, and refuses events when it is full, so that they
wait in the outbox: nothing is lost.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from loguru import logger

from app.kernel.config import NatsSettings
from app.kernel.queue.transport.nats.connection import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, Nats, Refused

DUPLICATES_S = 120
"""How long the stream recognises an event that is sent again."""
_LONGEST_NAME = 200
_MOST_UNACKNOWLEDGED = 20_000


@dataclass(frozen=True, slots=True)
class Subscription:
    """A row of `kernel.subscriptions`, as far as NATS is concerned."""

    subscriber: str
    event_type: str
    in_order: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream of a deployment. Every method raises Refused, Unavailable."""

    nats: Nats
    settings: NatsSettings
    lease_s: float

    def subject(self, event_type: str) -> str:
        """Return the subject of the events of a type: `app-events.auth.actor_disabled`."""
        quoted = quote(event_type, safe="")
        if ".." in quoted or quoted.startswith(".") or quoted.endswith("."):
            quoted = quoted.replace(".", "%2E")
        return f"{self.settings.stream}.{quoted}"

    def wanted(self) -> dict[str, Any]:
        """Return the configuration of the stream, in the words of JetStream's API."""
        return {
            "name": self.settings.stream,
            "subjects": [f"{self.settings.stream}.>"],
            "retention": "interest",
            "discard": "new",
            "storage": "file",
            "num_replicas": self.settings.replicas,
            "max_bytes": self.settings.max_bytes or -1,
            "max_msgs": -1,
            "max_age": 0,
            "duplicate_window": DUPLICATES_S * 10**9,
        }

    def wanted_consumer(self, subscription: Subscription) -> dict[str, Any]:
        """Return the configuration of a subscription's consumer. One in order has one event at a time."""
        name = consumer_name(subscription.subscriber)
        return {
            "name": name,
            "durable_name": name,
            "description": subscription.subscriber,
            "filter_subject": self.subject(subscription.event_type),
            "ack_policy": "explicit",
            "ack_wait": round(self.lease_s * 10**9),
            "max_deliver": -1,
            "max_ack_pending": 1 if subscription.in_order else _MOST_UNACKNOWLEDGED,
        }

    async def info(self) -> dict[str, Any] | None:
        """Return configuration and state of the stream, None if there is none."""
        try:
            return await self.nats.call(f"STREAM.INFO.{self.settings.stream}")
        except Refused as error:
            if error.code == STREAM_NOT_FOUND:
                return None
            raise

    async def consumer(self, subscriber: str) -> dict[str, Any] | None:
        """Return configuration and state of a consumer, None if there is none."""
        try:
            return await self.nats.call(f"CONSUMER.INFO.{self.settings.stream}.{consumer_name(subscriber)}")
        except Refused as error:
            if error.code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
                return None
            raise

    async def ensure(self, subscriptions: Iterable[Subscription]) -> None:
        """Create or change the stream and the consumers. Safe to repeat."""
        wanted = self.wanted()
        found = await self.info()
        if found is None:
            await self.nats.call(f"STREAM.CREATE.{self.settings.stream}", wanted)
            logger.info("created the stream {} in NATS", self.settings.stream)
        elif changed := differing(found["config"], wanted):
            await self.nats.call(f"STREAM.UPDATE.{self.settings.stream}", found["config"] | wanted)
            logger.info("changed {} of the stream {} in NATS", ", ".join(changed), self.settings.stream)
        for subscription in subscriptions:
            await self._ensure_consumer(subscription)

    async def _ensure_consumer(self, subscription: Subscription) -> None:
        wanted = self.wanted_consumer(subscription)
        found = await self.consumer(subscription.subscriber)
        config = {"deliver_policy": "new", **wanted}
        if found is not None:
            if not differing(found["config"], wanted):
                return
            config = found["config"] | wanted
        create = {"stream_name": self.settings.stream, "config": config}
        await self.nats.call(f"CONSUMER.DURABLE.CREATE.{self.settings.stream}.{wanted['name']}", create)

    async def forget(self, subscribers: Sequence[str]) -> None:
        """Delete the consumers of all other subscribers, unless a process still pulls from them."""
        kept = {consumer_name(subscriber) for subscriber in subscribers}
        for name in [name for name in await self.consumers() if name not in kept]:
            if (await self.nats.call(f"CONSUMER.INFO.{self.settings.stream}.{name}")).get("num_waiting"):
                logger.warning("the consumer {} in NATS is used, but has no subscription in this database", name)
                continue
            await self.nats.call(f"CONSUMER.DELETE.{self.settings.stream}.{name}")
            logger.warning("deleted the consumer {} in NATS: it has had no subscriber for a week", name)

    async def consumers(self) -> list[str]:
        """Return the names of all consumers."""
        names: list[str] = []
        while True:
            page = await self.nats.call(f"CONSUMER.NAMES.{self.settings.stream}", {"offset": len(names)})
            names += page.get("consumers") or []
            if len(names) >= page.get("total", 0) or not page.get("consumers"):
                return names


def consumer_name(subscriber: str) -> str:
    """Return the name of a subscriber's consumer: `shop-count_actors` of `shop.count_actors`."""
    name = quote(subscriber.replace("%", "%25").replace("-", "%2D").replace(".", "-"), safe="%-_")
    if len(name) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(subscriber.encode()).hexdigest()


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the keys of a configuration that differ from what is wanted."""
    return [key for key, value in wanted.items() if found.get(key, _DEFAULTS.get(key)) != value]


_DEFAULTS: dict[str, Any] = {"max_age": 0, "max_bytes": -1, "max_msgs": -1, "num_replicas": 1}
