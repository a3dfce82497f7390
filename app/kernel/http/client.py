"""The HTTP client for calls to other services, with timeouts, limits and tracing.

Import it inside the provider that needs it: the import takes 60 ms and 20 MB.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
from loguru import logger
from opentelemetry.trace import SpanKind, StatusCode

from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.product import NAME, VERSION
from app.kernel.telemetry import metrics, traces

PHASES = httpx2.Timeout(connect=3, write=10, read=10, pool=2)
TOTAL_S = 30.0
CONNECTIONS = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30)
MOST_BYTES = 10_000_000
_HOSTS = 50
_NO_ANSWER = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError)


class HttpClient(httpx2.AsyncClient):
    """An `httpx2.AsyncClient` with timeouts, limits and tracing.

    Every request has a timeout for each phase (`PHASES`) and in total (`TOTAL_S`, or `extensions={"total_s": ...}`).
    Responses are limited to `MOST_BYTES`. With `stream=True`, the total timeout covers the header fields only, and the
    caller limits the body. Cookies are dropped. Redirects are followed only on request. Spans and metrics carry method,
    host and status, never path or query; `extensions={"template": "/orders/{id}"}` names the operation.

    Raises Unavailable when the service is unreachable, times out, or closes the connection. The caller checks the
    status. Requests are not retried.
    """

    def __init__(self, **options: Any) -> None:
        """Accept the options of `httpx2.AsyncClient`; tests pass `transport`."""
        jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        headers = {"user-agent": f"{NAME}/{VERSION}", "accept-encoding": "identity"}
        super().__init__(timeout=PHASES, limits=CONNECTIONS, cookies=jar, headers=headers, **options)
        self._hosts: set[str] = set()

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request in its own span. Raises Unavailable."""
        method, host = request.method, request.url.host
        started, status = time.perf_counter(), "error"
        try:
            with traces.span(_name(request), SpanKind.CLIENT, **_about(request)) as span:
                request.headers.update(traces.outgoing())
                async with asyncio.timeout(request.extensions.get("total_s", TOTAL_S)):
                    response = await super().send(request, stream=True, **options)
                    if not stream:
                        await _read(response)
                status = str(response.status_code)
                if span is not None:
                    span.set_attribute("http.response.status_code", response.status_code)
                    if response.status_code >= 400:
                        span.set_status(StatusCode.ERROR)
            return response
        except (TimeoutError, *_NO_ANSWER) as error:
            logger.warning("{} to {} failed: {}", method, host, type(error).__name__)
            raise Unavailable("another service did not answer") from error  # our client must not see its name
        finally:
            took_s = time.perf_counter() - started
            metrics.outgoing_request_ended(method, self._known(host), status, took_s, traces.exemplar())

    def _known(self, host: str) -> str:
        """Return the host, or `other` after the first fifty hosts: this limits the number of series."""
        if len(self._hosts) < _HOSTS:
            self._hosts.add(host)
        return host if host in self._hosts else "other"


@asynccontextmanager
async def http_client(p: Process) -> AsyncGenerator[HttpClient]:  # noqa: ARG001 - a provider
    """Provide the client of this process. All modules share its connections."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs URLs with their queries
    async with HttpClient() as client:
        yield client


def _name(request: httpx2.Request) -> str:
    template = request.extensions.get("template")
    return f"{request.method} {template}" if template else request.method


def _about(request: httpx2.Request) -> dict[str, str | int]:
    about: dict[str, str | int] = {"http.request.method": request.method, "server.address": request.url.host}
    if template := request.extensions.get("template"):
        about["url.template"] = template
    return about


async def _read(response: httpx2.Response) -> None:
    """Read the body. Raises Unavailable when it is compressed or too large."""
    try:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Unavailable("the answer is compressed, which was not asked for")
        response.stream = _Bounded(response.stream)
        await response.aread()
    except BaseException:
        await response.aclose()
        raise


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of a response, up to a limit."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size_bytes = 0
        async for chunk in self._inner:
            size_bytes += len(chunk)
            if size_bytes > MOST_BYTES:
                raise Unavailable(f"the answer is larger than {MOST_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
