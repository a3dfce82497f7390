"""The listening connection of a process: LISTEN and NOTIFY of PostgreSQL, in a session of its own that avoids poolers.

It is opened for the first subscription. A connection that no longer delivers notifications is detected within
PROVE_S + ANSWER_S, even if the network drops packets silently: every PROVE_S, it notifies itself.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import LiteralString
from uuid import uuid4

import psycopg
from loguru import logger
from psycopg import sql

from app.kernel.db import Row
from app.kernel.db.connection import Connection
from app.kernel.db.server import server
from app.kernel.process import Process
from app.kernel.telemetry import metrics
from app.kernel.text import error_text

PROVE_S = 10.0
ANSWER_S = 5.0
_AGAIN_S = 1.0

_BEAT = "SELECT pg_backend_pid(), current_setting('transaction_read_only')::bool, pg_notify({}, '')"
_POOLER = "a connection pooler such as PgBouncer answers; LISTEN needs the server itself: set POSTGRES_DIRECT_HOST"


@dataclass(slots=True, eq=False)
class _Subscription:
    channel: str
    notified: Callable[[str], None]
    missed: Callable[[], None]
    ask_s: float
    is_begun: bool = False


class Listener:
    """Delivers notifications to subscriptions. `is_live`: all subscriptions receive their notifications."""

    def __init__(self, conninfo: Callable[..., str]) -> None:
        """`conninfo` returns a libpq connection string of a session with given settings."""
        self._conninfo = conninfo
        self._subscriptions: list[_Subscription] = []
        self._wake = asyncio.Event()
        self.is_live = False
        self.heard_at = 0.0
        """`time.monotonic()` when everything that had been notified was last known to have arrived."""
        self._connection: Connection | None = None

    @contextmanager
    def subscribed(
        self, channel: str, notified: Callable[[str], None], missed: Callable[[], None], ask_s: float = PROVE_S
    ) -> Generator[None]:
        """Inside, call `notified` with each payload of a channel, and `missed` when some may have been missed.

        `missed` is called once the channel is listened to, and after each outage. Neither may block. Every `ask_s`, the
        server is asked for an answer, which advances `heard_at`.
        """
        subscription = _Subscription(channel, notified, missed, ask_s)
        self._subscriptions.append(subscription)
        self.is_live = False
        self._wake.set()
        try:
            yield
        finally:
            self._subscriptions.remove(subscription)
            self._wake.set()

    def has_unread(self) -> bool:
        """Return whether something has arrived that is not delivered yet, such as while the event loop was busy."""
        return self._connection is None or self._connection.is_readable()

    async def run(self) -> None:
        """Deliver notifications until cancelled. Reconnects after an outage."""
        lost_at: float | None = None
        while True:
            try:
                while not self._subscriptions:
                    await self._woken()
                # nothing is written: the heartbeat need not wait for disks and standbys
                conninfo = self._conninfo(synchronous_commit="off")
                async with await Connection.connect(conninfo, autocommit=True) as connection:
                    session = _Session(connection)
                    await session.prove()
                    if lost_at is not None:
                        metrics.listener_reconnected()
                        logger.info("listener: receives notifications again after {:.0f} s", time.monotonic() - lost_at)
                        lost_at = None
                    self._connection = connection
                    await self._deliver(session)
            except Exception as error:  # noqa: BLE001 - whatever the reason, it must listen again
                if lost_at is None:
                    lost_at = time.monotonic()
                    logger.warning(
                        "listener: receives no notifications, reconnecting: {}", " ".join(error_text(error).split())
                    )
            finally:
                self.is_live, self._connection = False, None
                for subscription in self._subscriptions:
                    subscription.is_begun = False
            await asyncio.sleep(_AGAIN_S)

    async def _deliver(self, session: "_Session") -> None:
        proved_at = self.heard_at = time.monotonic()
        while True:
            await session.listen({subscription.channel for subscription in self._subscriptions})
            self._begin(session)
            ask_at = self.heard_at + min((each.ask_s for each in self._subscriptions), default=PROVE_S)
            if not session.has_backlog:
                with session.readable(self._wake.set):
                    await self._woken(max(0.0, min(ask_at, proved_at + PROVE_S) - time.monotonic()))
            asked_at = time.monotonic()
            for channel, payload in await session.received():  # which may have been delayed for long
                self._notify(channel, payload)
            if asked_at >= proved_at + PROVE_S:
                await session.prove()
                proved_at = self.heard_at = asked_at
            elif asked_at >= ask_at:
                await session.answer()
                self.heard_at = asked_at

    def _begin(self, session: "_Session") -> None:
        for subscription in list(self._subscriptions):
            if subscription.channel in session.channels and not subscription.is_begun:
                subscription.is_begun = True
                _call(subscription.missed)
        self.is_live = all(subscription.is_begun for subscription in self._subscriptions)

    def _notify(self, channel: str, payload: str) -> None:
        for subscription in list(self._subscriptions):
            if subscription.channel == channel and subscription.is_begun:
                _call(subscription.notified, payload)

    async def _woken(self, timeout_s: float | None = None) -> None:
        """Wait until something changes or arrives, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        self._wake.clear()


