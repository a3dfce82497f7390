"""A connection of the pool, with timeouts for unresponsive servers and networks."""

import asyncio
import select
import socket
import struct
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from app.kernel.db import Row
from app.kernel.db.refusals import away, read_only

_CANCEL_S = 1.0
_CONNECT_S = 5.0  # shared by all hosts
_LEAST_S = 1.0
_ADDRESS_S = 5  # for each address of a host's name
_READ_ONLY = ("default_transaction_read_only", "in_hot_standby")  # reported by the server at the start of a session
_INVALIDATION = "kernel_cache "
_NOTIFICATION = "kernel_notify "
_SYNCHRONOUS_WAIT = "SyncRepWaitForLSN"  # its message is localised
_ABORT = struct.pack("ii", 1, 0)


class Connection(AsyncConnection[Row]):
    """A connection. When its task is cancelled, it asks the server to cancel the statement, within a second."""

    idle_since = 0.0
    opened_in = 0
    place = 0
    retire_at = 0.0
    mute = False
    is_unconfirmed = False
    """Whether somebody has cancelled the wait of a commit for a synchronous standby."""
    invalidations: list[str]
    """What the statements since the last check-in invalidate in caches (`kernel.invalidate`)."""
    notifications: list[tuple[str, str]]
    """What is to be notified after the commit (`kernel.notify_after_commit`)."""

    @classmethod
    async def open(cls, hosts: Sequence[str], *, is_pooled: bool = False, reads: bool = False) -> Self:
        """Connect to the first of some hosts that accepts writes; `place` is its index. `hosts` are connection strings.

        The hosts share five seconds, but each has at least one. A pooler that is the only host is not asked whether
        its server accepts writes. With `reads`, a host need not accept writes.
        Raises Unavailable; that it is read-only, if a host answered.
        """
        asks = is_pooled and len(hosts) > 1
        share_s = max(_LEAST_S, _CONNECT_S / len(hosts)) if len(hosts) > 1 else None
        is_read_only, cause = False, None
        for place, conninfo in enumerate(hosts):
            try:
                async with asyncio.timeout(share_s):
                    opened = await cls._opened(conninfo, is_pooled=is_pooled, asks=asks, reads=reads)
            except (psycopg.Error, OSError) as error:  # TimeoutError is one
                cause = error
                continue
            if opened is not None:
                opened.place, opened.invalidations, opened.notifications = place, [], []
                opened.add_notice_handler(opened._noticed)
                return opened
            is_read_only = True
        if is_read_only:
            raise read_only()
        raise away() from cause

    @classmethod
    async def _opened(cls, conninfo: str, *, is_pooled: bool, asks: bool, reads: bool) -> Self | None:
        """Connect; return None if the server is read-only. A pooler does not report that, but can be asked."""
        kept = {"prepare_threshold": None} if is_pooled else {}  # its sessions, and their prepared statements, vary
        opened = await cls.connect(conninfo, autocommit=True, connect_timeout=_ADDRESS_S, **kept)
        is_read_only = not (is_pooled or reads) and any(
            opened.info.parameter_status(name) == "on" for name in _READ_ONLY
        )
        try:
            if asks:
                row = await (await opened.execute("SHOW transaction_read_only")).fetchone()
                is_read_only = row == ("on",)
        except BaseException:
            opened.drop()
            raise
        if is_read_only:
            opened.drop()
        return None if is_read_only else opened

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        message = notice.message_primary or ""
        if notice.source_function == _SYNCHRONOUS_WAIT:
            self.is_unconfirmed = True
        elif notice.severity_nonlocalized != "INFO":
            return
        elif message.startswith(_INVALIDATION):
            self.invalidations.append(message.removeprefix(_INVALIDATION))
        elif message.startswith(_NOTIFICATION):
            channel, _, payload = message.removeprefix(_NOTIFICATION).partition(" ")
            self.notifications.append((channel, payload))

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        try:
            return await super().connect(*args, **kwargs)
        except (psycopg.OperationalError, asyncio.CancelledError) as error:
            _forget_attempt(error)
            raise

    @cached_property
    def statements(self) -> psycopg.AsyncCursor[Row]:
        """The cursor of all statements, whose results are read at once. A cursor per statement costs a quarter more."""
        return self.cursor()

    def is_readable(self) -> bool:
        """Return whether the server has sent data or closed the connection."""
        return self.closed or bool(self._poll.poll(0))

    @cached_property
    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return poll

    def reusable(self) -> bool:
        """Return whether it is open and outside a transaction."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    def drop(self) -> None:
        """Close it at once, without waiting for the server. Safe to repeat."""
        self.pgconn.finish()

    def hang_up(self) -> None:
        """Make the waiting statement fail at once, because the server did not answer in time."""
        self.mute = True
        hang_up(self)

    async def cancel_safe(self, *, timeout: float = _CANCEL_S) -> None:  # noqa: ASYNC109 - the signature is psycopg's
        await super().cancel_safe(timeout=min(timeout, _CANCEL_S))


def hang_up(connection: psycopg.Connection[Any] | AsyncConnection[Any]) -> None:
    """Shut the socket down: the waiting statement fails at once, without a message to the server.

    The reset makes the server release the session's locks when the network returns. Thread-safe. Safe to repeat.
    """
    with suppress(psycopg.Error, OSError):  # already closed
        sock = socket.socket(fileno=connection.fileno())
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            sock.shutdown(socket.SHUT_RDWR)
        finally:
            sock.detach()


def _forget_attempt(error: BaseException) -> None:
    """Close the socket of an abandoned attempt to connect.

    psycopg closes it when the error is garbage-collected; until then it would hold a connection of a frozen server.
    """
    following: BaseException | None = error
    while following is not None:
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__
