"""MetaInject: request id and origin. A well-formed `X-Request-Id` is accepted, otherwise one is generated."""

import re
from collections.abc import Sequence

from app.kernel.addresses import Network, canonical, is_in
from app.kernel.callers import Origin
from app.kernel.http.asgi import App, Receive, Scope, Send, answering, header
from app.kernel.identifiers import uuid7_text
from app.kernel.redis import patience
from app.kernel.telemetry import logs

_LONGEST_USER_AGENT = 256
_MOST_HOPS = 32
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class MetaInject:
    """Put `request_id` into the scope's state, the log context and the response; `origin` into the state.

    The scheme becomes that of `X-Forwarded-Proto` if a trusted proxy sent it.
    """

    def __init__(self, app: App, trusted: Sequence[Network] = ()) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, send = answering(scope, send)
        given = header(scope, b"x-request-id")
        request_id = given.decode() if given and _WELL_FORMED.fullmatch(given) else uuid7_text()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["origin"] = origin(scope, self._trusted)
        if self._trusted:
            scope["scheme"] = scheme(scope, self._trusted)
        answer.headers.append((b"x-request-id", request_id.encode()))
        logs.new_context(request_id=request_id)
        patience.begin()
        await self._app(scope, receive, send)


def origin(scope: Scope, trusted: Sequence[Network]) -> Origin:
    """Return address, user agent and request id."""
    agent = (header(scope, b"user-agent") or b"")[:_LONGEST_USER_AGENT].decode("latin-1")
    printable = agent if agent.isprintable() else "".join(c if c.isprintable() else "?" for c in agent)
    return Origin(client_address(scope, trusted), printable, scope.get("state", {}).get("request_id", ""))


def scheme(scope: Scope, trusted: Sequence[Network]) -> str:
    """Return `http` or `https`: what a trusted proxy says, otherwise what the connection has."""
    given, client = header(scope, b"x-forwarded-proto"), scope.get("client")
    if given in (b"http", b"https") and client and is_in(canonical(client[0]), trusted):
        return given.decode()
    return scope["scheme"]


def client_address(scope: Scope, trusted: Sequence[Network]) -> str:
    """Return the canonical address of the client.

    `X-Forwarded-For` is read from its last element while trusted proxies wrote it. An element that is not an address
    (`unknown`, an obfuscated name) ends it: the client is then the proxy that wrote the element. `Forwarded` and
    `X-Real-IP` are ignored.
    """
    client = scope.get("client")
    address = (canonical(client[0]) or client[0]) if client else ""
    if not trusted or not is_in(address, trusted):
        return address
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    for hop in reversed(forwarded.decode("latin-1").rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]):
        if not (written := hop.strip(" \t")):  # empty elements are ignored (RFC 9110, section 5.6.1.2)
            continue
        if not (found := canonical(written)):
            break
        address = found
        if not is_in(address, trusted):
            break
    return address
