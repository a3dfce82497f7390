"""Validation of requests of both HTTP versions (RFC 9110, 9112, 9113): ambiguous requests are refused."""

import functools
import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

from app.kernel.http.asgi import CLOSE, METHODS, REFUSED, App, Receive, Scope, Send
from app.kernel.http.problems import HttpProblem, malformed

_SINGLE = frozenset(
    {b"authorization", b"content-length", b"content-type", b"host", b"origin", b"proxy-authorization", b"user-agent"}
    | {b"x-request-id"}
)
_ALLOW = ((b"allow", ", ".join(sorted(METHODS)).encode()),)
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_HOST = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::(?P<port>[0-9]{0,5}))?"
)
_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})|%00")
_SLASH = re.compile("%(2[Ff])")


class Target(NamedTuple):
    """A request target."""

    path: str
    raw_path: bytes
    query: bytes
    authority: bytes | None
    """Authority of the absolute form; it replaces the Host header (RFC 9112, section 3.2.2)."""


class Validation:
    """Refuse malformed requests; answer OPTIONS *, CONNECT and TRACE."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (problem := scope.get(REFUSED)) is not None:
            raise problem
        method = scope["method"]
        if method == "OPTIONS" and scope["path"] == "*":  # RFC 9110, section 9.3.7
            await send({"type": "http.response.start", "status": 204, "headers": _ALLOW})
            await send({"type": "http.response.body", "body": b""})
        elif method in ("CONNECT", "TRACE"):
            raise HttpProblem(405, "this server is not a proxy", (*_ALLOW, *CLOSE))
        else:
            await self._app(scope, receive, send)


def target(method: bytes, text: bytes) -> Target:
    """Parse a request target (RFC 9112, section 3.2). Raises HttpProblem 400."""
    if method == b"CONNECT":
        check_host(text)
        return Target("", b"", b"", None)
    if method == b"OPTIONS" and text == b"*":
        return Target("*", b"*", b"", None)
    authority = None
    if not text.startswith(b"/"):
        found = _ABSOLUTE.fullmatch(text)
        if found is None:
            raise malformed("the request target is neither a path nor an http URL")
        authority, text = found[1], found[2]
        check_host(authority)
        if method == b"OPTIONS" and not text:  # as the last proxy would write it (section 3.2.4)
            return Target("*", b"*", b"", authority)
        text = text if text.startswith(b"/") else b"/" + text
    if b"#" in text:
        raise malformed("the request target has a fragment")
    raw_path, _, query = text.partition(b"?")
    return Target(_path(raw_path), raw_path, query, authority)


def _path(raw: bytes) -> str:
    try:
        path = raw.decode("ascii")
    except UnicodeDecodeError:
        raise malformed("the path is not ASCII") from None
    if "%" in path:
        if _ESCAPE.search(path):
            raise malformed("the path has invalid percent-encoding, or NUL")
        # an encoded slash is not a separator (RFC 3986, section 2.2), so it stays encoded
        path = unquote(_SLASH.sub(r"%25\1", path))
    return path


def check_host(value: bytes) -> None:
    """Raise HttpProblem 400 unless the value is a host with an optional port (RFC 9110, section 7.2)."""
    if not _is_host(value):
        raise malformed("the host is invalid")


def check_single(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise HttpProblem 400 for a duplicate single-value header: a proxy might read the other one."""
    names = [name for name, _ in headers if name in _SINGLE]
    if len(names) > len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise malformed(f"duplicate header {twice.decode()}")


@functools.lru_cache(1024)
def _is_host(value: bytes) -> bool:
    found = _HOST.fullmatch(value)
    if found is None or int(found["port"] or 0) > 65535:
        return False
    try:
        return found["v6"] is None or bool(ipaddress.IPv6Address(found["v6"].decode()))
    except ValueError:
        return False
