"""Actions: the unit of business work, declared once.

An action is a method of a feature class under `@read` or `@change`. Its route, OpenAPI entry, command, permission
check, transaction, audit record and span are derived from the declaration. The decorators return the method unchanged,
so tests call it directly.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, TypedDict, TypeVar, Unpack, get_args, get_origin, get_type_hints

from app.kernel.callers import BasicAuth, BearerToken, Caller
from app.kernel.db import Database, Transaction
from app.kernel.errors import Refusal
from app.kernel.fields import Doc
from app.kernel.http.authenticators import Authenticator, Bearer
from app.kernel.http.codecs import JSON, Codec
from app.kernel.queue import Event, InvalidDeclaration, Task

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
_DECLARED = "__declared__"


@dataclass(slots=True)
class Note:
    """The part of an audit record that an action sets: the target, and details without secrets."""

    target: object = None
    recorded: bool = True
    """False if nothing was changed."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Action:
    """The declaration of an action.

    The caller must hold `permission`; without one, a live session is enough; a `public` action needs neither. `raises`
    lists the refusals of the action, without those of every request.

    `command` is its name on the command line. A destructive change asks `confirm` first. `message` reports success
    unless the result has its own text. `{field}` in both is a field of the input or the result. An empty list prints
    `empty`, a next step. `count` is the id of the action that counts the rows of a batched change: the result has
    `next_cursor`, and the command repeats the change until it is None. `preview` is the id of the read that returns
    what a change would do with the same input.

    Over HTTP, `authenticator` authenticates the request, `codec` reads and writes bodies, `headers` returns header
    fields of a result, `cache_s` is the maximum age of a cached result, and `timeout_s` replaces
    `http_server.handle_timeout`.

    A `notable` change is listed by the timeline, because the behaviour of the deployment may change with it.

    A read over HTTP with `replica` may be made on a replica, which lags a little; never behind the caller's changes.
    """

    id: str
    changes: bool
    method: str = ""
    path: str = ""
    permission: str = ""
    public: bool = False
    raises: tuple[type[Refusal], ...] = ()
    status: int = 200
    command: str = ""
    confirm: str = ""
    message: str = ""
    count: str = ""
    preview: str = ""
    empty: str = ""
    examples: tuple[str, ...] = ()
    authenticator: type[Authenticator] = Bearer
    codec: Codec = JSON
    headers: Callable[[Any], Mapping[str, str]] | None = None
    cache_s: int = 0
    timeout_s: float = 0
    replica: bool = False
    notable: bool = False


class Declared(TypedDict, total=False):
    """Options of `@read` and `@change`: fields of `Action`."""

    permission: str
    public: bool
    raises: tuple[type[Refusal], ...]
    status: int
    command: str
    confirm: str
    message: str
    count: str
    preview: str
    empty: str
    examples: tuple[str, ...]
    authenticator: type[Authenticator]
    codec: Codec
    headers: Callable[[Any], Mapping[str, str]]
    cache_s: int
    timeout_s: float
    replica: bool
    notable: bool


@dataclass(frozen=True)
class Work:
    """The declaration of a method that runs the jobs of a task or of an event class."""

    id: str
    task: Task[Any] | None = None
    event: type[Event] | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read(
    action_id: str,
    *,
    GET: str = "",  # noqa: N803 - it reads as the request does
    POST: str = "",  # noqa: N803
    **declared: Unpack[Declared],
) -> Callable[[F], F]:
    """Declare an action that changes nothing. Reads take the Database. One whose input is a body is a POST."""
    return _declaring(Action(action_id, False, "GET" if GET else "POST" if POST else "", GET or POST, **declared))


def change(
    action_id: str,
    *,
    POST: str = "",  # noqa: N803
    PUT: str = "",  # noqa: N803
    PATCH: str = "",  # noqa: N803
    DELETE: str = "",  # noqa: N803
    **declared: Unpack[Declared],
) -> Callable[[F], F]:
    """Declare an action that changes data.

    An action that takes a Transaction runs inside it with its audit record, and is rolled back if it raises. An action
    that takes the Database commits and records by itself.
    """
    paths = {"POST": POST, "PUT": PUT, "PATCH": PATCH, "DELETE": DELETE}
    routes = [(method, path) for method, path in paths.items() if path]
    if len(routes) > 1:
        raise InvalidDeclaration(f"action {action_id}: give one route")
    if declared.get("replica"):
        raise InvalidDeclaration(f"action {action_id}: only a read can be made on a replica")
    method, path = routes[0] if routes else ("", "")
    return _declaring(Action(action_id, True, method, path, **declared))


def task(work: Task[Any]) -> Callable[[F], F]:
    """Declare a method that runs the jobs of a task. With a Transaction parameter it runs them exactly once."""
    return _declaring(Work(work.name, task=work))


def subscriber(name: str, event: type[Event], **options: Any) -> Callable[[F], F]:
    """Declare a method that receives the events of a class; `options` are those of `queue.Subscriber`."""
    return _declaring(Work(name, event=event, options=options))


def _declaring(declared: Action | Work) -> Callable[[F], F]:
    def mark(method: F) -> F:
        setattr(method, _DECLARED, declared)
        return method

    return mark


@dataclass(frozen=True)
class Signature:
    """The types of the parameters and the result of a method."""

    parameters: tuple[Any, ...]
    returns: Any
    input: Any = None
    """The input: a dataclass or a list; None without an input."""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Signature":
        """Return the signature of a method. Raises TypeError for an unsupported one."""
        hints = get_type_hints(function, include_extras=True)
        place = f"{function.__module__}.{function.__qualname__}"
        if "return" not in hints:
            raise InvalidDeclaration(f"{place}: it needs a return type, such as None")
        returns = hints.pop("return")
        inputs = {name: hint for name, hint in hints.items() if not _is_given(_plain(hint))}
        for name, hint in inputs.items():
            if _plain(hint) not in _ARRAYS and not is_dataclass(_plain(hint)):
                raise InvalidDeclaration(f"{place}: {name} must be a dataclass or a list, not {hint}")
        if len(inputs) > 1:
            raise InvalidDeclaration(f"{place}: there can be only one input, not {' and '.join(inputs)}")
        return cls(tuple(map(_plain, hints.values())), returns, next(iter(inputs.values()), None))

    def takes(self, kind: object) -> bool:
        """Return whether the method takes a type."""
        return kind in self.parameters

    @property
    def is_transactional(self) -> bool:
        """Whether the method takes a transaction."""
        return Transaction in self.parameters


_ARRAYS = (list, tuple, Sequence)
_GIVEN = (Database, Transaction, Note, BearerToken, BasicAuth)


def _is_given(kind: Any) -> bool:
    return kind in _GIVEN or is_caller(kind)


def is_caller(kind: Any) -> bool:
    """Return whether a type is Caller or a subclass."""
    return isinstance(kind, type) and issubclass(kind, Caller)


def _plain(hint: Any) -> Any:
    """Return a type without its annotations and parameters."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    return get_origin(hint) or hint


def declared(feature: type[Any]) -> Iterator[tuple[str, Action | Work, Signature]]:
    """Yield the declarations of a feature class in source order: name of the method, declaration, signature."""
    for name, method in vars(feature).items():
        found = getattr(method, _DECLARED, None)
        if found is not None:
            yield name, found, Signature.of(method)


__all__ = [
    "Action",
    "BasicAuth",
    "BearerToken",
    "Caller",
    "Database",
    "Doc",
    "Note",
    "Signature",
    "Transaction",
    "Work",
    "change",
    "declared",
    "is_caller",
    "read",
    "subscriber",
    "task",
]
