"""The relay: sends the events of the outbox to NATS in the order of publishing, and deletes what is acknowledged.

Any number of relays run, one at a time works. An event of a relay that died is sent again; the stream ignores it.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loguru import logger

from app.kernel.config import NatsSettings, QueueSettings
from app.kernel.db import Database, Transaction
from app.kernel.db.listener import Listener, listener
from app.kernel.db.postgres import database
from app.kernel.errors import Unavailable
from app.kernel.process import Process, pause
from app.kernel.queue.transport.nats.connection import Nats, Refused, nats
from app.kernel.queue.transport.nats.outbox import CHANNEL
from app.kernel.queue.transport.nats.stream import Stream, Subscription
from app.kernel.services import Run
from app.kernel.telemetry import metrics

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_BATCH = 2000
_AGAIN_S = 1.0
_CHECK_EVERY_S = 60.0
_MEASURE_EVERY_S = 15.0
_HOLD = 5
"""How many of the longest waits for NATS a relay may keep its transaction, and its lock, without a statement."""
_HEADER_BYTES = 4096  # beside the payload, in the server's limit of a message

# The lock ends with the transaction, also that of a relay that froze. The commit need not wait for the disk: what is in
# the outbox again after a crash of the database is sent again, and recognised. A subscription that is registered before
# an event is published has its consumer before the event is sent.
_LOCK = """
    SELECT pg_try_advisory_xact_lock(1802661742, 0), set_config('idle_in_transaction_session_timeout', %s, true),
        set_config('synchronous_commit', 'off', true),
        ARRAY(SELECT subscriber FROM kernel.subscriptions ORDER BY subscriber),
        ARRAY(SELECT event_type FROM kernel.subscriptions ORDER BY subscriber),
        ARRAY(SELECT in_order FROM kernel.subscriptions ORDER BY subscriber)
"""
_NEXT = """
    SELECT seq, event_id::text, type, version, payload::text, trace_context FROM kernel.event_outbox
    ORDER BY seq LIMIT %s
"""
_SENT = "DELETE FROM kernel.event_outbox WHERE seq = ANY(%s)"
_MEASURE = """
    SELECT (SELECT count(*) FROM (SELECT FROM kernel.event_outbox LIMIT 100000) waiting), coalesce((
        SELECT greatest(0, extract(epoch FROM now() - published_at)) FROM kernel.event_outbox ORDER BY seq LIMIT 1
    ), 0)::float8
"""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row of the outbox."""

    seq: int
    event_id: str
    type: str
    version: int
    payload: str
    trace_context: str | None


class Relay:
    """Sends events until stopped."""

    def __init__(self, db: Database, nats: Nats, stream: Stream, poll_s: float) -> None:
        self._timeout_s = stream.settings.timeout
        self._longest_hold = f"{round(1000 * max(1.0, _HOLD * self._timeout_s))}ms"
        self._db = db
        self._nats = nats
        self._stream = stream
        self._poll_s = poll_s
        self.wake = asyncio.Event()
        self._acks = _Acks(nats)
        self._ensured: set[Subscription] = set()
        self._checked_at = self._measured_at = -_CHECK_EVERY_S
        self._generation = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set."""
        stopped = asyncio.ensure_future(stop.wait())
        stopped.add_done_callback(lambda _: self.wake.set())
        failing = False
        try:
            while not stop.is_set():
                self.wake.clear()
                try:
                    await self._measure()
                    more = await self._pass()
                    failing = False
                except (Unavailable, Refused) as error:
                    if not failing:
                        logger.warning("relay: {}; events wait in the database", error)
                    failing, more = True, False
                    await pause(stop, _AGAIN_S)
                if not more:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._poll_s):
                            await self.wake.wait()
        finally:
            stopped.cancel()
            await self._acks.close()

    async def _pass(self) -> bool:
        """Send a batch; return whether there may be more. Raises Refused, Unavailable."""
        self._nats.client  # noqa: B018 - raises while it is not connected, before anything is locked
        async with self._db.begin() as tx:
            row = await tx.one(_LOCK, (self._longest_hold,))
            assert row is not None
            is_ours, _, _, *columns = row
            if not is_ours:
                return False
            subscriptions = {Subscription(*found) for found in zip(*columns, strict=True)}
            waiting = [_Waiting(*found) for found in await tx.all(_NEXT, (_BATCH,))]
            await self._ensure(subscriptions)
            if not waiting:
                return False
            await self._send(tx, waiting, {s.event_type for s in subscriptions if s.in_order})
        return len(waiting) == _BATCH

    async def _ensure(self, subscriptions: set[Subscription]) -> None:
        """Create or change what is missing or differs in NATS: at once, after a reconnect, and every minute."""
        now = time.monotonic()
        if self._generation != self._nats.generation or now > self._checked_at + _CHECK_EVERY_S:
            await self._stream.ensure(subscriptions)
            await self._stream.forget([s.subscriber for s in subscriptions])
            self._generation, self._checked_at = self._nats.generation, now
        elif missing := subscriptions - self._ensured:
            await self._stream.ensure(missing)
        self._ensured = subscriptions

    async def _send(self, tx: Transaction, waiting: Sequence[_Waiting], ordered: set[str]) -> None:
        """Send events, and delete those that are acknowledged. Raises Unavailable if not all are.

        Events of a type that has a subscriber in order are sent one after the other, so that none overtakes another
        that fails. They are sent for as long as one may wait for NATS, and the rest in the next pass.
        """
        await self._acks.open()
        freely = [event for event in waiting if event.type not in ordered]
        sent = await self._acks.publish(self._message(event) for event in freely)
        done = [event.seq for event, is_sent in zip(freely, sent, strict=True) if is_sent]
        failed = len(freely) - len(done)
        until = time.monotonic() + self._timeout_s
        for event in waiting:
            if event.type in ordered:
                if time.monotonic() > until:
                    self.wake.set()
                    break
                if not (await self._acks.publish([self._message(event)]))[0]:
                    failed += 1
                    break
                done.append(event.seq)
        await tx.run(_SENT, (done,))
        if failed:
            self.wake.set()
            self._generation = 0  # the stream may have been deleted
            logger.warning("relay: NATS did not accept {} events: {}; sending them again", failed, self._acks.why)
            await asyncio.sleep(_AGAIN_S)

    def _message(self, event: _Waiting) -> tuple[str, bytes, dict[str, str]]:
        """Return subject, content and headers. What exceeds the server's limit is read from the log instead."""
        content = event.payload.encode()
        headers = {"Nats-Msg-Id": event.event_id, "Event-Version": str(event.version)}
        if event.trace_context:
            headers["traceparent"] = event.trace_context
        if len(content) + _HEADER_BYTES > self._nats.client.max_payload:
            content = b""
        return self._stream.subject(event.type), content, headers

    async def _measure(self) -> None:
        if time.monotonic() > self._measured_at + _MEASURE_EVERY_S:
            row = await self._db.one(_MEASURE)
            assert row is not None
            metrics.events_unsent(self._stream.settings.stream, row[0], row[1])
            self._measured_at = time.monotonic()


