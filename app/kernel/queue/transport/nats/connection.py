"""The connection to NATS. Only this module imports the client library.

The library reconnects by itself, but neither its calls nor its subscriptions can be relied on after that: every call
here has a deadline, and whoever subscribes does so again when `generation` has changed.
"""

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from loguru import logger

from app.kernel.addresses import nats_servers
from app.kernel.config import Misconfigured, NatsSettings
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.process.needs import uses
from app.kernel.product import NAME
from app.kernel.telemetry import metrics

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

T = TypeVar("T")

_CONNECT_S = 2
_AGAIN_S = 1
_PING_S = 5
_PORT = 4222
_LOOK = f"{NAME} doctor --only nats"
STREAM_NOT_FOUND, CONSUMER_NOT_FOUND = 10059, 10014
_REMEDIES = {
    10002: "; raise the limits of the account, or lower NATS_MAX_BYTES",
    10026: "; raise the number of consumers that the account may have",
    10027: "; raise the number of streams that the account may have",
    10047: "; lower NATS_MAX_BYTES, or give the server more storage",
    10074: "; set NATS_REPLICAS to 1, or NATS_URL to a cluster",
    10113: "; set NATS_MAX_BYTES, which the account requires",
}
"""By JetStream's error codes (nats-server, server/errors.json)."""


