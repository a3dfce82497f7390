"""Actions: the unit of business work, declared once.

An action is a method of a feature class under `@read` or `@change`. From the declaration follow its route, its OpenAPI
entry, its command, its permission check, its transaction, its audit record and its span. The decorators return the
method as it is, so a test calls it like any other.
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
from app.kernel.queue import Event, Task

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
_DECLARED = "__declared__"


@dataclass(slots=True)
class Note:
    """What an action adds to its audit record: to whom it was done, and details that hold no secret."""

    target: object = None
    recorded: bool = True
    """False when nothing was changed, so that there is nothing to record."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Action:
    """What is declared of an action.

    Whoever is signed in may run it, holders of `permission` when it names one, everyone when it is `public`. `raises`
    are the refusals that callers must expect, besides those of every request.

    `command` is its name on the command line. A change with `confirm` is destructive: it asks that question first.
    `message` reports success, when the result has no text of its own. `{field}` in both stands for a field of the input
    or the result. A list that is empty says `empty`: what to do next. A change with `count`, the id of the action that
    counts the rows, works in parts: its result has `next_cursor`, and the command goes on until that is None.

    Over HTTP, `authenticator` finds out who asks, `codec` reads and writes bodies, `headers` makes further header
    fields of a result, caches may keep a result for `cache_s` seconds, and `timeout_s` seconds replace
    `http_server.handle_timeout`.
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
    empty: str = ""
    examples: tuple[str, ...] = ()
    authenticator: type[Authenticator] = Bearer
    codec: Codec = JSON
    headers: Callable[[Any], Mapping[str, str]] | None = None
    cache_s: int = 0
    timeout_s: float = 0


class Declared(TypedDict, total=False):
    """What every action may declare: fields of `Action`."""

    permission: str
    public: bool
    raises: tuple[type[Refusal], ...]
    status: int
    command: str
    confirm: str
    message: str
    count: str
    empty: str
    examples: tuple[str, ...]
    authenticator: type[Authenticator]
    codec: Codec
    headers: Callable[[Any], Mapping[str, str]]
    cache_s: int
    timeout_s: float


@dataclass(frozen=True)
class Work:
    """What is declared of a method that runs jobs: of a task, or of the events of a class."""

    id: str
    task: Task[Any] | None = None
    event: type[Event] | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read(action_id: str, *, GET: str = "", **declared: Unpack[Declared]) -> Callable[[F], F]:  # noqa: N803
    """Declare an action that changes nothing. It is given the Database if it asks for it."""
    return _declaring(Action(action_id, False, "GET" if GET else "", GET, **declared))


def change(
    action_id: str,
    *,
    POST: str = "",  # noqa: N803 - it reads as the request does
    PUT: str = "",  # noqa: N803
    PATCH: str = "",  # noqa: N803
    DELETE: str = "",  # noqa: N803
    **declared: Unpack[Declared],
) -> Callable[[F], F]:
    """Declare an action that changes something.

    One that takes a Transaction is given one that is open, is recorded in the audit trail inside it, and is rolled back
    when it raises. One that must itself decide what is committed takes the Database instead, and records itself.
    """
    paths = {"POST": POST, "PUT": PUT, "PATCH": PATCH, "DELETE": DELETE}
    routes = [(method, path) for method, path in paths.items() if path]
    if len(routes) > 1:
        raise TypeError(f"action {action_id}: give one route")
    method, path = routes[0] if routes else ("", "")
    return _declaring(Action(action_id, True, method, path, **declared))


def task(work: Task[Any]) -> Callable[[F], F]:
    """Declare a method that runs the jobs of a task; with a Transaction among its parameters, exactly once."""
    return _declaring(Work(work.name, task=work))


def subscriber(name: str, event: type[Event], **options: Any) -> Callable[[F], F]:
    """Declare a method that is given each event of a class; `options` are those of `queue.Subscriber`."""
    return _declaring(Work(name, event=event, options=options))


def _declaring(declared: Action | Work) -> Callable[[F], F]:
    def mark(method: F) -> F:
        setattr(method, _DECLARED, declared)
        return method

    return mark


@dataclass(frozen=True)
class Signature:
    """What a method asks for and returns, by the types of its parameters."""

    parameters: tuple[Any, ...]
    returns: Any
    input: Any = None
    """The dataclass that it takes as input, or the list when that is an array; None when there is none."""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "Signature":
        """Return the signature of a method. Raises TypeError for one that no adapter could call."""
        hints = get_type_hints(function, include_extras=True)
        returns = hints.pop("return")
        inputs = {name: hint for name, hint in hints.items() if not _is_given(_plain(hint))}
        for name, hint in inputs.items():
            if _plain(hint) not in _ARRAYS and not is_dataclass(_plain(hint)):
                raise TypeError(f"{function.__qualname__}: {name} must be a dataclass or a list, not {hint}")
        if len(inputs) > 1:
            raise TypeError(f"{function.__qualname__}: there can be only one input")
        return cls(tuple(map(_plain, hints.values())), returns, next(iter(inputs.values()), None))

    def takes(self, kind: object) -> bool:
        """Return whether it asks for this."""
        return kind in self.parameters

    @property
    def is_transactional(self) -> bool:
        """Whether it takes part in a transaction of its caller."""
        return Transaction in self.parameters


_ARRAYS = (list, tuple, Sequence)
_GIVEN = (Database, Transaction, Note, BearerToken, BasicAuth)


def _is_given(kind: Any) -> bool:
    return kind in _GIVEN or is_caller(kind)


def is_caller(kind: Any) -> bool:
    """Return whether a type is that of who calls."""
    return isinstance(kind, type) and issubclass(kind, Caller)


def _plain(hint: Any) -> Any:
    """Return a type without its annotations and parameters."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    return get_origin(hint) or hint


def declared(feature: type[Any]) -> Iterator[tuple[str, Action | Work, Signature]]:
    """Yield what a feature class declares, in the order of its text: the name of the method, declaration, signature."""
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