class _Acks:
    """Publishes messages without waiting for each, and collects their acknowledgements."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        self._inbox = ""
        self._subscription: Any = None
        self._generation = 0
        self._sent: list[bool] = []
        self._left = 0
        self._round = 0
        self._all = asyncio.Event()
        self.why = ""
        """Why the last event was not accepted."""

    async def open(self) -> None:
        """Subscribe to acknowledgements, in this connection. Raises Unavailable."""
        if self._generation != self._nats.generation:
            await self.close()
            self._inbox, self._generation = self._nats.client.new_inbox(), self._nats.generation
            self._subscription = await self._nats.subscribe(f"{self._inbox}.*.*", self._acknowledged)

    async def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            with suppress(Exception):
                await self._subscription.unsubscribe()
            self._subscription = None

    async def publish(self, messages: Any) -> list[bool]:
        """Return for each message whether the server has acknowledged it. Raises Unavailable if it cannot be sent."""
        client = self._nats.client
        given = list(messages)
        self._sent, self._left = [False] * len(given), len(given)
        self._round += 1
        self._all.clear()
        self.why = f"no answer from {self._nats.place}"

        async def send() -> None:
            for place, (subject, content, headers) in enumerate(given):
                reply = f"{self._inbox}.{self._round}.{place}"
                await client.publish(subject, content, reply=reply, headers=headers)
            await self._all.wait()

        if given:
            with suppress(Unavailable):  # what was acknowledged until then is sent
                await self._nats.within(send)
        return self._sent

    async def _acknowledged(self, message: "Msg") -> None:
        *_, sent_in, place = message.subject.split(".")
        if int(sent_in) != self._round:
            return  # too late: it is sent again, and ignored by the stream
        if b'"seq"' in message.data and b'"error"' not in message.data:
            self._sent[int(place)] = True
        else:
            self.why = _reason(message.data)
        self._left -= 1
        if not self._left:
            self._all.set()


def _reason(answer: bytes) -> str:
    """Return why the server did not store an event; an empty answer comes from a server without the stream."""
    try:
        error = json.loads(answer)["error"]
        return str(Refused(error.get("err_code", 0), error["description"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.decode(errors="replace") or "there is no such stream"


async def relay(p: Process) -> Run | None:
    """Return the service that relays events, if NATS is configured."""
    settings = p.settings[NatsSettings]
    if not settings.url.get_secret_value():
        return None
    db, queue, connection = await p.use(database), p.settings[QueueSettings], await p.use(nats)
    worker = Relay(db, connection, Stream(connection, settings, queue.lease), queue.poll_interval)
    heard: Listener = await p.use(listener)

    async def run(stop: asyncio.Event) -> None:
        with heard.subscribed(CHANNEL, lambda _: worker.wake.set(), worker.wake.set):
            await worker.run(stop)

    return run
