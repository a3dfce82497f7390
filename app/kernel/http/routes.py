"""From use case to route. Routes are declared; one generic endpoint decodes, checks, runs and encodes."""

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote_plus

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router

from app.kernel.actions.operation import ActionOperation, Call, Classic, Operation
from app.kernel.config import HttpServerSettings
from app.kernel.decoding import Decoder, name_outside
from app.kernel.errors import Denied, Invalid, Refusal, Unauthenticated
from app.kernel.http.asgi import App, Receive, Scope, Send, header, respond
from app.kernel.http.body import check_json, check_media_type, read_body
from app.kernel.http.problems import HttpProblem
from app.kernel.operations import BasicAuth, BearerToken, Caller, Origin
from app.kernel.telemetry import logs

_JSON = b"application/json"
_FORM = b"application/x-www-form-urlencoded"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Authenticate(Protocol):
    """Turn a bearer token into who asks. Raises Unauthenticated, Unavailable."""

    async def __call__(self, token: str, origin: Origin) -> Caller:
        """Return who holds the token."""
        ...


class NoteDenied(Protocol):
    """Note that a caller was denied an operation, for the audit trail."""

    async def __call__(self, caller: Caller, operation_id: str) -> None:
        """Note it. Raises Unavailable when it cannot be noted."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path that run an operation.

    The operation is given what the types of its parameters ask for: the Caller, the BearerToken or BasicAuth as it was
    sent, or one input: a dataclass made of path, query and body, or a list when the body is an array. A route is for
    those who hold `permission`, for everyone with a live session when that is empty, for everyone at all when `public`.
    Caches may keep answers for `cache_s` seconds; `headers` makes further header fields of a result. With `form`, the
    body is a form, and errors and answers are those of OAuth 2 (RFC 6749, section 5).
    """

    method: str
    path: str
    operation: Operation | Any
    permission: str = ""
    public: bool = False
    raises: tuple[type[Refusal], ...] = ()
    status: int = 200
    headers: Callable[[Any], dict[str, str]] | None = None
    cache_s: int = 0
    form: bool = False

    def __post_init__(self) -> None:
        if not hasattr(self.operation, "signature"):
            object.__setattr__(self, "operation", Classic(self.operation, self.path))


def routes_of(operations: Iterable[ActionOperation]) -> list[Route]:
    """Return the routes that actions declare, in the order of their declaration."""
    return [
        Route(a.method, a.path, o, permission=a.permission, public=a.public, raises=a.raises, status=a.status)
        for o in operations
        if (a := o.action).path
    ]


class _Endpoint:
    """Runs one operation for one route."""

    def __init__(
        self, route: Route, authenticate: Authenticate, denied: NoteDenied, limits: HttpServerSettings
    ) -> None:
        self._route = route
        self._authenticate = authenticate
        self._denied = denied
        self._limits = limits
        self._cache = f"public, max-age={route.cache_s}".encode() if route.cache_s else b"no-store"
        self._takes = route.operation.signature.takes
        returned = route.operation.signature.returns
        kind = input_type(route)
        self._input = None if kind is None else Decoder[Any](kind, ignore_unknown=route.form)
        self._in_path = bool(input_names(kind) & set(path_parameters(route.path)))
        self._has_body = has_body(route, kind)
        self._output = None if returned is type(None) else TypeAdapter[Any](returned)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._run(scope, receive, send)
        except (Invalid, Unauthenticated) as refusal:
            if not self._route.form:
                raise
            status, code = (401, refusal.code) if isinstance(refusal, Unauthenticated) else (400, refusal.code)
            body = {"error": "invalid_request" if code == Invalid.code else code, "error_description": str(refusal)}
            headers = [(b"cache-control", b"no-store")]
            if status == 401:
                headers.append((b"www-authenticate", b'Basic realm="oauth"'))
            await respond(send, status, _JSON, to_json(body), headers)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route
        logs.context(operation=route.operation.id)
        came_from: Origin = scope["state"]["origin"]
        caller = Caller(origin=came_from)
        if not route.public:
            caller = await self._authenticate(_bearer(scope), came_from)
            logs.context(actor_id=caller.actor_id)
        try:
            if route.permission and not caller.may(route.permission):
                raise Denied(f"this needs the permission {route.permission}")
            token = _bearer(scope) if self._takes(BearerToken) else BearerToken("")
            basic = _basic(scope) if self._takes(BasicAuth) else BasicAuth()
            given = None if self._input is None else await self._decode(self._input, scope, receive)
            result = await route.operation(Call(caller, token, basic), given)
        except Denied:
            await self._denied(caller, route.operation.id)
            raise
        if self._output is None:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            more = route.headers(result) if route.headers else {}
            headers = [(name.encode(), value.encode()) for name, value in more.items()]
            headers.append((b"cache-control", self._cache))
            await respond(send, route.status, _JSON, self._output.dump_json(result, exclude_none=route.form), headers)

    async def _decode(self, decoder: Decoder[Any], scope: Scope, receive: Receive) -> Any:
        path: dict[str, str] = scope["path_params"]
        if any("\0" in value for value in path.values()):
            raise HttpProblem(400, "NUL is not allowed in the path")
        if not self._has_body:
            query = _single(scope["query_string"])
            if twice := sorted(query.keys() & path.keys()):
                raise Invalid("the path says this already", tuple((name, "is in the path") for name in twice))
            return decoder.text({**query, **path})
        check_media_type(scope, _FORM if self._route.form else _JSON)
        body = await read_body(scope, receive, self._limits.max_body_bytes, self._limits.body_timeout)
        if self._route.form:
            return decoder.text(_single(body))
        check_json(body)
        return decoder.json(_merged(body, path) if self._in_path else body)