class Refused(Exception):
    """JetStream refused a request. `code` is its error code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description}{_REMEDIES.get(code, '')}")
        self.code = code


class Nats:
    """A connection that is opened in the background, and again after an outage."""

    def __init__(self, settings: NatsSettings, name: str = NAME) -> None:
        """Raise Misconfigured for files that cannot be used, and without the client library."""
        given = nats_servers(settings.url.get_secret_value())
        self.servers = [f"{urlsplit(url).scheme}://{_place(url)}" for url in given]
        self._timeout_s = settings.timeout
        self._options: dict[str, Any] = {"name": name, **_login(given), **_security(settings, given)}
        self._new = _client()
        self._client: Any = None
        self._said = ""
        self._closed = asyncio.Event()
        self.generation = 0
        """Number of connections so far."""
        self.connected = asyncio.Event()

    @property
    def why(self) -> str:
        """Why the last attempt to connect failed; empty after one that succeeded."""
        return self._said

    @property
    def place(self) -> str:
        """The addresses, without passwords."""
        return ", ".join(_place(url) for url in self.servers)

    @property
    def client(self) -> Any:
        """The client. Raises Unavailable while it is not connected."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable(f"NATS at {self.place} is unreachable{self._said and f': {self._said}'}", hint=_LOOK)
        return self._client

    @property
    def is_clustered(self) -> bool:
        """Whether the server belongs to a cluster. Raises Unavailable."""
        return self.client.is_clustered

    async def run(self) -> None:
        """Connect, and stay connected until cancelled."""
        try:
            while True:
                self._closed.clear()
                self._client = self._new()
                try:
                    await self._client.connect(
                        servers=self.servers,
                        error_cb=self._failed,
                        disconnected_cb=self._lost,
                        reconnected_cb=self._found,
                        closed_cb=self._ended,
                        connect_timeout=_CONNECT_S,
                        reconnect_time_wait=_AGAIN_S,
                        max_reconnect_attempts=-1,
                        ping_interval=_PING_S,
                        **self._options,
                    )
                    await self._found()
                    await self._closed.wait()
                except Exception as error:  # noqa: BLE001 - of a library that raises many kinds
                    await self._failed(error)
                await asyncio.sleep(_AGAIN_S)
        finally:
            self.connected.clear()
            if self._client is not None:
                with suppress(Exception):
                    async with asyncio.timeout(self._timeout_s):
                        await self._client.close()

    async def check(self) -> None:
        """Raise Unavailable unless the server is connected and answers."""
        client = self.client
        await self.within(lambda: client.flush(timeout=max(1, round(self._timeout_s))))

    async def call(self, subject: str, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call JetStream's API: `STREAM.INFO.name`. Raises Refused, Unavailable."""
        client, body = self.client, json.dumps(wanted).encode() if wanted else b""
        answer = await self.within(lambda: client.request(f"$JS.API.{subject}", body, timeout=self._timeout_s))
        found: dict[str, Any] = json.loads(answer.data)
        if error := found.get("error"):
            raise Refused(int(error.get("err_code", error["code"])), error.get("description", ""))
        return found

    async def subscribe(self, subject: str, notified: "Callable[[Msg], Awaitable[None]]") -> "Subscription":
        """Subscribe in this connection. Raises Unavailable."""
        client = self.client
        return await self.within(lambda: client.subscribe(subject, cb=notified))

    async def within(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something with the client until the deadline. Raises Unavailable."""
        from nats.errors import Error

        try:
            async with asyncio.timeout(self._timeout_s):
                return await work()
        except TimeoutError:  # the library's is one, too
            raise Unavailable(f"NATS at {self.place} did not answer within {self._timeout_s:g} s", hint=_LOOK) from None
        except (Error, OSError) as error:
            raise Unavailable(f"NATS at {self.place}: {_reason(error)}", hint=_LOOK) from error

    async def _failed(self, error: Exception) -> None:
        if self._said and isinstance(error, ConnectionResetError):
            return  # what the server said before it hung up says more
        said = _reason(error)
        if said != self._said:
            self._said = said
            logger.warning("NATS at {}: {}; trying again", self.place, said)

    async def _lost(self) -> None:
        if self.connected.is_set():
            self.connected.clear()
            metrics.nats_connected(is_connected=False)
            logger.warning("NATS at {}: the connection was lost", self.place)

    async def _found(self) -> None:
        self._said = ""
        self.generation += 1
        self.connected.set()
        metrics.nats_connected(is_connected=True)
        url = self._client.connected_url if self._client else None
        logger.info("connected to NATS at {}", f"{url.hostname}:{url.port or _PORT}" if url else self.place)

    async def _ended(self) -> None:
        self._closed.set()


def _client() -> Callable[[], Any]:
    try:
        from nats.aio.client import Client
        from nats.errors import Error
    except ImportError:
        raise Misconfigured(
            "nats.url: NATS needs the package nats-py", hint="pip install 'nats-py[nkeys]>=2.16'"
        ) from None

    class Encrypted(Client):
        """Signs in to a tls: address over TLS only. The library does without when the server does not ask for it."""

        @property
        def is_clustered(self) -> bool:
            return bool(self._server_info.get("cluster"))

        def _connect_command(self) -> bytes:
            server = cast("Any", self._current_server)
            if server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
                raise Error("the server does not offer TLS, which the address asks for")
            return super()._connect_command()

    return Encrypted


def _place(url: str) -> str:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or _PORT}"


def _login(urls: list[str]) -> dict[str, str]:
    """Return user and password, or the token, of the first address that has them. The library would not decode them."""
    for parts in map(urlsplit, urls):
        if parts.username and parts.password is not None:
            return {"user": unquote(parts.username), "password": unquote(parts.password)}
        if parts.username:
            return {"token": unquote(parts.username)}
    return {}


def _security(settings: NatsSettings, urls: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if settings.credentials:
        try:
            Path(settings.credentials).read_bytes()
        except OSError as error:
            problem = f"the file {settings.credentials} of nats.credentials cannot be read: {error.strerror}"
            raise Misconfigured(problem, hint=f"{NAME} config explain nats.credentials") from None
        options["user_credentials"] = settings.credentials
    if any(url.startswith("tls:") for url in urls):
        file = None if settings.tls_ca == "system" else settings.tls_ca
        try:
            options["tls"] = ssl.create_default_context(cafile=file)
        except (OSError, ssl.SSLError) as error:
            problem = f"the file {file} of nats.tls_ca cannot be used: {error.strerror or error}"
            raise Misconfigured(problem, hint=f"{NAME} config explain nats.tls_ca") from None
    return options


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):  # the library's, too
        return "no answer in time"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return " ".join(str(error).removeprefix("nats: ").split()).strip("'") or type(error).__name__


@asynccontextmanager
@uses(NatsSettings)
async def nats(p: Process) -> AsyncGenerator[Nats]:
    """Provide the connection, which is opened in the background: a process starts without NATS.

    It is not ready while it is not connected, unless it serves an API.
    """
    connection = Nats(p.settings[NatsSettings], f"{NAME} {p.name} {socket.gethostname()}:{os.getpid()}")
    running = asyncio.ensure_future(connection.run())

    async def check() -> None:
        if "http" not in p.labels:  # an API publishes without NATS, and goes on serving
            await connection.check()

    p.checks["nats"] = check
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                await connection.connected.wait()
        yield connection
    finally:
        p.checks.pop("nats")
        running.cancel()
        await asyncio.wait({running}, timeout=_CONNECT_S)
