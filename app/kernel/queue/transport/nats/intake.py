"""The intake: takes events from NATS into a worker.

Each subscription has a durable consumer, from which the workers pull. An event is run at once if it is delivered for
the first time, its subscriber is not in order, and its queue has neither pause nor limit; every other becomes a job.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from loguru import logger

from app.kernel.config import QueueSettings
from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.queue import Subscriber
from app.kernel.queue.transport.nats.connection import Refused
from app.kernel.queue.transport.nats.ledger import IN_PROGRESS, NAK, TERM, Delivery, delivery, take
from app.kernel.queue.transport.nats.pull import Pull
from app.kernel.queue.transport.nats.stream import Stream, Subscription
from app.kernel.queue.worker import InFlight
from app.kernel.telemetry import metrics

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_AGAIN_S = 1.0
_WATCH_EVERY_S = 15.0
_MOST_TAKEN = 500
_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TRACE = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context

# every pause and limit, as there are few
_CONTROLLED = """
    SELECT name FROM kernel.queues WHERE kernel.is_paused(paused_at, paused_until) OR concurrency IS NOT NULL
"""

# one of the consumers stores what all of them measure
_MEASURED = """
    UPDATE kernel.subscriptions s SET nats_pending = given.pending, measured_at = now()
    FROM unnest(%s::text[], %s::bigint[]) AS given (subscriber, pending)
    WHERE s.subscriber = given.subscriber AND s.subscriber IN (
        SELECT subscriber FROM kernel.subscriptions
        WHERE subscriber = ANY(%s) AND (measured_at IS NULL OR measured_at < now() - %s * interval '1 second')
        ORDER BY subscriber FOR UPDATE SKIP LOCKED
    )
