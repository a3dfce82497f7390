"""The PostgreSQL server of this process: the configured one, otherwise the embedded one."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import LiteralString

from loguru import logger
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from app.kernel.config import Misconfigured, PostgresSettings
from app.kernel.db.devserver.embedded import EmbeddedServer, EmbeddedUnavailable, embedded_server
from app.kernel.db.libpq import Attempt, attempt, forget_variables
from app.kernel.db.session import begin_with, session_options
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.process.needs import uses

_CONNECT_S = 2
_TELL_AFTER_S, _TELL_EVERY_S = 1.0, 5.0
_AGAIN_S = 0.25
_OLDEST = 150_000
_NO_POOLER = "LISTEN, advisory locks and migrations need the server itself"
_SAME = "let POSTGRES_DIRECT_HOST and POSTGRES_DIRECT_PORT name the server behind POSTGRES_HOST"


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to. `parameters` are libpq's; repr() omits them because of the password.

    `pool` are those of the pool of connections, if they differ. `is_pooled`: they lead to a pooler such as PgBouncer.
    """

    label: str
    parameters: Mapping[str, str | int] = field(repr=False)
    bin_dir: Path | None = None
    version: int = 0
    pool: Mapping[str, str | int] = field(default_factory=dict[str, str | int], repr=False)
    is_pooled: bool = False
    password: SecretStr | None = field(default=None, repr=False)
    """The password of new sessions, which may change while the process runs."""

    @property
    def pool_label(self) -> str:
        """Where the pool of connections leads."""
        return _label(self.pool) if self.pool else self.label

    def console_conninfo(self) -> str:
        """Return a libpq connection string of PgBouncer's console."""
        return make_conninfo("", **{**self.pool, "dbname": "pgbouncer"})

    def conninfo(self, **settings: str | int) -> str:
        """Return a libpq connection string of a session, with settings (times in milliseconds)."""
        return make_conninfo("", **self._now(self.parameters), options=session_options(self.version, settings))

    def pool_conninfo(self, **settings: str | int) -> str:
        """Return a libpq connection string of the pool. Behind a pooler, transactions have the settings: `begin`."""
        if self.is_pooled:
            return make_conninfo("", **self._now(self.pool))
        parameters = self._now(self.pool or self.parameters)
        return make_conninfo("", **parameters, options=session_options(self.version, settings))

    def _now(self, parameters: Mapping[str, str | int]) -> Mapping[str, str | int]:
        password = self.password.get_secret_value() if self.password else ""
        return {**parameters, "password": password} if password else parameters

    def begin(self, **settings: str | int) -> LiteralString:
        """Return the statement that begins a transaction of the pool."""
        return begin_with(self.version, settings) if self.is_pooled else "BEGIN"

    async def attempt(self) -> Attempt:
        """Connect and disconnect."""
        return await _attempt(self.parameters)


@asynccontextmanager
@uses(PostgresSettings)
async def server(p: Process) -> AsyncGenerator[Server]:
    """Provide the server, once it accepts connections.

    Raises Misconfigured when it refuses the connection or the embedded server is unavailable; Unavailable on timeout.
    """
    forget_variables()
    settings = p.settings[PostgresSettings]
    name = f"{p.name}@{socket.gethostname()}:{os.getpid()}"
    if not settings.host:
        if settings.direct_host:
            raise Misconfigured("postgres.direct_host (POSTGRES_DIRECT_HOST) needs postgres.host (POSTGRES_HOST), too")
        try:
            async with embedded_server(p.data / "postgres") as running:
                yield embedded(running, name)
        except EmbeddedUnavailable as error:
            raise Misconfigured(str(error)) from None
        return
    yield await _reached(configured_server(settings, name), settings.startup_timeout)


def _common(name: str) -> dict[str, str | int]:
    return {
        "application_name": name[:63],
        "connect_timeout": _CONNECT_S,
        "client_encoding": "UTF8",
        "gssencmode": "disable",
    }


