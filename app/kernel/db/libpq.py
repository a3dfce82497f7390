"""libpq: its environment variables, and the reasons of failed connection attempts.

libpq does not report the SQLSTATE of a refused connection, and the message of the server may be in any language. The
protocol trace has the SQLSTATE, and shows whether TLS failed.
"""

import asyncio
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from loguru import logger
from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.waiting import Wait

from app.kernel.db.connection import hang_up

_VARIABLE = re.compile(r"PG[A-Z]+")  # PGHOSTADDR, PGOPTIONS, PGSERVICE, PGTZ and others; newer versions add more
_REFUSED = re.compile(r'\tErrorResponse\t.*? C "([0-9A-Z]{5})"')
_TLS_REFUSED, _TLS_BEGUN = "\tSSLResponse\t N", "\tSSLResponse\t S"
_PERMANENT = ("28", "3D", "42")  # authentication, database name, privileges
_PROTOCOL_VIOLATION = "08P01"  # of PgBouncer, for all its errors
_STATEMENT_POOLING = "statement pooling mode"
_WHO = """
    SELECT pg_backend_pid(), current_setting('transaction_read_only')::bool,
        extract(epoch FROM pg_postmaster_start_time())::text, oid
    FROM pg_catalog.pg_database WHERE datname = current_database()
"""
_ANSWER_S = 3.0
_NO_ANSWER = "check the server, and if PgBouncer is in between, whether it is paused or its server is down"
_UNRESOLVED = "check POSTGRES_HOST: no address found for it"
_HINTS = {  # by SQLSTATE, or by its class
    _PROTOCOL_VIOLATION: "check POSTGRES_USER, _PASSWORD and _DB, and PgBouncer's auth_file and [databases]",
    "28": "check POSTGRES_USER and POSTGRES_PASSWORD, and the server's pg_hba.conf",
    "3D": "check POSTGRES_DB, or create the database",
    "42": "let POSTGRES_USER connect to POSTGRES_DB (GRANT CONNECT)",
    "53300": "all connections are in use: raise max_connections, lower POSTGRES_POOL_SIZE, or stop other clients",
    "53": "it is short of memory or disk: free some",
    "57P03": "it is starting, stopping or recovering: try again",
}


def forget_variables() -> list[str]:
    """Remove libpq's variables from the environment, so that only settings apply; return their names.

    Safe to repeat. Call it before threads start, because the C library's environment is not thread-safe.
    """
    found = sorted(name for name in os.environ if _VARIABLE.fullmatch(name))
    for name in found:
        del os.environ[name]
    if found:
        logger.info("ignoring {}: the settings POSTGRES_* decide", ", ".join(found))
    return found


@dataclass(frozen=True, slots=True)
class Attempt:
    """Result of an attempt to connect.

    `server_version` is 0 after a failure; `reason` is then libpq's message, `sqlstate` the server's if it refused, and
    `hint` a remedy. `database` identifies the running server and the database; `is_pooled`: a pooler such as PgBouncer
    is in between; `is_read_only`: it accepts no writes, as a standby.
    """

    server_version: int = 0
    reason: str = ""
    sqlstate: str = ""
    in_tls: bool = False
    for_good: bool = False
    hint: str = ""
    database: tuple[Any, ...] = ()
    is_pooled: bool = False
    is_read_only: bool = False


async def attempt(conninfo: str, options: str = "") -> Attempt:
    """Connect and disconnect. A pooler may refuse the options of the session: then without them."""
    if options:
        ended = await _attempt(make_conninfo(conninfo, options=options))
        if ended.sqlstate != _PROTOCOL_VIOLATION:
            return ended
    return await _attempt(conninfo)


