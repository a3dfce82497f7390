"""Composition by type: the fields of a feature are its dependencies. Each type has one object per process.

The object of a type comes from its provider, from the settings if the type is a section, or, if the type is a
dataclass, from its constructor with its own dependencies.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

from app.kernel.actions import Action, Signature, Work, declared
from app.kernel.actions.operation import ActionOperation, Call, Timed
from app.kernel.audit import Audit
from app.kernel.callers import operator
from app.kernel.config import Settings
from app.kernel.db import Database, Replicas
from app.kernel.process import Process, Provider
from app.kernel.process.needs import used_by
from app.kernel.queue import Handler, InvalidDeclaration, Subscriber

T = TypeVar("T")
Providers = Mapping[type[Any], Provider[Any]]


class MissingProvider(InvalidDeclaration):
    """A type has no provider; the message names the class, the field and the type."""


async def make(p: Process, kind: type[T]) -> T:
    """Return the object of a type in this process; create it first if needed.

    Call it during start-up. Raises MissingProvider and the errors of providers. Safe to repeat.
    """
    if kind in p.made:
        return p.made[kind]
    if (provider := p.providers.get(kind)) is not None:
        made = await p.use(provider)
    elif kind in p.settings.sections:
        made = p.settings.sections[kind]
    elif kind is Settings:
        made = p.settings
    else:
        made = kind(**{name: await make(p, needed) for name, needed in _needs(kind, p.providers, p.settings.sections)})
    p.made[kind] = made
    return cast("T", made)


async def demand(p: Process, kinds: Iterable[type[Any]]) -> None:
    """Check the settings that the objects of some types use, and fetch their secrets, before anything is opened.

    Raises Misconfigured with all problems, StoresUnavailable. Safe to repeat.
    """
    await p.demand(demanded(kinds, p.providers, p.settings.sections))


def demanded(kinds: Iterable[type[Any]], providers: Providers, sections: Collection[type[Any]]) -> list[type[Any]]:
    """Return the sections whose secrets the objects of some types use, and those that are among the types."""
    given = list(kinds)
    named = [kind for kind in given if kind in sections]
    return list(dict.fromkeys([*named, *_sections(given, providers, sections, set())]))


def _sections(
    kinds: Iterable[type[Any]], providers: Providers, sections: Iterable[type[Any]], seen: set[type[Any]]
) -> Iterator[type[Any]]:
    """Yield the sections that the providers of some types declare to use."""
    for kind in kinds:
        if kind in seen:
            continue
        seen.add(kind)
        if (provider := providers.get(kind)) is not None:
            yield from (used for used in used_by(provider) if used in sections)
            yield from _sections(used_by(provider), providers, sections, seen)
        elif kind is not Settings and kind not in sections and _can_be_made(kind):
            needed = [needed for _, needed in _needs(kind, providers, sections)]
            yield from _sections(needed, providers, sections, seen)


def check(kind: type[Any], providers: Providers, sections: Iterable[type[Any]]) -> None:
    """Raise MissingProvider if a dependency of a class has no provider. Opens nothing."""
    known = frozenset({*sections, Settings})
    for _, needed in _needs(kind, providers, known):
        if needed not in providers and needed not in known:
            check(needed, providers, known)


def _needs(kind: type[Any], providers: Providers, sections: Iterable[type[Any]]) -> Iterator[tuple[str, type[Any]]]:
    if not is_dataclass(kind):
        raise InvalidDeclaration(f"{kind.__module__}.{kind.__qualname__} is no dataclass, so it cannot be made")
    hints = get_type_hints(kind)
    for item in fields(cast("Any", kind)):
        needed = hints[item.name]
        if needed not in providers and needed not in sections and not _can_be_made(needed):
            where = f"{kind.__module__}.{kind.__qualname__}.{item.name}"
            raise MissingProvider(f"{where} needs {getattr(needed, '__qualname__', needed)}, which nothing provides")
        yield item.name, needed


def _can_be_made(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind) and not getattr(kind, "_is_protocol", False)


async def operations(p: Process, features: Iterable[type[Any]]) -> list[ActionOperation]:
    """Return the actions of some features. Raises like `make`."""
    found: list[ActionOperation] = []
    kinds = list(features)
    await demand(p, [*kinds, Database])
    for kind in kinds:
        db, audit = await make(p, Database), await make(p, Audit)
        replicas = await make(p, Replicas) if Replicas in p.providers else None
        feature = await make(p, kind)
        for name, declaration, signature in declared(kind):
            if isinstance(declaration, Action):
                found.append(ActionOperation(declaration, getattr(feature, name), signature, db, audit, replicas))
    return found


class Operations:
    """Actions by id, for commands."""

    def __init__(self, found: Iterable[ActionOperation]) -> None:
        self._found = {operation.id: operation for operation in found}

    async def __call__(self, action_id: str, given: Any = None) -> Any:
        """Run an action as the user of the operating system."""
        return await self._found[action_id](Call(operator()), given)


async def handlers(p: Process, features: Iterable[type[Any]]) -> list[Handler | Subscriber]:
    """Return the handlers and subscribers of some features. Raises like `make`."""
    found: list[Handler | Subscriber] = []
    kinds = list(features)
    await demand(p, working(kinds))
    for kind in kinds:
        works = [(name, work, signature) for name, work, signature in declared(kind) if isinstance(work, Work)]
        feature = await make(p, kind) if works else None
        for name, work, signature in works:
            operation = JobOperation(work.id, getattr(feature, name), signature, await make(p, Database))
            mode = "tx" if signature.is_transactional else "at_least_once"
            if work.task is not None:
                found.append(Handler(work.task, operation, mode))
            elif work.event is not None:
                found.append(Subscriber(work.id, work.event, operation, mode, **work.options))
    return found


def working(features: Iterable[type[Any]]) -> list[type[Any]]:
    """Return the features that have handlers or subscribers."""
    return [kind for kind in features if any(isinstance(work, Work) for _, work, _ in declared(kind))]


def queues(kind: type[Any]) -> set[str]:
    """Return the queues of the tasks that a feature runs."""
    works = [work for _, work, _ in declared(kind) if isinstance(work, Work)]
    return {work.task.queue for work in works if work.task is not None}


class JobOperation:
    """A method of a feature that runs jobs. Logs each run; the worker creates the span."""

    def __init__(self, operation_id: str, body: Callable[..., Any], signature: Signature, db: Database) -> None:
        self.operation_id = operation_id
        self._body = body
        self._db = db
        self._takes_database = signature.takes(Database)

    async def __call__(self, *arguments: Any) -> Any:
        """Run the method with the transaction, if it takes one, and the payload."""
        with Timed(self.operation_id):
            return await self._body(*((self._db, *arguments) if self._takes_database else arguments))


@asynccontextmanager
async def value(made: T) -> AsyncGenerator[T]:
    """Provide an existing object."""
    yield made
