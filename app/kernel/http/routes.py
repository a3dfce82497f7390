"""From action to route: one generic endpoint authenticates, decodes, runs and encodes."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from loguru import logger
from pydantic import TypeAdapter
from starlette.routing import Route, Router

from app.kernel.actions import Action, declared
from app.kernel.actions.compose import make
from app.kernel.actions.operation import ActionOperation, Call
from app.kernel.audit import DenialLog
from app.kernel.callers import BasicAuth, BearerToken, Caller, Origin
from app.kernel.config import HttpServerSettings
from app.kernel.decoding import Decoder, name_outside
from app.kernel.errors import Denied, Invalid, Refusal, Unauthenticated, Unavailable
from app.kernel.http.asgi import TIMEOUT, App, Receive, Scope, Send, header, respond
from app.kernel.http.authenticators import Authenticator, basic_auth, bearer_token
from app.kernel.http.codecs import Form, check_media_type, merged_text, read_body
from app.kernel.http.problems import HttpProblem
from app.kernel.process import Process
from app.kernel.queue import InvalidDeclaration
from app.kernel.telemetry import logs

Authenticators = Mapping[type[Authenticator], Authenticator]
NoteDenied = Callable[[Caller, str], Awaitable[None]]
"""Records in the audit trail that a caller was denied an action."""


async def api(p: Process, operations: Sequence[ActionOperation]) -> App:
    """Return the application that serves the actions, with the providers of this process. Raises MissingProvider."""
    kinds = {operation.action.authenticator for operation in operations if not operation.action.public}
    authenticators = {kind: await make(p, kind) for kind in kinds}
    return router(operations, authenticators, await make(p, DenialLog), p.settings[HttpServerSettings])


def authenticators(features: Iterable[type[Any]]) -> set[type[Authenticator]]:
    """Return the authenticators of the routes of some features."""
    actions = [declaration for kind in features for _, declaration, _ in declared(kind)]
    return {a.authenticator for a in actions if isinstance(a, Action) and a.path and not a.public}


def router(
    operations: Sequence[ActionOperation],
    authenticators: Authenticators,
    denied: NoteDenied,
    limits: HttpServerSettings,
) -> App:
    """Return the application of the actions. Raises TypeError or InvalidDeclaration if one cannot be served."""
    paths: dict[str, dict[str, _Endpoint]] = {}
    for operation in operations:
        action = operation.action
        endpoints = paths.setdefault(action.path, {})
        if action.method in endpoints:
            raise InvalidDeclaration(f"{action.method} {action.path} is declared twice, the second time by {action.id}")
        endpoints[action.method] = _Endpoint(operation, authenticators, denied, limits)
    served = {path: _Methods(path, endpoints) for path, endpoints in paths.items()}
    routes = [Route(path, methods) for path, methods in served.items() if path_parameters(path)]
    others = Router(routes, redirect_slashes=False, default=_not_found)
    return _Paths({path: methods for path, methods in served.items() if not path_parameters(path)}, others)


class _Paths:
    """Finds paths without parameters at once, and the others by their patterns."""

    def __init__(self, fixed: Mapping[str, "_Methods"], others: Router) -> None:
        self._fixed = fixed
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._fixed.get(scope["path"])
        if methods is None:
            await self._others(scope, receive, send)
        else:
            scope["path_params"] = {}
            await methods(scope, receive, send)


Prepare = Callable[[], Awaitable[tuple[Call, Any]]]
"""Returns the caller with its credentials, and the input. Raises Refusal, HttpProblem."""


def check_may(caller: Caller, action: Action) -> None:
    """Raise Denied unless the caller holds the permission of an action."""
    if action.permission and not caller.may(action.permission):
        raise Denied(f"this needs the permission {action.permission}")


class Guarded:
    """Runs an action for a caller of a request: checks the permission before anything else, and records denials."""

    def __init__(self, operation: ActionOperation, denied: NoteDenied) -> None:
        self.operation = operation
        self._denied = denied
        self._codes = {kind.code for kind in refusals(operation)}

    async def check(self, caller: Caller) -> None:
        """Raise Denied, and record it, unless the caller holds the permission."""
        try:
            check_may(caller, self.operation.action)
        except Denied:
            await self._denied(caller, self.operation.id)
            raise

    async def __call__(self, caller: Caller, prepare: Prepare) -> Any:
        """Return the result of the action. Raises Refusal; HttpProblem of `prepare`."""
        action = self.operation.action
        try:
            check_may(caller, action)
            call, given = await prepare()
            return await self.operation(call, given)
        except Refusal as refusal:
            if isinstance(refusal, Denied):
                await self._denied(caller, action.id)
            if refusal.code not in self._codes:
                logger.warning("{} raised {}, which it does not declare", action.id, refusal.code)
            raise


class _Endpoint:
    """Runs one action over HTTP."""

    def __init__(
        self,
        operation: ActionOperation,
        authenticators: Authenticators,
        denied: NoteDenied,
        limits: HttpServerSettings,
    ) -> None:
        action, signature = operation.action, operation.signature
        kind, returned = input_type(operation), signature.returns
        self._run_action = Guarded(operation, denied)
        self._action = action
        self._authenticator = None if action.public else authenticators[action.authenticator]
        self._limits = limits
        self._cache = f"public, max-age={action.cache_s}".encode() if action.cache_s else b"no-store"
        self._takes_token, self._takes_basic = signature.takes(BearerToken), signature.takes(BasicAuth)
        self._input = None if kind is None else Decoder[Any](kind, ignore_unknown=action.codec.ignores_unknown)
        self._in_path = bool(input_names(kind) & set(path_parameters(action.path)))
        self._has_body = has_body(operation)
        self._may_omit_body = self._has_body and not needs_body(operation)
        self._output = None if returned is type(None) or sends_itself(returned) else TypeAdapter[Any](returned)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._action.timeout_s:
            scope[TIMEOUT](self._action.timeout_s)
        try:
            await self._run(scope, receive, send)
        except (Refusal, HttpProblem) as refusal:
            response = self._action.codec.refuse(refusal)
            if response is None:
                raise
            await respond(send, *response)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        action = self._action
        logs.context(operation=action.id)
        came_from: Origin = scope["state"]["origin"]
        caller = Caller(origin=came_from)
        if self._authenticator is not None:
            caller = await self._authenticator(scope, came_from)
            logs.context(actor_id=caller.actor_id)

        async def prepare() -> tuple[Call, Any]:
            token = bearer_token(scope) if self._takes_token else BearerToken("")
            basic = basic_auth(scope) if self._takes_basic else BasicAuth()
            given = None if self._input is None else await self._decode(self._input, scope, receive)
            return Call(caller, token, basic), given

        result = await self._run_action(caller, prepare)
        headers = [(b"cache-control", self._cache)]
        if action.headers is not None:
            headers += [(name.encode(), value.encode()) for name, value in action.headers(result).items()]
        if self._output is not None:
            body = action.codec.encode(self._output, result)
            await respond(send, action.status, b"application/json", body, headers)
        elif result is not None:
            await result.send(scope, receive, send, action.status, headers)
        else:
            await send({"type": "http.response.start", "status": 204, "headers": headers[1:]})
            await send({"type": "http.response.body", "body": b""})

    async def _decode(self, decoder: Decoder[Any], scope: Scope, receive: Receive) -> Any:
        path: dict[str, str] = scope["path_params"]
        if any("\0" in value for value in path.values()):
            raise HttpProblem(400, "NUL is not allowed in the path")
        if not self._has_body:
            return decoder.text(merged_text(scope["query_string"], path))
        if not self._may_omit_body or header(scope, b"content-type") is not None:
            check_media_type(scope, self._action.codec.media_type)
        body = await read_body(scope, receive, self._limits.max_body_bytes, self._limits.body_timeout)
        if self._may_omit_body and not body:
            return decoder.text(path)
        check_media_type(scope, self._action.codec.media_type)
        return self._action.codec.decode(decoder, body, path if self._in_path else {})


class _Methods:
    """The endpoints of one path, by method."""

    def __init__(self, path: str, endpoints: dict[str, _Endpoint]) -> None:
        self._path = path
        head = {"HEAD": endpoints["GET"]} if "GET" in endpoints else {}  # the server drops its body
        self._endpoints = endpoints | head
        self._allow = ", ".join(sorted(self._endpoints)).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["route"] = self._path
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            raise HttpProblem(405, f"it supports {self._allow.decode()}", ((b"allow", self._allow),))
        await endpoint(scope, receive, send)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - an ASGI application
    raise HttpProblem(404)


# Properties of routes, for the router and OpenAPI.


def input_type(operation: ActionOperation) -> Any:
    """Return the input type of an action: a dataclass, a list for a JSON array, or None.

    Raises TypeError for one that cannot be served.
    """
    action, kind = operation.action, operation.signature.input
    is_array = kind is not None and not is_dataclass(kind)
    if is_array and (isinstance(action.codec, Form) or action.method == "GET" or path_parameters(action.path)):
        raise TypeError(f"{action.method} {action.path}: an array can only be the whole input, as a JSON body")
    return kind


def input_names(kind: Any) -> set[str]:
    """Return the external names of an input's fields; none for an array."""
    return {name_outside(field.name) for field in fields(kind)} if is_dataclass(kind) else set()


