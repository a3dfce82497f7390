"""The PostgreSQL server of this process: the configured one, otherwise the embedded one."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from loguru import logger
from psycopg.conninfo import make_conninfo

from app.kernel.config import Misconfigured, PostgresSettings
from app.kernel.db.devserver.embedded import EmbeddedServer, EmbeddedUnavailable, embedded_server
from app.kernel.db.libpq import Attempt, attempt, forget_variables
from app.kernel.errors import Unavailable
from app.kernel.process import Process

_CONNECT_S = 2
_TELL_AFTER_S, _TELL_EVERY_S = 1.0, 5.0
_AGAIN_S = 0.25
_OLDEST = 150_000
_TRANSACTION_TIMEOUT = 170_000  # the version that has it

# required values, because a role or a database may have others. Not default_transaction_read_only: operators set it
_SESSION: dict[str, str | int] = {
    "timezone": "UTC",
    "datestyle": "ISO,MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": 1,
    "array_nulls": "on",
    "transform_null_equals": "off",
    "standard_conforming_strings": "on",
    "search_path": "public",
    "row_security": "on",
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_deferrable": "off",
    "exit_on_error": "off",
    "client_min_messages": "warning",
    "statement_timeout": 10_000,
    "lock_timeout": 10_000,
    "idle_in_transaction_session_timeout": 60_000,
    "idle_session_timeout": 0,
    # the server detects within seconds that this process has died, and releases its locks
    "tcp_keepalives_idle": 2,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 4,
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to. `parameters` are libpq's; repr() omits them because of the password."""

    label: str
    parameters: Mapping[str, str | int] = field(repr=False)
    bin_dir: Path | None = None
    version: int = 0

    def conninfo(self, **options: str | int) -> str:
        """Return a libpq connection string with session settings (times in milliseconds)."""
        settings = _SESSION | options
        if self.version >= _TRANSACTION_TIMEOUT:
            settings["transaction_timeout"] = 0
        session = " ".join(f"-c {name}={value}" for name, value in settings.items())
        return make_conninfo("", **self.parameters, options=session)


@asynccontextmanager
async def server(p: Process) -> AsyncGenerator[Server]:
    """Provide the server, once it accepts connections.

    Raises Misconfigured when it refuses the connection or the embedded server is unavailable; Unavailable on timeout.
    """
    forget_variables()
    settings = p.settings[PostgresSettings]
    name = f"{p.name}@{socket.gethostname()}:{os.getpid()}"
    if not settings.host:
        try:
            async with embedded_server(p.data / "postgres") as running:
                yield embedded(running, name)
        except EmbeddedUnavailable as error:
            raise Misconfigured(str(error)) from None
        return
    configured = configured_server(settings, name)
    yield replace(configured, version=await _answering(configured, settings.startup_timeout))


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
    return Server(f"{settings.host}:{settings.port}", parameters)


async def _answering(server: Server, timeout_s: float) -> int:
    """Wait until the server accepts a connection; return its version."""
    deadline, tell_at = time.monotonic() + timeout_s, time.monotonic() + _TELL_AFTER_S
    before = Attempt()
    while not (ended := await attempt(server.conninfo())).server_version:
        # a stopping server interrupts only one handshake
        if ended.for_good or (ended.in_tls and before.in_tls):
            raise Misconfigured(f"PostgreSQL at {server.label} refused: {ended.reason}; {ended.hint}")
        if time.monotonic() >= deadline:
            how = "accepts no connection" if ended.sqlstate else "does not answer"
            raise Unavailable(f"PostgreSQL at {server.label} {how}: {ended.reason}; {ended.hint}")
        if time.monotonic() >= tell_at:
            tell_at = time.monotonic() + _TELL_EVERY_S
            logger.warning("waiting for PostgreSQL at {}: {}", server.label, ended.reason)
        before = ended
        await asyncio.sleep(_AGAIN_S)
    if why := too_old(ended.server_version):
        raise Misconfigured(f"PostgreSQL at {server.label} is {why}")
    return ended.server_version


def too_old(version: int) -> str:
    """Return how a version is too old, or an empty text."""
    return f"version {version // 10_000}; 15 or newer is needed" if version < _OLDEST else ""
