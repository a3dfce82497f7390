"""Pulling from a durable consumer.

The requests are ours: `fetch` of the client library may wait for its whole timeout although messages are there, and
its subscriptions may be dead after an outage. A request without an answer by its deadline, and every new connection,
start the subscription anew.
"""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from loguru import logger

from app.kernel.errors import Unavailable
from app.kernel.queue import Subscriber
from app.kernel.queue.transport.nats.connection import Nats
from app.kernel.queue.transport.nats.stream import Stream, consumer_name

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

_EXPIRES_S = 5.0
_LATE_S = 1.0
_AGAIN_S = 0.5
_MOST = 1000


class Pull:
    """The subscription of a worker to a consumer. It has up to twice the worker's concurrency of events at hand."""

    def __init__(
        self,
        subscriber: Subscriber,
        nats: Nats,
        stream: Stream,
        concurrency: int,
        arrived: Callable[["Pull", "Msg"], None],
    ) -> None:
        self.subscriber = subscriber
        self._nats = nats
        self._request = f"$JS.API.CONSUMER.MSG.NEXT.{stream.settings.stream}.{consumer_name(subscriber.name)}"
        self._window = min(2 * concurrency, _MOST)
        self._arrived = arrived
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._generation = 0
        self._wanted = 0
        self._at_hand = 0
        self._deadline = 0.0
        self._arrived_count = self._arrived_before = 0
        self._wake = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Pull until cancelled or closed."""
        while not self._closed:
            try:
                await self._pull()
            except Unavailable:  # the connection reports it
                self._wanted = 0
                await asyncio.sleep(_AGAIN_S)
            self._wake.clear()
            left_s = max(0.001, self._deadline - time.monotonic())
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s if self._wanted else _EXPIRES_S):
                    await self._wake.wait()

    def one_ended(self) -> None:
        """Note that an event is not at hand any more."""
        self._at_hand -= 1
        if self._wanted + self._at_hand <= self._window // 2:
            self._wake.set()

    def is_stuck(self, waiting: int) -> bool:
        """Return whether nothing arrived since the last call although events wait and are wanted."""
        is_idle = self._arrived_count == self._arrived_before
        self._arrived_before = self._arrived_count
        return bool(waiting) and is_idle and not self._at_hand

    def restart(self) -> None:
        """Subscribe anew, with an address that no earlier request has."""
        self._generation = 0
        self._wake.set()

    async def close(self) -> None:
        """Receive nothing more. What is already on its way is delivered to others."""
        self._closed = True
        self._wake.set()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(Exception):
                async with asyncio.timeout(_LATE_S):
                    await subscription.drain()

    async def _pull(self) -> None:
        now = time.monotonic()
        if self._wanted and now >= self._deadline:
            self._generation = 0
        if self._generation != self._nats.generation:
            await self._subscribe()
        room = self._window - self._wanted - self._at_hand
        if room <= 0 or self._wanted + self._at_hand > self._window // 2:
            return
        body = json.dumps({"batch": room, "expires": int(_EXPIRES_S * 10**9)}).encode()
        self._wanted += room
        self._deadline = now + _EXPIRES_S + _LATE_S
        client = self._nats.client
        await self._nats.within(lambda: client.publish(self._request, body, reply=self._inbox))

    async def _subscribe(self) -> None:
        if self._subscription is not None:
            with suppress(Exception):
                await self._subscription.unsubscribe()
        generation, client = self._nats.generation, self._nats.client
        self._inbox, self._wanted = client.new_inbox(), 0
        self._subscription = await self._nats.subscribe(self._inbox, self._on_message)
        self._generation = generation

    async def _on_message(self, message: "Msg") -> None:
        if message.reply and not self._closed:
            self._wanted = max(0, self._wanted - 1)
            self._at_hand += 1
            self._arrived_count += 1
            self._arrived(self, message)
            if self._wanted + self._at_hand <= self._window // 2:
                self._wake.set()
        elif message.reply:
            await self._nats.client.publish(message.reply, b"-NAK")
        else:
            await self._on_status(message)

    async def _on_status(self, message: "Msg") -> None:
        """Note that a request has ended: expired, or refused because there is no such consumer."""
        headers = message.headers or {}
        status, description = headers.get("Status", ""), headers.get("Description", "").split("\n")[0]
        if status == "100":
            return
        pending = headers.get("Nats-Pending-Messages")
        self._wanted = max(0, self._wanted - int(pending)) if pending else 0
        if status not in ("404", "408"):
            logger.debug("NATS ended a request for events of {}: {} {}", self.subscriber.name, status, description)
            await asyncio.sleep(_AGAIN_S)
        self._wake.set()