class _Session:
    """A listening session. Statements that are not answered in time fail."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._own = f"kernel_beat_{uuid4().hex}"
        self._has_own = False
        self._received: list[tuple[str, str]] = []
        self.channels: set[str] = set()
        self.has_backlog = False
        """Whether notifications may have been read already, so that the socket does not become readable."""

    async def listen(self, channels: set[str]) -> None:
        """Listen to these channels only."""
        for channel in channels - self.channels:
            await self._run("LISTEN {}", sql.Identifier(channel))
        for channel in self.channels - channels:
            await self._run("UNLISTEN {}", sql.Identifier(channel))
        self.channels = channels

    async def prove(self) -> None:
        """Receive a notification of its own. Raises psycopg.Error if that does not arrive in time."""
        deadline = time.monotonic() + ANSWER_S
        await self._run("LISTEN {}", sql.Identifier(self._own))
        row = await self._run(_BEAT, self._own)
        if row is None or row[0] != self._connection.info.backend_pid:
            raise psycopg.OperationalError(_POOLER)
        if row[1]:  # after a failover, another host may accept writes
            raise psycopg.OperationalError("the database is read-only")
        self._has_own = False
        await self._read(0)
        while not self._has_own:
            if (left_s := deadline - time.monotonic()) <= 0:
                raise psycopg.OperationalError("the server answers, but its notifications do not arrive")
            await self._read(left_s)
        await self._run("UNLISTEN {}", sql.Identifier(self._own))

    async def answer(self) -> None:
        """Wait for an answer of the server, before which it sends all notifications. It notifies nobody."""
        await self._run("SELECT {}", "")

    async def received(self) -> list[tuple[str, str]]:
        """Return the channels and payloads that have arrived."""
        self.has_backlog = False
        await self._read(0)
        found, self._received = self._received, []
        return found

    @contextmanager
    def readable(self, callback: Callable[[], object]) -> Generator[None]:
        """Inside, call back when something arrives."""
        loop, fileno = asyncio.get_running_loop(), self._connection.fileno()
        loop.add_reader(fileno, callback)
        try:
            yield
        finally:
            loop.remove_reader(fileno)

    async def _read(self, timeout_s: float) -> None:
        async for notification in self._connection.notifies(timeout=timeout_s, stop_after=1 if timeout_s else None):
            if notification.channel == self._own:
                self._has_own = True
            else:
                self._received.append((notification.channel, notification.payload))

    async def _run(self, statement: LiteralString, value: str | sql.Identifier) -> Row | None:
        loop = asyncio.get_running_loop()

        def give_up() -> None:
            nonlocal timer
            if self._connection.is_readable():  # this process was suspended, and the answer has arrived
                timer = loop.call_later(ANSWER_S, give_up)
            else:
                self._connection.hang_up()

        timer = loop.call_later(ANSWER_S, give_up)
        self.has_backlog = True
        try:
            cursor = await self._connection.execute(sql.SQL(statement).format(value))
            return await cursor.fetchone() if cursor.description else None
        except psycopg.Error as error:
            if self._connection.mute:
                raise psycopg.OperationalError(f"no answer within {ANSWER_S:g} s") from error
            raise
        finally:
            timer.cancel()


def _call(callback: Callable[..., None], *arguments: str) -> None:
    """Call a subscription. Its error is not to affect the others."""
    try:
        callback(*arguments)
    except Exception as error:  # noqa: BLE001 - a bug in the subscription
        logger.opt(exception=error).error("listener: a subscription failed: {}", error_text(error))


@asynccontextmanager
async def listening(conninfo: Callable[..., str]) -> AsyncGenerator[Listener]:
    """Listen meanwhile."""
    listener = Listener(conninfo)
    running = asyncio.ensure_future(listener.run())
    try:
        yield listener
    finally:
        while not running.done():  # psycopg may lose a cancellation
            running.cancel()
            await asyncio.wait({running}, timeout=1)


@asynccontextmanager
async def listener(p: Process) -> AsyncGenerator[Listener]:
    """Provide the listening connection of this process. Raises as `server` does."""
    found = await p.use(server)
    async with listening(found.conninfo) as opened:
        yield opened
