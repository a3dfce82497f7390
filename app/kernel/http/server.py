"""Hypercorn's protocols in our own process, on connections of our own (connections.py), stopped our way.

First /ready is 503 and every answer says `Connection: close`, for the drain delay. Then what the kernel has accepted is
taken, the port closes, and what is in flight is finished. The deadline for that is the process's.
"""

import asyncio
import errno
import functools
import socket
import time
from email.utils import formatdate

from hypercorn.config import Config
from loguru import logger

from app.kernel.config import HttpServerSettings, PostgresSettings, ProcessSettings
from app.kernel.errors import Unavailable
from app.kernel.http.asgi import App
from app.kernel.http.bounds import most_connections
from app.kernel.http.connections import BACKLOG, Connections
from app.kernel.http.edge import Edge
from app.kernel.http.middleware import stack
from app.kernel.http.origin import networks
from app.kernel.http.protocols import read_strictly
from app.kernel.process import Process, Service

_BODIES = 32


class _Config(Config):
    """Hypercorn's settings. The Date of responses (RFC 9110, section 6.6.1) is made once a second, not for each."""

    h2c = False

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 - the signature is Hypercorn's
        return [(b"date", _date(int(time.time())))]


@functools.lru_cache(1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address. Raises Unavailable when it is taken or not ours, saying what to change."""
    sock: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
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
    settings, limits = p.settings[HttpServerSettings], p.settings[ProcessSettings]
    wrapped = stack(Edge(app), settings)
    drain_delay_s = 0.0 if outlives else limits.drain_delay
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def run(stop: asyncio.Event) -> None:
        read_strictly()
        config = _Config()
        config.h2c = settings.h2c
        config.accesslog = config.errorlog = None
        connections = Connections(wrapped, config, p, sock, networks(settings.trusted_proxies))
        most = most_connections(settings.max_connections, p.settings[PostgresSettings].pool_size)
        connections.begin(most, _BODIES * settings.max_body_bytes)
        logger.bind(url=url).info("serving {}", url)
        try:
            await stop.wait()
            await asyncio.sleep(drain_delay_s)
            await connections.close()
            await connections.ended()
        except BaseException:
            if count := await connections.cut():
                logger.error("{} requests were cut", count)
            raise

    return Service(f"http {url}", run, outlives=outlives)
