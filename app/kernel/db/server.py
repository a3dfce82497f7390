"""Which PostgreSQL server this process uses: the configured one, else the embedded one."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from loguru import logger
from psycopg.conninfo import make_conninfo

from app.kernel.config import Misconfigured, PostgresSettings
from app.kernel.db.embedded import EmbeddedUnavailable, embedded_server
from app.kernel.errors import Unavailable
from app.kernel.process import Process

_CONNECT_S = 2
_TELL_AFTER_S, _TELL_EVERY_S = 1.0, 5.0
_WORTH_RETRYING = ("starting up", "shutting down", "recovery", "too many", "connection slots")
_NOT_WORTH_RETRYING = ("FATAL:", "does not support SSL", "certificate", "no password supplied")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be connected to. `parameters` are libpq's; the password is not shown."""

    label: str
    parameters: Mapping[str, str | int] = field(repr=False)
    bin_dir: Path | None = None

    def conninfo(self, **options: str | int) -> str:
        """Return a libpq connection string; `options` become settings of the session (times in milliseconds)."""
        session = " ".join(f"-c {name}={value}" for name, value in {"timezone": "UTC", **options}.items())
        return make_conninfo("", **self.parameters, options=session)


@asynccontextmanager
async def server(p: Process) -> AsyncGenerator[Server]:
    """Provide the server, ready to accept connections.

    Raises Misconfigured when it refuses us or none can be embedded, Unavailable when it does not answer in time.
    """
    settings = p.settings[PostgresSettings]
    common: dict[str, str | int] = {
        "application_name": f"{p.name}@{socket.gethostname()}:{os.getpid()}"[:63],
        "connect_timeout": _CONNECT_S,
    }
    if not settings.host:
        try:
            async with embedded_server(p.root / ".local" / "postgres") as embedded:
                where = {"host": embedded.socket_dir, "port": embedded.port, "user": embedded.user}
                yield Server("embedded", {**common, **where, "dbname": embedded.database}, embedded.bin_dir)
        except EmbeddedUnavailable as error:
            raise Misconfigured(str(error)) from None
        return
    parameters = common | {
        "host": settings.host,
        "port": settings.port,
        "user": settings.user,
        "dbname": settings.db,
        "sslmode": settings.ssl,
        # a server that vanishes without a word (a pulled cable) is noticed within seconds
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    if password := settings.password.get_secret_value():
        parameters["password"] = password
    if settings.ssl == "verify-full":
        parameters["sslrootcert"] = settings.ssl_root_cert
    configured = Server(f"{settings.host}:{settings.port}", parameters)
    await _answering(configured, settings.startup_timeout)
    yield configured


async def _answering(server: Server, timeout_s: float) -> None:
    deadline, tell_at = time.monotonic() + timeout_s, time.monotonic() + _TELL_AFTER_S
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(server.conninfo())
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
            if any(text in reason for text in _NOT_WORTH_RETRYING) and not any(t in reason for t in _WORTH_RETRYING):
                raise Misconfigured(f"PostgreSQL at {server.label} refused: {reason}; check POSTGRES_*") from None
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"PostgreSQL at {server.label} does not answer: {reason}; start it, or check POSTGRES_HOST"
                ) from None
            if time.monotonic() >= tell_at:
                tell_at = time.monotonic() + _TELL_EVERY_S
                logger.warning("waiting for PostgreSQL at {}: {}", server.label, reason)
            await asyncio.sleep(0.25)
        else:
            await connection.close()
            return
