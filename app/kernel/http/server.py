"""Hypercorn in our own process, stopped our way.

Hypercorn closes its listener the moment it is asked to stop. So it is asked late: first /ready is 503 and every answer
says `Connection: close`, for the drain delay; then the listener closes, and what is in flight is finished. The deadline
for that is the process's: Hypercorn's own is kept on 3.11 and ignored on later versions.
"""

import asyncio
import errno
import functools
import socket
import time
from email.utils import formatdate
from typing import Any, cast

from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType] - partly annotated
from hypercorn.config import Config
from loguru import logger

from app.kernel.config import HttpServerSettings, ProcessSettings
from app.kernel.errors import Unavailable
from app.kernel.http.asgi import Answer, App, Headers, Receive, Scope, Send, answering
from app.kernel.http.edge import Edge
from app.kernel.http.middleware import stack
from app.kernel.http.problems import send_problem
from app.kernel.http.protocols import read_strictly
from app.kernel.process import Process, Service

_NEVER = 1e6
_CUT_S = 2.0
_READ_TIMEOUT_S = 120
_KEEP_ALIVE_S = 75


class _Config(Config):
    """Hypercorn's settings. The Date of responses (RFC 9110, section 6.6.1) is made once a second, not for each."""

    h2c = False

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 - the signature is Hypercorn's
        return [(b"date", _date(int(time.time())))]


@functools.lru_cache(1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


class _InFlight:
    """The requests being answered. While stopping, every answer asks the client to leave."""

    def __init__(self, app: App, process: Process) -> None:
        self._app = app
        self._process = process
        self._tasks: dict[asyncio.Task[None], Answer] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # neither lifespan nor websockets
            raise NotImplementedError(scope["type"])

        # RFC 9113, section 8.2.2: never in HTTP/2
        answer, send = answering(scope, send, self._leaving if scope["http_version"].startswith("1") else tuple)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks[task] = answer
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not answer.status:
                await send_problem(scope, send, Unavailable("this process is stopping; ask another", retry_after_s=1))
            raise
        finally:
            del self._tasks[task]

    def _leaving(self) -> Headers:
        return ((b"connection", b"close"),) if self._process.state == "stopping" else ()

    async def cut(self) -> None:
        """Cancel what is left, and wait until it has let go of what it used."""
        left = dict(self._tasks)
        for task, answer in left.items():
            answer.instead = 503
            task.cancel()
        if left:
            logger.error("{} requests were cut", len(left))
            await asyncio.wait(left, timeout=_CUT_S)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address. Raises Unavailable when it is taken or not ours, saying what to change."""
    sock: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except (OSError, OverflowError, ValueError) as error:
        if sock is not None:
            sock.close()
        raise Unavailable(_why_not(host, port, error)) from None
    sock.setblocking(False)
    return sock


def _why_not(host: str, port: int, error: Exception) -> str:
    """Return why there is no socket on the address, and what to do. `--host` and `--port` are settings, too."""
    if isinstance(error, socket.gaierror | UnicodeError):
        reason = error.strerror if isinstance(error, socket.gaierror) else "it is no host name"
        return f"the host {host!r} does not resolve ({reason}); give an address of this machine with --host"
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use; choose another with --port"
        case errno.EACCES | errno.EPERM:
            return f"port {port} on {host} is reserved for root; choose one from 1024 on with --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is no address of this machine; choose another with --host"
        case errno.EAFNOSUPPORT:
            return f"{host} is an IPv6 address, which this machine does not support; choose another with --host"
        case _:
            return f"port {port} on {host} cannot be used: {error}; see --host and --port"


def http_service(p: Process, app: App, sock: socket.socket, *, outlives: bool = False) -> Service:
    """Return a service that serves the application, inside the middlewares, on the socket; the service closes it."""
    wrapped = _InFlight(stack(Edge(app), p.settings[HttpServerSettings]), p)
    drain_delay_s = 0.0 if outlives else p.settings[ProcessSettings].drain_delay
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def run(stop: asyncio.Event) -> None:
        read_strictly()
        config = _Config()
        config.h2c = p.settings[HttpServerSettings].h2c
        config.bind = [f"fd://{sock.detach()}"]
        config.accesslog = config.errorlog = None
        config.graceful_timeout = _NEVER
        config.read_timeout = _READ_TIMEOUT_S
        config.keep_alive_timeout = _KEEP_ALIVE_S

        async def drained() -> None:
            await stop.wait()
            await asyncio.sleep(drain_delay_s)

        logger.bind(url=url).info("serving {}", url)
        serving = asyncio.ensure_future(serve(cast("Any", wrapped), config, shutdown_trigger=drained))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            await wrapped.cut()
            serving.cancel()
            await asyncio.wait({serving}, timeout=_CUT_S)
            raise

    return Service(f"http {url}", run, outlives=outlives)