def embedded(running: EmbeddedServer, name: str) -> Server:
    """Return the embedded server, for sessions with an application name."""
    where = {"host": running.socket_dir, "port": running.port, "user": running.user, "dbname": running.database}
    return Server("embedded", _common(name) | where, running.bin_dir, running.version)


def configured_server(settings: PostgresSettings, name: str) -> Server:
    """Return the server of the settings, for sessions with an application name. Does not connect."""
    parameters = _common(name) | {
        "host": settings.host,
        "port": settings.port,
        "user": settings.user,
        "dbname": settings.db,
        "sslmode": settings.ssl,
        # this process detects within seconds that the server is unreachable
        "tcp_user_timeout": 2_000,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    if password := settings.password.get_secret_value():
        parameters["password"] = password
    if settings.ssl == "verify-full":
        parameters["sslrootcert"] = settings.ssl_root_cert
    if not settings.direct_host:
        return Server(_label(parameters), parameters, password=settings.password)
    direct = {**parameters, "host": settings.direct_host, "port": settings.direct_port or settings.port}
    return Server(_label(direct), direct, pool=parameters, password=settings.password)


def _label(parameters: Mapping[str, str | int]) -> str:
    return f"{parameters['host']}:{parameters['port']}"


async def _attempt(parameters: Mapping[str, str | int]) -> Attempt:
    return await attempt(make_conninfo("", **parameters), session_options(0, {}))


async def _reached(server: Server, timeout_s: float) -> Server:
    """Wait until the server accepts connections. Raises Misconfigured, Unavailable."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await _answering(server.parameters, deadline)
        if found.is_pooled:
            raise pooler(server.label)
        if not server.pool:
            return replace(server, version=found.server_version)
        through = await _answering(server.pool, deadline)
        if through.database == found.database:
            return replace(server, version=found.server_version, is_pooled=through.is_pooled)
        if time.monotonic() >= deadline:  # after a restart or a failover, they may be the same again
            where = f"{server.pool_label} and at {server.label}"
            raise Misconfigured(f"PostgreSQL at {where} are not the same database; {_SAME}")
        await asyncio.sleep(_AGAIN_S)


def pooler(label: str) -> Misconfigured:
    """Return the error of a pooler where the server itself is needed."""
    error = Misconfigured(f"a connection pooler such as PgBouncer answers at {label}: {_NO_POOLER}")
    error.add_note("set POSTGRES_DIRECT_HOST, and POSTGRES_DIRECT_PORT if it differs, to the server behind it")
    return error


async def _answering(parameters: Mapping[str, str | int], deadline: float) -> Attempt:
    """Wait until a server accepts a connection."""
    label, tell_at = _label(parameters), time.monotonic() + _TELL_AFTER_S
    before = Attempt()
    while not (ended := await _attempt(parameters)).server_version:
        # a stopping server interrupts only one handshake
        if ended.for_good or (ended.in_tls and before.in_tls):
            raise Misconfigured(f"PostgreSQL at {label} refused: {ended.reason}; {ended.hint}")
        if time.monotonic() >= deadline:
            how = "accepts no connection" if ended.sqlstate else "does not answer"
            raise Unavailable(f"PostgreSQL at {label} {how}: {ended.reason}; {ended.hint}")
        if time.monotonic() >= tell_at:
            tell_at = time.monotonic() + _TELL_EVERY_S
            logger.warning("waiting for PostgreSQL at {}: {}", label, ended.reason)
        before = ended
        await asyncio.sleep(_AGAIN_S)
    if why := too_old(ended.server_version):
        raise Misconfigured(f"PostgreSQL at {label} is {why}")
    return ended


def too_old(version: int) -> str:
    """Return how a version is too old, or an empty text."""
    return f"version {version // 10_000}; 15 or newer is needed" if version < _OLDEST else ""