"""


class Intake:
    """Pulls the events of some subscribers, until stopped."""

    def __init__(
        self,
        db: Database,
        stream: Stream,
        settings: QueueSettings,
        subscribers: Sequence[Subscriber],
        jobs: InFlight,
        start: Callable[[], None],
    ) -> None:
        self._db = db
        self._stream = stream
        self._nats = nats = stream.nats
        self._lease_s = settings.lease
        self._jobs = jobs
        self._start = start
        self._held: dict[str, Delivery] = {}
        """Events that are ready or running in this worker."""
        self._arrived: deque[tuple[Pull, Msg]] = deque()
        self._wake = asyncio.Event()
        self._pulls = [
            Pull(s, nats, stream, jobs.concurrency, self._on_arrival) for s in subscribers if s.queue in settings.names
        ]

    async def run(self) -> None:
        """Take events until cancelled."""
        async with asyncio.TaskGroup() as group:
            for pull in self._pulls:
                group.create_task(pull.run())
            group.create_task(self._renew())
            group.create_task(self._watch())
            group.create_task(self._take())

    async def stop(self) -> None:
        """Take no further events, and hand back those that have not been started."""
        for pull in self._pulls:
            await pull.close()
        while self._arrived:
            _, message = self._arrived.popleft()
            with suppress(Exception):
                await self._nats.client.publish(message.reply, NAK)

    async def close(self) -> None:
        """Hand back what is still running, and send the last acknowledgements."""
        await self.stop()
        for event in list(self._held.values()):
            await event.reply(NAK)
        with suppress(Unavailable):
            await self._nats.within(lambda: self._nats.client.flush(timeout=1))

    def _on_arrival(self, pull: Pull, message: "Msg") -> None:
        self._arrived.append((pull, message))
        self._wake.set()

    async def _take(self) -> None:
        """Start events, or turn them into jobs."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._arrived and (room := self._room()):
                try:
                    await self._take_some(room)
                except Unavailable as error:
                    logger.warning("intake: {}; events wait in NATS", error)
                    await asyncio.sleep(_AGAIN_S)

    def _room(self) -> int:
        return max(0, self._jobs.concurrency - len(self._held)) and _MOST_TAKEN

    async def _take_some(self, most: int) -> None:
        controlled = {name for (name,) in await self._db.all(_CONTROLLED)}
        direct: list[Delivery] = []
        indirect: list[Delivery] = []
        while self._arrived and len(indirect) < most and len(self._held) + len(direct) < self._jobs.concurrency:
            pull, message = self._arrived.popleft()
            try:
                event, is_first = self._delivery(pull, message)
            except ValueError:
                logger.error("ignored a message in {} that is no event of ours", message.subject)
                await self._nats.client.publish(message.reply, TERM)
                pull.one_ended()
                continue
            is_direct = is_first and event.payload is not None and not pull.subscriber.in_order
            (direct if is_direct and pull.subscriber.queue not in controlled else indirect).append(event)
        for event in direct:
            self._held[event.id] = event
        self._jobs.ready.extend(direct)
        self._start()
        if indirect:
            await self._turn_into_jobs(indirect)

    async def _turn_into_jobs(self, events: list[Delivery]) -> None:
        try:
            await take(self._db, events)
        except Unavailable:
            for event in events:
                await event.reply(NAK)
                event.released()
            raise
        for event in events:
            await event.acknowledge()
            event.released()

    def _delivery(self, pull: Pull, message: "Msg") -> tuple[Delivery, bool]:
        """Return an event, and whether this is its first delivery. Raises ValueError."""
        headers = message.headers or {}
        tokens = message.reply.split(".")  # with nine tokens, or with domain and account before the stream
        if len(tokens) < 9:
            raise ValueError("not delivered by a consumer")
        event_id, trace = headers.get("Nats-Msg-Id", ""), headers.get("traceparent")
        version = int(headers.get("Event-Version", "1"))
        if not 0 < version < 2**31:
            raise ValueError("no version of an event")
        event = delivery(
            pull.subscriber,
            event_id if _ID.fullmatch(event_id) else str(UUID(event_id)),
            version,
            message.data.decode() or None,
            trace if trace and _TRACE.fullmatch(trace) else None,
            partial(self._nats.client.publish, message.reply),
            partial(self._ended, pull),
        )
        return event, tokens[4 if len(tokens) == 9 else 6] == "1"

    def _ended(self, pull: Pull, event: Delivery) -> None:
        self._held.pop(event.id, None)
        pull.one_ended()
        if self._arrived:
            self._wake.set()

    async def _renew(self) -> None:
        """Tell the server of events that are still running, so that it does not deliver them to others."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            now = time.monotonic()
            for event in list(self._held.values()):
                if event.renewed_at < now - self._lease_s / 4 and self._nats.connected.is_set():
                    await event.reply(IN_PROGRESS)
                    event.renewed_at = now
            for _, message in list(self._arrived):
                with suppress(Exception):
                    await self._nats.client.publish(message.reply, IN_PROGRESS)

    async def _watch(self) -> None:
        """Compare what waits in NATS with what arrives, and start anew a subscription to which nothing comes."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            unacknowledged: dict[str, int] = {}
            for pull in self._pulls:
                with suppress(Unavailable, Refused):
                    found = await self._stream.consumer(pull.subscriber.name)
                    waiting = found["num_pending"] if found else 0
                    count = unacknowledged[pull.subscriber.name] = waiting + (found["num_ack_pending"] if found else 0)
                    metrics.events_waiting(pull.subscriber.name, count)
                    if found is None:
                        await self._stream.ensure([_subscription(pull.subscriber)])
                    elif pull.is_stuck(waiting):
                        logger.warning("{} events wait in NATS for {}, and none arrives; subscribing anew", waiting,
                                       pull.subscriber.name)  # fmt: skip
                        pull.restart()
            names = list(unacknowledged)
            with suppress(Unavailable):
                given = (names, list(unacknowledged.values()), names, _WATCH_EVERY_S / 2)
                await self._db.run(_MEASURED, given)


def _subscription(subscriber: Subscriber) -> Subscription:
    return Subscription(subscriber.name, subscriber.event.event_type, subscriber.in_order)
