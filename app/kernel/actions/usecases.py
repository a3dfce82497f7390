"""The catalogue of actions."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from app.kernel.actions import Action, declared
from app.kernel.actions.columns import Column, Columns
from app.kernel.product import NAME


@dataclass(frozen=True, slots=True)
class UseCase:
    """An action: what it does, how it is called over HTTP and on the command line, and the permission that it needs.

    Empty: `method` and `path` of an action without a route, `command` without a command, and `permission` if a
    session is enough. The timeline lists `notable` actions.
    """

    id: str
    module: str
    summary: str
    changes: bool
    method: str
    path: str
    permission: str
    public: bool
    command: str
    notable: bool

    columns: ClassVar[Columns] = (
        Column("action", "id"),
        Column("summary"),
        Column("request", lambda case: (case.method, case.path), extra=True),
        Column("permission", extra=True),
        Column("command"),
    )


class UseCases(NamedTuple):
    """The actions of all modules, by module and in the order of the code."""

    known: tuple[UseCase, ...]


def use_cases(module: str, feature: type[Any]) -> Iterator[UseCase]:
    """Yield the actions of a feature that somebody can call."""
    for name, work, _ in declared(feature):
        if not isinstance(work, Action) or not (work.path or work.command):
            continue
        summary = (inspect.getdoc(getattr(feature, name)) or work.id).partition("\n")[0]
        command = f"{NAME} {work.command}" if work.command else ""
        request = (work.method, work.path, work.permission, work.public)
        yield UseCase(work.id, module, summary, work.changes, *request, command, work.notable)
