"""A request of a browser to the console, and its response."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from app.kernel.callers import Origin
from app.kernel.console.browser import Visitor
from app.kernel.console.cookies import SESSION, Cookies, csrf_of
from app.kernel.errors import Unauthenticated
from app.kernel.http.asgi import Scope, header
from app.kernel.http.codecs import Response
from app.kernel.http.problems import HttpProblem

ROOT = "/console"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
)


@dataclass(frozen=True)
class Request:
    """A request; `segments` are the decoded parts of the path below /console."""

    scope: Scope
    segments: tuple[str, ...]
    query: Mapping[str, str]
    cookies: Cookies
    form: Mapping[str, str] = field(default_factory=dict[str, str])
    visitor: Visitor | None = None

    @classmethod
    def of(cls, scope: Scope, *, may_be_plain: bool) -> "Request":
        """Return the request. Raises HttpProblem for a malformed path or query."""
        raw = scope["raw_path"].decode("ascii")
        segments = tuple(unquote(part) for part in raw.removeprefix(ROOT).split("/") if part)
        return cls(scope, segments, texts(scope["query_string"]), Cookies.of(scope, may_be_plain=may_be_plain))

    @property
    def origin(self) -> Origin:
        """Where it comes from."""
        return self.scope["state"]["origin"]

    @property
    def token(self) -> str:
        """The token of the session; empty without one."""
        return self.cookies.get(SESSION)

    @property
    def csrf(self) -> str:
        """The token for forms."""
        return csrf_of(self.token)

    @property
    def signed_in(self) -> Visitor:
        """The visitor. Raises Unauthenticated."""
        if self.visitor is None:
            raise Unauthenticated
        return self.visitor

    @property
    def address(self) -> str:
        """Path and query of the page."""
        return address(*self.segments, **self.query)

    @property
    def base(self) -> str:
        """The address of the server, for commands to copy."""
        host = (header(self.scope, b"host") or b"localhost").decode("latin-1")
        return f"{self.scope['scheme']}://{host}"


def texts(encoded: bytes) -> dict[str, str]:
    """Return the fields of a query or form; of one with several values the first, without empty ones and NUL.

    The values of a field `name[]` are the lines of `name`. Raises HttpProblem 400.
    """
    try:
        pairs = parse_qsl(encoded.decode(), keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError:
        raise HttpProblem(400, "the fields are not percent-encoded UTF-8, or too many") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        text, of_several = value.replace("\r\n", "\n"), name.removesuffix("[]")
        if of_several == name:
            found.setdefault(name, text)
        else:
            found[of_several] = f"{found[of_several]}\n{text}" if of_several in found else text
    if "\0" in "".join(found.values()):
        raise HttpProblem(400, "NUL is not allowed")
    return found


def address(*segments: str, **query: str) -> str:
    """Return the address of a page of the console."""
    path = "/".join([ROOT, *(quote(part, safe="") for part in segments)])
    return f"{path}?{urlencode(query)}" if query else path


def local(target: str) -> str:
    """Return an address if it is one of the console, otherwise that of its first page (open redirects: CWE-601)."""
    is_plain = target.isprintable() and target.isascii() and "\\" not in target and "//" not in target.partition("?")[0]
    parts = urlsplit(target) if is_plain else None
    if parts is None or parts.scheme or parts.netloc or ".." in map(unquote, parts.path.split("/")):
        return ROOT
    is_inside = parts.path == ROOT or parts.path.startswith(f"{ROOT}/")
    return target if is_inside and target.startswith(ROOT) else ROOT  # urlsplit strips spaces


def redirect(target: str, *headers: tuple[bytes, bytes]) -> Response:
    """Return a redirect to a page of the console, to be read with GET."""
    fields = [(b"location", local(target).encode()), *headers, *HEADERS]
    return Response(303, b"text/html; charset=utf-8", b"", fields)


def page(text: str, *headers: tuple[bytes, bytes], status: int = 200) -> Response:
    """Return a page."""
    return Response(status, b"text/html; charset=utf-8", text.encode(errors="replace"), [*headers, *HEADERS])
