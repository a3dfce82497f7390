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

from app.kernel.addresses import endpoints
from app.kernel.config import Misconfigured, PostgresSettings
from app.kernel.db.connection import Connection
from app.kernel.db.devserver.embedded import EmbeddedServer, EmbeddedUnavailable, embedded_server
from app.kernel.db.libpq import Attempt, attempt, forget_variables
from app.kernel.db.session import begin_with, session_options
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.process.needs import uses
from app.kernel.product import NAME

_CONNECT_S = 2
_TELL_AFTER_S, _TELL_EVERY_S = 1.0, 5.0
_AGAIN_S = 0.25
_OLDEST = 150_000
_HOST = f"{NAME} config explain postgres.host"
_LOOK = f"{NAME} doctor --only postgresql"
_NO_POOLER = "LISTEN, advisory locks and migrations need the server itself"
Parameters = Mapping[str, str | int]
_SAME = "let POSTGRES_DIRECT_HOST and POSTGRES_DIRECT_PORT name the server behind POSTGRES_HOST"


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to. `parameters` are libpq's; repr() omits them because of the password.

    It may have several hosts, of which one at a time accepts writes. `pool` are the parameters of the pool of
    connections, if they differ. `is_pooled`: they lead to a pooler such as PgBouncer.
    """

    label: str
    parameters: Parameters = field(repr=False)
    bin_dir: Path | None = None
    version: int = 0
    pool: Parameters = field(default_factory=dict[str, str | int], repr=False)
    is_pooled: bool = False
    password: SecretStr | None = field(default=None, repr=False)
    """The password of new sessions, which may change while the process runs."""
    replicas: Parameters = field(default_factory=dict[str, str | int], repr=False)
    """Parameters of the replicas, if there are any."""
    _primary: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """The host that accepted writes last, by the hosts that it is one of: it is tried first."""

    @property
    def pool_label(self) -> str:
        """Where the pool of connections leads."""
        return _label(self.pool) if self.pool else self.label

    def console_conninfo(self) -> str:
        """Return a libpq connection string of PgBouncer's console."""
        return make_conninfo("", **{**self._hosts(self.pool)[0], "dbname": "pgbouncer"})

    def conninfo(self, **settings: str | int) -> str:
        """Return a libpq connection string of a session, with settings (times in milliseconds).

        Of several hosts, it leads to the one that accepts writes.
        """
        several = {"target_session_attrs": "read-write"} if "," in str(self.parameters["host"]) else {}
        return make_conninfo(self.reading_conninfo(**settings), **several)

    def reading_conninfo(self, **settings: str | int) -> str:
        """Return a connection string as `conninfo` does, that also leads to a host that accepts no writes."""
        return make_conninfo("", **self.in_order(), options=session_options(self.version, settings))

    def in_order(self) -> Parameters:
        """Return libpq's parameters of the server itself, with its hosts in the order in which to try them."""
        hosts = self._hosts(self.parameters)
        return {**hosts[0], **{key: ",".join(str(each[key]) for each in hosts) for key in ("host", "port")}}

    async def open(self, **settings: str | int) -> Connection:
        """Open a connection of the pool, to the host that accepts writes. Raises Unavailable.

        Behind a pooler, transactions have the settings: `begin`.
        """
        hosts = self._hosts(self.pool or self.parameters)
        options = {} if self.is_pooled else {"options": session_options(self.version, settings)}
        opened = await Connection.open(
            [make_conninfo("", **host, **options) for host in hosts], is_pooled=self.is_pooled
        )
        self._prefer(self.pool or self.parameters, hosts[opened.place])
        return opened

    @property
    def primary(self) -> str:
        """The host of the server itself that accepted writes last; empty until that is known."""
        return self._primary.get(_label(self.parameters), "")

    @property
    def replica_labels(self) -> list[str]:
        """The replicas."""
        return [_label(host) for host in self._hosts(self.replicas)] if self.replicas else []

    async def open_reading(self, label: str, **settings: str | int) -> Connection:
        """Open a connection to a replica or a host, which accepts no writes. Raises Unavailable."""
        hosts = [*(self._hosts(self.replicas) if self.replicas else ()), *self._hosts(self.parameters)]
        host = next(host for host in hosts if _label(host) == label)
        options = session_options(self.version, {**settings, "default_transaction_read_only": "on"})
        return await Connection.open([make_conninfo("", **host, options=options)], reads=True)

    async def attempts(self, parameters: Parameters | None = None) -> dict[str, Attempt]:
        """Connect to every host, by default of the server itself, and disconnect."""
        hosts = self._hosts(parameters or self.parameters)
        made = await asyncio.gather(*map(self._attempt, hosts))
        return dict(zip(map(_label, hosts), made, strict=True))

    @staticmethod
    async def _attempt(host: Parameters) -> Attempt:
        return await attempt(make_conninfo("", **host), session_options(0, {}))

    def _hosts(self, parameters: Parameters) -> list[Parameters]:
        """Return the parameters of each host, in the order in which to try them."""
        password = self.password.get_secret_value() if self.password else ""
        known = {**parameters, "password": password} if password else parameters
        hosts, ports = str(parameters["host"]).split(","), str(parameters["port"]).split(",")
        found: list[Parameters] = [
            {**known, "host": host, "port": port} for host, port in zip(hosts, ports, strict=True)
        ]
        first = self._primary.get(_label(parameters))
        return sorted(found, key=lambda each: _label(each) != first)

    def _prefer(self, parameters: Parameters, host: Parameters) -> None:
        before, now = self._primary.get(_label(parameters)), _label(host)
        self._primary[_label(parameters)] = now
        if before not in (None, now):
            logger.warning("database: {} accepts writes now, in place of {}", now, before)

    def begin(self, **settings: str | int) -> LiteralString:
        """Return the statement that begins a transaction of the pool."""
        return begin_with(self.version, settings) if self.is_pooled else "BEGIN"

    async def attempt(self, parameters: Parameters | None = None) -> Attempt:
        """Connect to each host, by default of the server itself, until one accepts writes, and disconnect.

        If none does, the result is that of a host that is read-only, then of one that may answer later.
        """
        parameters = parameters or self.parameters
        ended: list[tuple[Parameters, Attempt]] = []
        for host in self._hosts(parameters):
            made = await self._attempt(host)
            ended.append((host, made))
            if made.server_version and not made.is_read_only:
                break
        host, best = max(ended, key=lambda each: _hope(each[1]))
        if best.server_version:
            self._prefer(parameters, host)
        return best


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
        for key in ("direct_host", "replica_hosts"):
            if getattr(settings, key):
                message = f"postgres.{key} (POSTGRES_{key.upper()}) needs postgres.host (POSTGRES_HOST), too"
                raise Misconfigured(message, hint=_HOST)
        try:
            async with embedded_server(p.data / "postgres") as running:
                yield embedded(running, name)
        except EmbeddedUnavailable as error:
            raise Misconfigured(str(error), hint=_HOST) from None
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
        **_joined(settings.host, settings.port),
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
    found = Server(_label(parameters), parameters, password=settings.password)
    if settings.replica_hosts:
        found = replace(found, replicas={**parameters, **_joined(settings.replica_hosts, settings.port)})
    if not settings.direct_host:
        return found
    direct = {**parameters, **_joined(settings.direct_host, settings.direct_port or settings.port)}
    return replace(found, label=_label(direct), parameters=direct, pool=parameters)


