"""Actions as HTTP and the command line run them: with span, transaction and audit record."""

import inspect
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from loguru import logger

from app.kernel.actions import (
    Action,
    BasicAuth,
    BearerToken,
    Caller,
    Database,
    Note,
    Signature,
    Transaction,
    is_caller,
)
from app.kernel.audit import Audit
from app.kernel.db import Replicas
from app.kernel.errors import Refusal
from app.kernel.telemetry.traces import span

_NO_TOKEN, _NO_NAME = BearerToken(""), BasicAuth()
Body = Callable[..., Coroutine[Any, Any, Any]]


class Timed:
    """Logs the outcome and the duration of its body. A generator would cost twice as much."""

    __slots__ = ("_id", "_started")

    def __init__(self, operation_id: str) -> None:
        self._id = operation_id

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        outcome = "done" if error is None else error.code if isinstance(error, Refusal) else "failed"
        logger.debug("{} {} in {:.1f} ms", self._id, outcome, (time.perf_counter() - self._started) * 1000)


@dataclass(frozen=True, slots=True)
class Call:
    """A caller and its credentials."""

    caller: Caller
    token: BearerToken = _NO_TOKEN
    basic: BasicAuth = _NO_NAME


class ActionOperation:
    """An action of a feature object."""

    def __init__(
        self,
        action: Action,
        body: Body,
        signature: Signature,
        db: Database,
        audit: Audit,
        replicas: Replicas | None = None,
    ) -> None:
        self.id = action.id
        self.action = action
        self.signature = signature
        self._bind = binder(signature)
        self.description = inspect.getdoc(body) or action.id
        self.method = body.__name__
        self.feature: type[Any] = type(getattr(body, "__self__", body))
        self._body = body
        self._db = db
        self._audit = audit
        self._replicas = replicas

    async def __call__(self, call: Call, given: Any = None) -> Any:
        """Run the action with its input, in its transaction."""
        with span(self.id), Timed(self.id):
            if not self.signature.is_transactional:
                db = self._db
                if self._replicas is not None and self.action.replica:
                    db = self._replicas.reading(_who(call.caller))
                result = await self._body(*self._bind(db, None, call.token, call.basic, call.caller, given))
                if self._replicas is not None and self.action.changes:
                    await self._replicas.wrote(db, _who(call.caller))
                return result
            note = Note(_target(self.action.path, given))
            async with self._db.begin() as tx:
                result = await self._body(*self._bind(tx, note, call.token, call.basic, call.caller, given))
                if note.recorded:
                    await self._audit.record(tx, call.caller, self.id, target=_named(note.target), **note.details)
                    if self._replicas is not None:
                        await self._replicas.wrote(tx, _who(call.caller))
            return result


_PLACES: dict[Any, int] = {Database: 0, Transaction: 0, Note: 1, BearerToken: 2, BasicAuth: 3}
_CALLER, _INPUT = 4, 5


def binder(signature: Signature) -> Callable[..., list[Any]]:
    """Return a function that selects the arguments of a method by the types of its parameters.

    It takes the database or transaction, the note, the token, the name and password, the caller, and the input.
    """
    places = [_PLACES.get(kind, _CALLER if is_caller(kind) else _INPUT) for kind in signature.parameters]
    return lambda *there: [there[place] for place in places]


def _who(caller: Caller) -> str:
    """Return the name of a session, or of the actor of a key."""
    return str(caller.session_id or caller.actor_id or "")


def _named(target: object) -> str | None:
    return None if target is None else str(target)


def _target(path: str, given: Any) -> Any:
    """Return the target: the first parameter of the path."""
    _, _, rest = path.partition("{")
    return getattr(given, rest.partition("}")[0], None) if rest else None
