"""From action to route. Routes are declared; one generic endpoint decodes, checks, runs and encodes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

from loguru import logger
from pydantic import TypeAdapter
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router

from app.kernel.actions.compose import make
from app.kernel.actions.operation import ActionOperation, Call
from app.kernel.audit import DenialLog
from app.kernel.callers import BasicAuth, BearerToken, Caller, Origin
from app.kernel.config import HttpServerSettings
from app.kernel.decoding import Decoder, name_outside
from app.kernel.errors import Denied, Invalid, Refusal, Unauthenticated, Unavailable
from app.kernel.http.asgi import TIMEOUT, App, Receive, Scope, Send, respond
from app.kernel.http.authenticators import Authenticator, Bearer, basic_auth, bearer_token
from app.kernel.http.body import check_media_type, read_body
from app.kernel.http.codecs import JSON, Codec, Form, merged_text
from app.kernel.http.problems import HttpProblem
from app.kernel.process import Process
from app.kernel.telemetry import logs

_JSON = b"application/json"


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
    `authenticator`, `codec`, `headers`, `cache_s` and `timeout_s` are those of `kernel.actions.Action`.
    """

    method: str
    path: str
    operation: ActionOperation
    permission: str = ""
    public: bool = False
    raises: tuple[type[Refusal], ...] = ()
    status: int = 200
    authenticator: type[Authenticator] = Bearer
    codec: Codec = JSON
    headers: Callable[[Any], Mapping[str, str]] | None = None
    cache_s: int = 0
    timeout_s: float = 0


def routes_of(operations: Iterable[ActionOperation]) -> list[Route]:
    """Return the routes that actions declare, in the order of their declaration."""
    return [
        Route(
            a.method,
            a.path,
            o,
            permission=a.permission,
            public=a.public,
            raises=a.raises,
            status=a.status,
            authenticator=a.authenticator,
            codec=a.codec,
            headers=a.headers,
            cache_s=a.cache_s,
            timeout_s=a.timeout_s,
        )
        for o in operations
        if (a := o.action).path
    ]


class _Endpoint:
    """Runs one operation for one route."""

    def __init__(
        self, route: Route, authenticator: Authenticator | None, denied: NoteDenied, limits: HttpServerSettings
    ) -> None:
        self._route = route
        self._authenticator = authenticator
        self._denied = denied
        self._limits = limits
        self._cache = f"public, max-age={route.cache_s}".encode() if route.cache_s else b"no-store"
        self._takes = route.operation.signature.takes
        returned = route.operation.signature.returns
        kind = input_type(route)
        self._input = None if kind is None else Decoder[Any](kind, ignore_unknown=route.codec.ignores_unknown)
        self._in_path = bool(input_names(kind) & set(path_parameters(route.path)))
        self._has_body = has_body(route, kind)
        self._codes = {kind.code for kind in refusals(route)}
        self._media_type = route.codec.media_type.encode()
        self._output = None if returned is type(None) or sends_itself(returned) else TypeAdapter[Any](returned)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._route.timeout_s:
            scope[TIMEOUT](self._route.timeout_s)
        try:
            await self._run(scope, receive, send)
        except (Refusal, HttpProblem) as refusal:
            response = self._route.codec.refuse(refusal)
            if response is None:
                raise
            await respond(send, *response)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route
        logs.context(operation=route.operation.id)
        came_from: Origin = scope["state"]["origin"]
        caller = Caller(origin=came_from)
        if self._authenticator is not None:
            caller = await self._authenticator(scope, came_from)
            logs.context(actor_id=caller.actor_id)
        try:
            if route.permission and not caller.may(route.permission):
                raise Denied(f"this needs the permission {route.permission}")
            token = bearer_token(scope) if self._takes(BearerToken) else BearerToken("")
            basic = basic_auth(scope) if self._takes(BasicAuth) else BasicAuth()
            given = None if self._input is None else await self._decode(self._input, scope, receive)
            result = await self._perform(Call(caller, token, basic), given)
        except Denied:
            await self._denied(caller, route.operation.id)
            raise
        headers = [(b"cache-control", self._cache)]
        if route.headers is not None:
            headers += [(name.encode(), value.encode()) for name, value in route.headers(result).items()]
        if self._output is not None:
            await respond(send, route.status, _JSON, route.codec.encode(self._output, result), headers)
        elif result is not None:
            await result.send(scope, receive, send, route.status, headers)
        else:
            await send({"type": "http.response.start", "status": 204, "headers": headers[1:]})
            await send({"type": "http.response.body", "body": b""})

    async def _perform(self, call: Call, given: Any) -> Any:
        try:
            return await self._route.operation(call, given)
        except Refusal as refusal:
            if refusal.code not in self._codes:
                logger.warning("{} raised {}, which it does not declare", self._route.operation.id, refusal.code)
            raise

    async def _decode(self, decoder: Decoder[Any], scope: Scope, receive: Receive) -> Any:
        path: dict[str, str] = scope["path_params"]
        if any("\0" in value for value in path.values()):
            raise HttpProblem(400, "NUL is not allowed in the path")
        if not self._has_body:
            return decoder.text(merged_text(scope["query_string"], path))
        check_media_type(scope, self._media_type)
        body = await read_body(scope, receive, self._limits.max_body_bytes, self._limits.body_timeout)
        return self._route.codec.decode(decoder, body, path if self._in_path else {})