def _joined(hosts: str, port: int) -> dict[str, str]:
    """Return libpq's parameters of some hosts: one list of hosts, one of ports."""
    found = endpoints(hosts, port)
    return {"host": ",".join(host for host, _ in found), "port": ",".join(str(port) for _, port in found)}


def _label(parameters: Parameters) -> str:
    hosts, ports = str(parameters["host"]).split(","), str(parameters["port"]).split(",")
    return ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))


def _hope(ended: Attempt) -> tuple[bool, bool, bool]:
    return bool(ended.server_version) and not ended.is_read_only, bool(ended.server_version), not ended.for_good


async def _reached(server: Server, timeout_s: float) -> Server:
    """Wait until the server accepts connections. Raises Misconfigured, Unavailable."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await _answering(server, server.parameters, deadline)
        if found.is_pooled:
            raise pooler(server.label)
        if not server.pool:
            return replace(server, version=found.server_version)
        through = await _answering(server, server.pool, deadline)
        if through.database == found.database:
            return replace(server, version=found.server_version, is_pooled=through.is_pooled)
        if time.monotonic() >= deadline:  # after a restart or a failover, they may be the same again
            where = f"{server.pool_label} and at {server.label}"
            raise Misconfigured(f"PostgreSQL at {where} are not the same database; {_SAME}", hint=_LOOK)
        await asyncio.sleep(_AGAIN_S)


def pooler(label: str) -> Misconfigured:
    """Return the error of a pooler where the server itself is needed."""
    return Misconfigured(
        f"a connection pooler such as PgBouncer answers at {label}: {_NO_POOLER}",
        hint="export POSTGRES_DIRECT_HOST=NAME_OF_THE_SERVER  # and POSTGRES_DIRECT_PORT if that differs",
    )


async def _answering(server: Server, parameters: Parameters, deadline: float) -> Attempt:
    """Wait until a server accepts a connection."""
    name = "PostgreSQL or PgBouncer" if parameters is server.pool else "PostgreSQL"
    label, tell_at = f"{name} at {_label(parameters)}", time.monotonic() + _TELL_AFTER_S
    before = Attempt()
    while not (ended := await server.attempt(parameters)).server_version:
        # a stopping server interrupts only one handshake
        if ended.for_good or (ended.in_tls and before.in_tls):
            raise Misconfigured(f"{label} refused: {ended.reason}; {ended.hint}", hint=_LOOK)
        if time.monotonic() >= deadline:
            how = "accepts no connection" if ended.sqlstate else "does not answer"
            raise Unavailable(f"{label} {how}: {ended.reason}; {ended.hint}", hint=_LOOK)
        if time.monotonic() >= tell_at:
            tell_at = time.monotonic() + _TELL_EVERY_S
            logger.warning("waiting for {}: {}", label, ended.reason)
        before = ended
        await asyncio.sleep(_AGAIN_S)
    if why := too_old(ended.server_version):
        raise Misconfigured(f"{label} is {why}", hint=_LOOK)
    return ended


def too_old(version: int) -> str:
    """Return how a version is too old, or an empty text."""
    return f"version {version // 10_000}; 15 or newer is needed" if version < _OLDEST else ""
