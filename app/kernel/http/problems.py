"""Errors as problem details (RFC 9457). The only place that maps a kind of refusal to a status."""

from typing import Any

from opentelemetry import trace
from pydantic_core import to_json

from app.kernel.errors import Conflict, Denied, Invalid, NotFound, RateLimited, Refusal, Unauthenticated, Unavailable
from app.kernel.http.asgi import CLOSE, Receive, Scope, Send, respond

_STATUS: dict[type[Refusal], int] = {
    Invalid: 422,
    Unauthenticated: 401,
    Denied: 403,
    NotFound: 404,
    Conflict: 409,
    RateLimited: 429,
    Unavailable: 503,
}
_TITLES = {
    400: ("MALFORMED", "The request is malformed"),
    404: ("NOT_FOUND", "There is no such resource"),
    405: ("METHOD_NOT_ALLOWED", "The resource does not support this method"),
    408: ("REQUEST_TIMEOUT", "The request did not arrive in time"),
    413: ("BODY_TOO_LARGE", "The request body is too large"),
    415: ("UNSUPPORTED_MEDIA_TYPE", "The media type of the request body is not supported"),
    431: ("HEADER_TOO_LARGE", "The request header is too large"),
    500: ("INTERNAL_ERROR", "Internal error"),
    504: ("TIMEOUT", "The request took too long"),
    505: ("VERSION_NOT_SUPPORTED", "This version of HTTP is not supported"),
}


class HttpProblem(Exception):
    """An error of HTTP itself; the request did not reach an action."""

    def __init__(self, status: int, detail: str = "", headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def check_reads(scope: Scope) -> None:
    """Raise HttpProblem unless the method is GET or HEAD."""
    if scope["method"] not in ("GET", "HEAD"):
        raise HttpProblem(405, headers=((b"allow", b"GET, HEAD"),))


async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer that there is no such path. An application."""
    raise HttpProblem(404)


def malformed(detail: str) -> HttpProblem:
    """Return the refusal of a request that makes the rest of its connection unreadable."""
    return HttpProblem(400, detail, CLOSE)


def status_of(kind: type[Refusal]) -> int:
    """Return the status of a kind of refusal."""
    return next(status for base, status in _STATUS.items() if issubclass(kind, base))


def retry_after(refusal: Refusal | None) -> list[tuple[bytes, bytes]]:
    """Return the header field of an Unavailable (RFC 9110, section 10.2.3); none for other refusals."""
    if not isinstance(refusal, Unavailable):
        return []
    return [(b"retry-after", str(refusal.retry_after_s).encode())]


def code_and_title(status: int) -> tuple[str, str]:
    """Return the code and the title of the problem of HTTP itself with this status."""
    return _TITLES[status]


async def send_problem(scope: Scope, send: Send, error: HttpProblem | Refusal) -> None:
    """Send an error as problem details."""
    headers: list[tuple[bytes, bytes]] = [(b"cache-control", b"no-store")]
    fields: list[dict[str, str]] = []
    if isinstance(error, HttpProblem):
        status, (code, title), detail = error.status, _TITLES[error.status], error.detail
        headers += error.headers
    else:
        status = status_of(type(error))
        code, title, detail = error.code, error.title, str(error)
        headers += retry_after(error)
        if isinstance(error, Unauthenticated):
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(error, Invalid):
            fields = [{"field": field, "message": message} for field, message in error.fields]
    state: dict[str, Any] = scope.get("state", {})
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail or title,
        "code": code,
        "request_id": state.get("request_id", ""),
        "trace_id": trace.format_trace_id(state["span"].trace_id if "span" in state else 0),
    }
    if fields:
        body["errors"] = fields
    await respond(send, status, b"application/problem+json", to_json(body), headers)