def input_type(route: Route) -> Any:
    """Return what a route's operation takes as input: a dataclass, a list for a body that is an array, or None.

    Raises TypeError for what cannot be served.
    """
    kind = route.operation.signature.input
    is_array = kind is not None and not is_dataclass(kind)
    if is_array and (isinstance(route.codec, Form) or route.method == "GET" or path_parameters(route.path)):
        raise TypeError(f"{route.method} {route.path}: an array can only be the whole input, as a JSON body")
    return kind


def input_names(kind: Any) -> set[str]:
    """Return the names of an input's fields as clients write them; those of an array are none."""
    return {name_outside(field.name) for field in fields(kind)} if is_dataclass(kind) else set()


def sends_itself(returned: Any) -> bool:
    """Return whether what is returned is a Result."""
    return isinstance(returned, type) and hasattr(returned, "documented_as")


def refusals(route: Route) -> set[type[Refusal]]:
    """Return the refusals that callers of a route must expect: those of every request like it, and those declared."""
    takes = route.operation.signature.takes
    found: set[type[Refusal]] = {Unavailable, *route.raises}
    if not route.public or takes(BearerToken) or takes(BasicAuth):
        found.add(Unauthenticated)
    if route.permission:
        found.add(Denied)
    if route.operation.signature.input is not None:
        found.add(Invalid)
    return found


def has_body(route: Route, kind: Any) -> bool:
    """Return whether the input of this type comes as a body."""
    if kind is None or route.method == "GET":
        return False
    return not is_dataclass(kind) or not input_names(kind) <= set(path_parameters(route.path))


def path_parameters(path: str) -> list[str]:
    """Return the names in braces of a path, in order."""
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


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


async def api(p: Process, routes: Sequence[Route]) -> App:
    """Return the application that serves the routes, with what this process provides. Raises MissingProvider."""
    kinds = {route.authenticator for route in routes if not route.public}
    authenticators = {kind: await make(p, kind) for kind in kinds}
    return router(routes, authenticators, await make(p, DenialLog), p.settings[HttpServerSettings])


def router(
    routes: Sequence[Route],
    authenticators: Mapping[type[Authenticator], Authenticator],
    denied: NoteDenied,
    limits: HttpServerSettings,
) -> App:
    """Return the application that serves the routes."""
    paths: dict[str, dict[str, _Endpoint]] = {}
    for route in routes:
        authenticator = None if route.public else authenticators[route.authenticator]
        paths.setdefault(route.path, {})[route.method] = _Endpoint(route, authenticator, denied, limits)
    declared = [StarletteRoute(path, _Methods(path, endpoints)) for path, endpoints in paths.items()]
    return Router(declared, redirect_slashes=False, default=_nothing_here)  # pyright: ignore[reportReturnType]