async def _attempt(conninfo: str) -> Attempt:
    traces: list[str] = []

    class Traced(psycopg.AsyncConnection[Any]):
        @classmethod
        def _connect_gen(cls, conninfo: str = "") -> Generator[tuple[int, Wait], Any, "Traced"]:
            connection = pq.PGconn.connect_start(conninfo.encode())
            with _traced(connection, traces):
                while (status := connection.connect_poll()) != pq.PollingStatus.OK:
                    if status == pq.PollingStatus.FAILED or connection.status == pq.ConnStatus.BAD:
                        raise psycopg.OperationalError(connection.get_error_message(), pgconn=connection)
                    wait = Wait.R if status == pq.PollingStatus.READING else Wait.W
                    while not (yield connection.socket, wait):
                        pass
            connection.nonblocking = 1
            return cls(connection)

    try:
        connection = await Traced.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        return _failed(error, traces[-1] if traces else "")
    except UnicodeError:  # from the resolver
        return Attempt(0, "the host is not a host name", hint=_UNRESOLVED)
    # PgBouncer lets a statement wait for a connection to its server
    deadline = asyncio.get_running_loop().call_later(_ANSWER_S, hang_up, connection)
    try:
        return await _asked(connection)
    except psycopg.Error as error:
        if deadline.when() <= asyncio.get_running_loop().time():
            return Attempt(0, f"a statement got no answer within {_ANSWER_S:g} s", hint=_NO_ANSWER)
        reason = " ".join(str(error).split())
        for_good = _STATEMENT_POOLING in reason
        hint = "set pool_mode = transaction in PgBouncer" if for_good else "try again"
        return Attempt(0, reason, error.sqlstate or "", for_good=for_good, hint=hint)
    finally:
        deadline.cancel()
        await connection.close()


async def _asked(connection: psycopg.AsyncConnection[Any]) -> Attempt:
    """Ask the server who it is. Raises psycopg.Error."""
    version, pid = connection.info.server_version, connection.info.backend_pid
    row = await (await connection.execute(_WHO)).fetchone()
    assert row is not None
    is_pooled = row[0] != pid  # a pooler makes process ids up, because a session has many
    if is_pooled:  # does it keep a transaction together?
        await connection.execute("BEGIN")
        await connection.execute("ROLLBACK")
    return Attempt(version, database=row[2:], is_pooled=is_pooled, is_read_only=row[1])


def _failed(error: psycopg.OperationalError, trace: str) -> Attempt:
    reason = " ".join(str(error).split())
    if states := _REFUSED.findall(trace):
        hint = _HINTS.get(states[-1]) or _HINTS.get(states[-1][:2], "try again")
        return Attempt(0, reason, states[-1], for_good=states[-1].startswith(_PERMANENT), hint=hint)
    last = trace.rstrip().rpartition("\n")[2]
    in_tls = last.endswith(_TLS_BEGUN) and not isinstance(error, psycopg.errors.ConnectionTimeout)
    asked = error.pgconn is not None and error.pgconn.needs_password  # and none is set
    hint = "start it, or check POSTGRES_HOST and POSTGRES_PORT"
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        hint = "check POSTGRES_HOST and POSTGRES_PORT, and firewalls"
    elif error.pgconn is None:
        hint = _UNRESOLVED
    elif asked:
        hint = "set POSTGRES_PASSWORD"
    elif in_tls or last.endswith(_TLS_REFUSED):
        hint = "check POSTGRES_SSL and POSTGRES_SSL_ROOT_CERT"
    return Attempt(0, reason, in_tls=in_tls, for_good=asked or last.endswith(_TLS_REFUSED), hint=hint)


@contextmanager
def _traced(connection: pq.abc.PGconn, traces: list[str]) -> Generator[None]:
    """Trace the protocol into memory, if libpq supports it."""
    if not hasattr(os, "memfd_create"):
        yield
        return
    memory = os.memfd_create("libpq-trace")
    try:
        with suppress(psycopg.NotSupportedError):
            connection.trace(memory)
            connection.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        yield
    finally:
        with suppress(psycopg.Error):
            connection.untrace()  # flushes
        size = os.fstat(memory).st_size
        traces.append(os.pread(memory, min(size, 1_000_000), 0).decode(errors="replace"))
        os.close(memory)
