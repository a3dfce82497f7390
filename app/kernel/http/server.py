"""The HTTP server: Hypercorn's protocols on our own listener and connections.

To stop, it first answers 503 to /ready and `Connection: close` to every request for the drain delay. Then it accepts
the backlog, closes the port, and finishes requests in flight within the grace period of the process.

Connections are limited in total and per address. Clients beyond a limit get one of a few spare connections, which serve
only the probes, so /health answers under any load.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from loguru import logger

from app.kernel.addresses import Network, is_in, limited, networks
from app.kernel.config import (
    UNSAFE,
    HttpServerSettings,
    OperationsSettings,
    PostgresSettings,
    ProcessSettings,
)
from app.kernel.errors import Unavailable
from app.kernel.http.asgi import REFUSED, App, Scope
from app.kernel.http.connection import Connection
from app.kernel.http.limits import (
    LEAST_CONNECTIONS,
    OPERATIONS_CONNECTIONS,
    SPARES,
    Bodies,
    Refusals,
    Waiting,
    most_connections,
)
from app.kernel.http.middleware import stack
from app.kernel.http.middleware.meta_inject import client_address
from app.kernel.http.probes import PATHS
from app.kernel.http.protocols import ServerConfig, read_strictly
from app.kernel.http.validation import Validation
from app.kernel.process import Process
from app.kernel.running import NOT_ANNOUNCED, url_of
from app.kernel.services import Run
from app.kernel.sockets import InheritedSocket, Name
from app.kernel.telemetry import metrics

if TYPE_CHECKING:
    from app.kernel.http.tls import Tls

_LINGER_S = 5.0
_SPARE_S = 2.0
_LAST_S = 1.0  # while stopping: for connections without a request, and for the lingering close
_SWEEP_S = 0.25
_AT_ONCE = 16
_AGAIN_S = 0.02
_SLOW_S = 1.0
_CLEAN_UP_S = 2.0

Accepted = tuple[socket.socket, tuple[str, int]]
_BODIES = 32


def http_service(p: Process, app: App, sock: socket.socket, name: Name) -> Run:
    """Return a service that serves the application inside the middlewares on the socket, and closes the socket.

    An API (`http`) keeps serving for the drain delay when asked to stop, so that load balancers notice.
    """
    settings, limits = p.settings[HttpServerSettings], p.settings[ProcessSettings]
    wrapped = stack(Validation(app), settings)
    is_api, is_separate = name == "http", p.settings[OperationsSettings].expose == "separate"
    host, port = sock.getsockname()[:2]
    encryption = None
    if is_api and (settings.tls_cert or settings.tls_key):
        from app.kernel.http.tls import tls

        encryption = tls(settings)
    url = url_of(host, port, "https" if encryption else "http")
    p.labels[name] = f"{name} {url}"

    async def run(stop: asyncio.Event) -> None:
        read_strictly()
        config = ServerConfig()
        config.h2c = settings.h2c
        listener = Listener(wrapped, config, p, sock, name, encryption)
        if encryption is not None:
            logger.info("{}", encryption.about)
            p.on_reload("certificate", encryption.reload)
        others = p.settings[PostgresSettings].pool_size
        if is_api and is_separate:
            others += OPERATIONS_CONNECTIONS + SPARES
        most = most_connections(settings.max_connections if is_api else OPERATIONS_CONNECTIONS, others)
        listener.begin(most, _BODIES * settings.max_body_bytes)
        if is_api:
            p.in_flight["requests"] = lambda: listener.requests
        logger.bind(url=url, listener=name).info("serving {}" if is_api else "health and metrics on {}", url)
        try:
            with nullcontext(True) if is_api and is_separate else p.announced(url) as is_announced:
                if not is_announced:
                    logger.warning(NOT_ANNOUNCED)
                await stop.wait()
                await listener.drain(limits.drain_delay if is_api else 0)
                await listener.close()
                await listener.ended()
        except BaseException:
            if count := await listener.cancel_requests():
                logger.error("{} requests were cancelled at the end of the grace period", count)
            raise

    return run


class Listener:
    """Serves an application on a listening socket."""

    def __init__(
        self, app: App, config: Config, process: Process, sock: socket.socket, name: Name, tls: "Tls | None" = None
    ) -> None:
        self.app = app
        self._tls = tls
        self.is_strict = tls is not None and process.settings.environment not in UNSAFE
        """Whether browsers are told to use HTTPS only (RFC 6797); not on a laptop, as it is for all of localhost."""
        self._name = name
        self._settings = process.settings[HttpServerSettings]
        self.config = config
        self.context = WorkerContext(None)
        self.refusals = Refusals()
        self.bodies: Bodies
        self.idle, self.heads, self.lingering, self.spare = Waiting(), Waiting(), Waiting(), Waiting()
        self.closing = asyncio.Event()
        self._process = process
        self._sock = sock
        self._trusted: Sequence[Network] = networks(self._settings.trusted_proxies)
        self._most = self._most_of_one = LEAST_CONNECTIONS
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[Connection] = set()
        self._spares: set[Connection] = set()
        self._of: Counter[str] = Counter()
        self.requests = 0
        self._requests_of: Counter[str] = Counter()
        self._pending: Accepted | None = None
        self._is_accepting = True
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, most: int, most_body_bytes: int) -> None:
        """Start accepting, up to a number of connections and of bytes of bodies in memory."""
        self._most = most
        self._most_of_one = max(LEAST_CONNECTIONS, most // 2)
        self.bodies = Bodies(most_body_bytes, self.refusals)
        self._forget_metrics = metrics.before_scrape(self._measure)
        self._loop.add_reader(self._sock, self._accept)
        self._sweep()

    async def drain(self, seconds: float) -> None:
        """Serve on for some seconds, so that load balancers notice. A replaced worker leaves new ones to others."""
        if self._process.is_replaced:
            self._is_accepting = False
            self._pause()
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Accept the backlog, close the socket and idle connections. Safe to repeat.

        The backlog of an inherited socket is left to the next process, and that of a replaced worker to the others.
        """
        if self.closing.is_set():
            return
        self.closing.set()
        self._is_accepting = False
        await self.context.terminated.set()
        self._pause()
        takes_backlog = not isinstance(self._sock, InheritedSocket) and not self._process.is_replaced
        while (takes_backlog or self._pending is not None) and (accepted := self._next()) is not None:
            if not self._admit(accepted):
                self.refusals.note("full")
                accepted[0].close()
        self._sock.close()
        self._stop_idle()

    async def ended(self) -> None:
        """Wait until every connection has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._forget()

    async def cancel_requests(self) -> int:
        """Cancel the requests in flight, wait for their clean-up, and close; return the number of requests."""
        await self.close()
        cancelled = [task for connection in self._all() for task in connection.cancel_requests()]
        if cancelled:
            await asyncio.wait(cancelled, timeout=_CLEAN_UP_S)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_S)
        for connection in self._all():
            connection.abort()
        self._forget()
        return len(cancelled)

    def _forget(self) -> None:
        self._forget_metrics()
        self.refusals.close()
        if self._timer is not None:
            self._timer.cancel()

    # accepting

    def _accept(self) -> None:
        for _ in range(1 if self._process.launch.worker else _AT_ONCE):  # the other workers are awake for the next one
            accepted = self._next()
            if accepted is None:
                return
            if not self._admit(accepted):
                self._pending = accepted
                self._pause(_AGAIN_S)
                return

    def _next(self) -> Accepted | None:
        """Return the next connection of the backlog, or None."""
        if self._pending is not None:
            accepted, self._pending = self._pending, None
            return accepted
        while True:
            try:
                return self._sock.accept()
            except BlockingIOError:
                return None
            except ConnectionError:
                continue  # the client has disconnected
            except OSError:  # out of descriptors or memory
                self.refusals.note("files")
                self._evict(None)
                self._pause(_AGAIN_S)
                return None

    def _pause(self, seconds: float | None = None) -> None:
        """Stop accepting, for some seconds or permanently."""
        self._loop.remove_reader(self._sock)
        if seconds is not None:
            self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._is_accepting:
            self._loop.add_reader(self._sock, self._accept)
            self._accept()

    def _admit(self, accepted: Accepted) -> bool:
        """Serve a connection, above a limit as a spare one; return False when no spare one is free."""
        sock, peer = accepted
        is_proxy = bool(self._trusted) and is_in(peer[0], self._trusted)
        address = limited(peer[0])
        reason = ""
        if not is_proxy and self._of[address] >= self._most_of_one and not self._evict(address):
            reason = "address"
        elif len(self._held) >= self._most and not self._evict(None):
            reason = "full"
        if reason and len(self._spares) >= SPARES:
            found = self.spare.first(_AGAIN_S, None)
            if found is None:
                return False
            self._release(found)
            found.abort()
        connection = Connection(self, address, reason, is_proxy=is_proxy)
        (self.spare if reason else self.heads).begin(connection)
        (self._spares if reason else self._held).add(connection)
        self._of[address] += not reason
        task = self._loop.create_task(self._serve(connection, sock, (peer[0], peer[1])))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _evict(self, address: str | None) -> bool:
        """Close a waiting connection, of an address or of all; return False when there is none."""
        for waiting, least_s in ((self.lingering, _AGAIN_S), (self.idle, 0), (self.heads, _SLOW_S)):
            if found := waiting.first(least_s, address):
                self._release(found)
                found.abort()
                return True
        return False

    async def _serve(self, connection: Connection, sock: socket.socket, peer: tuple[str, int]) -> None:
        try:
            server = sock.getsockname()[:2]
            if self._tls is None:
                await self._loop.connect_accepted_socket(lambda: connection, sock)
            else:
                connection.handshake = self._loop.create_task(self._handshake(connection, sock, self._tls))
                await asyncio.wait({connection.handshake})
                connection.handshake.result()
            await connection.run(peer, server)
        except asyncio.CancelledError:
            sock.close()  # the handshake took too long
        except OSError as error:
            sock.close()  # the client has disconnected
            if isinstance(error, ssl.SSLError):
                self.refusals.note("tls")
        finally:
            self._release(connection)

    async def _handshake(self, connection: Connection, sock: socket.socket, tls: "Tls") -> None:
        limit_s = self._settings.read_timeout
        await self._loop.connect_accepted_socket(
            lambda: connection,
            sock,
            ssl=tls.context,
            ssl_handshake_timeout=limit_s + _SWEEP_S,
            ssl_shutdown_timeout=_LINGER_S,
        )

    def _release(self, connection: Connection) -> None:
        """Stop counting a connection. Safe to repeat."""
        for waiting in (self.idle, self.heads, self.lingering, self.spare):
            waiting.end(connection)
        self._spares.discard(connection)
        if connection in self._held:
            self._held.remove(connection)
            self._of[connection.address] -= 1
            if not self._of[connection.address]:
                del self._of[connection.address]

    def _all(self) -> list[Connection]:
        return [*self._held, *self._spares]

    # called by connections

    @property
    def is_leaving(self) -> bool:
        """Whether every response is the last one of its connection."""
        return self._process.state == "stopping"

    def begun(self, connection: Connection) -> None:
        """Record that a connection is receiving a request."""
        self.idle.pop(connection, None)
        self.heads.pop(connection, None)
        self.spare.pop(connection, None)

    def left(self, connection: Connection) -> None:
        """Record that a connection is in its lingering close."""
        self.begun(connection)
        (self.spare if connection.refusal else self.lingering).begin(connection)

    def check_limits(self, connection: Connection, scope: Scope) -> None:
        """Mark a request above a limit as refused."""
        reason = connection.refusal
        if not reason and scope["http_version"] == "2":  # in HTTP/1, a connection has one request at a time
            if not connection.is_proxy and self._requests_of[connection.address] >= self._most_of_one:
                reason = "address"
            elif self.requests >= self._most:
                reason = "full"
        if reason and scope["path"] not in PATHS:
            self.refusals.note(reason)
            scope[REFUSED] = Unavailable("there are too many connections or requests")

    def request_begun(self, connection: Connection) -> None:
        """Count a request in flight."""
        self.requests += 1
        self._requests_of[connection.address] += 1

    def request_ended(self, connection: Connection) -> None:
        """Stop counting a request."""
        self.requests -= 1
        self._requests_of[connection.address] -= 1
        if not self._requests_of[connection.address]:
            del self._requests_of[connection.address]

    def client_of(self, scope: Scope) -> str:
        """Return the client address that limits of a request apply to."""
        return limited(client_address(scope, self._trusted))

    def _sweep(self) -> None:
        is_closing = self.closing.is_set()
        self.heads.expire(_LAST_S if is_closing else self._settings.read_timeout)
        self._stop_idle()
        self.lingering.expire(_LAST_S if is_closing else _LINGER_S)
        self.spare.expire(_LAST_S if is_closing else _SPARE_S)
        self._timer = self._loop.call_later(_SWEEP_S, self._sweep)

    def _stop_idle(self) -> None:
        """Close connections without a request; at the end only quiet ones, as the next request may be on its way."""
        least_s = _LAST_S if self.closing.is_set() else self._settings.keep_alive_timeout
        for connection in self.idle.since(least_s):
            connection.stop()

    def _measure(self) -> None:
        metrics.http_connections(self._name, len(self._held) + len(self._spares), len(self.idle), self._most)
        if self._tls is not None:
            metrics.certificate_served(self._name, self._tls.not_after)