def _bearer(scope: Scope) -> BearerToken:
    """Return the token of the Authorization header (RFC 6750, section 2.1), the only place it is taken from."""
    scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise Unauthenticated("send an access token: Authorization: Bearer ...")
    return BearerToken(token.strip().decode("latin-1"))


def _basic(scope: Scope) -> BasicAuth:
    """Return name and password of the Authorization header, decoded as OAuth 2 wants it (RFC 6749, section 2.3.1)."""
    scheme, _, encoded = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return BasicAuth()
    try:
        username, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise Unauthenticated("the Authorization header is malformed") from None
    return BasicAuth(unquote_plus(username), unquote_plus(password))


def input_type(route: Route) -> Any:
    """Return what a route's operation takes as input: a dataclass, a list for a body that is an array, or None.

    Raises TypeError for what cannot be served.
    """
    kind = route.operation.signature.input
    is_array = kind is not None and not is_dataclass(kind)
    if is_array and (route.form or route.method == "GET" or path_parameters(route.path)):
        raise TypeError(f"{route.method} {route.path}: an array can only be the whole input, as a JSON body")
    return kind


def input_names(kind: Any) -> set[str]:
    """Return the names of an input's fields as clients write them; those of an array are none."""
    return {name_outside(field.name) for field in fields(kind)} if is_dataclass(kind) else set()


def has_body(route: Route, kind: Any) -> bool:
    """Return whether the input of this type comes as a body."""
    if kind is None or route.method == "GET":
        return False
    return not is_dataclass(kind) or not input_names(kind) <= set(path_parameters(route.path))


def path_parameters(path: str) -> list[str]:
    """Return the names in braces of a path, in order."""
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _single(query: bytes) -> dict[str, str]:
    """Return the parameters of a query or a form. Raises HttpProblem 400 for what can be read in two ways."""
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise HttpProblem(400, "parameters must be percent-encoded UTF-8") from None
    if _BROKEN_ESCAPE.search(query):
        raise HttpProblem(400, "a % in the parameters escapes nothing; write it as %25")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HttpProblem(400, "duplicate parameter")
    if "\0" in "".join(found.values()):
        raise HttpProblem(400, "NUL is not allowed in parameters")
    return found


def _merged(body: bytes, path: dict[str, str]) -> bytes:
    value = from_json(body)
    if not isinstance(value, dict) or value.keys() & path.keys():
        raise Invalid("the body must be an object without what the path already says")
    return to_json({**value, **path})


class _Methods:
    """The endpoints of one path, by method."""

    def __init__(self, path: str, endpoints: dict[str, _Endpoint]) -> None:
        self._path = path
        head = {"HEAD": endpoints["GET"]} if "GET" in endpoints else {}  # its body stays behind at the server
        self._endpoints = endpoints | head
        self._allow = ", ".join(sorted(self._endpoints)).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["route"] = self._path
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            raise HttpProblem(405, f"it supports {self._allow.decode()}", ((b"allow", self._allow),))
        await endpoint(scope, receive, send)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - an ASGI application
    raise HttpProblem(404)


def router(routes: Sequence[Route], authenticate: Authenticate, denied: NoteDenied, limits: HttpServerSettings) -> App:
    """Return the application that serves the routes."""
    paths: dict[str, dict[str, _Endpoint]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method] = _Endpoint(route, authenticate, denied, limits)
    declared = [StarletteRoute(path, _Methods(path, endpoints)) for path, endpoints in paths.items()]
    return Router(declared, redirect_slashes=False, default=_nothing_here)  # pyright: ignore[reportReturnType]