def has_body(operation: ActionOperation) -> bool:
    """Return whether the input comes as a body."""
    action, kind = operation.action, operation.signature.input
    if kind is None or action.method == "GET":
        return False
    return not is_dataclass(kind) or not input_names(kind) <= set(path_parameters(action.path))


def needs_body(operation: ActionOperation) -> bool:
    """Return whether a request without a body is refused, because a field of the body is required."""
    kind = operation.signature.input
    in_path = set(path_parameters(operation.action.path))
    return not is_dataclass(kind) or any(
        item.default is MISSING and item.default_factory is MISSING
        for item in fields(kind)
        if name_outside(item.name) not in in_path
    )


def path_parameters(path: str) -> list[str]:
    """Return the parameter names of a path, in order."""
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def sends_itself(returned: Any) -> bool:
    """Return whether the return type is a `results.Result`."""
    return isinstance(returned, type) and hasattr(returned, "documented_as")


def refusals(operation: ActionOperation) -> set[type[Refusal]]:
    """Return the refusals that callers must expect: the implied and the declared ones."""
    action, signature = operation.action, operation.signature
    found: set[type[Refusal]] = {Unavailable, *action.raises}
    if not action.public or signature.takes(BearerToken) or signature.takes(BasicAuth):
        found.add(Unauthenticated)
    if action.permission:
        found.add(Denied)
    if signature.input is not None:
        found.add(Invalid)
    return found
