"""What is wrong with the declarations of modules, each with its place: what a newcomer gets wrong first."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from string import Formatter
from typing import Any, get_args, get_origin, get_type_hints

from jinja2 import Environment, TemplateSyntaxError

from app.cli import COMMANDS
from app.kernel.actions import Action, Doc, Signature, Work, declared
from app.kernel.actions.compose import Providers, check
from app.kernel.decoding import name_outside
from app.kernel.module import Module
from app.kernel.paging import Page
from app.kernel.queue import InvalidDeclaration

PERMISSION = re.compile(r"[a-z_]+(:[a-z_]+){1,2}")


def problems(
    modules: Iterable[Module], providers: Providers, sections: Iterable[type[Any]], processes: Iterable[str]
) -> list[str]:
    """Return everything that is wrong with some modules, a line each."""
    known = list(modules)
    return [
        *(line for module in known for line in _names(module)),
        *(line for module in known for line in _loaded(module, lambda m: _declarations(m, known))),
        *(line for module in known for line in _loaded(module, _templates)),
        *(line for module in known for line in _loaded(module, lambda m: _composition(m, providers, list(sections)))),
        *_duplicates(known, processes),
    ]


def _loaded(module: Module, checks: Callable[[Module], Iterator[str]]) -> Iterator[str]:
    try:
        yield from checks(module)
    except InvalidDeclaration:  # _names says it
        return


def _names(module: Module) -> Iterator[str]:
    """Check that each `file:NAME` names something."""
    named = [feature.where for feature in module.features]
    named += [
        module.settings,
        module.providers,
        module.schedules,
        module.checks,
        module.banner,
        *module.constraints.values(),
    ]
    named += ["cli:typer_app"] if module.commands else []
    for where in filter(None, named):
        try:
            found = module.load(where)
            if isinstance(found, type):
                list(declared(found))  # reads the signatures of its methods
        except InvalidDeclaration as error:
            yield str(error)


def actions(module: Module, group: str | None = None) -> Iterator[tuple[str, Action, Signature, Any]]:
    """Yield the place of each action, its declaration, its signature and its method; of all features or of a group."""
    for kind in module.feature_classes(group):
        for name, declaration, signature in declared(kind):
            if isinstance(declaration, Action):
                yield f"{kind.__module__}.{kind.__qualname__}.{name}", declaration, signature, getattr(kind, name)


def _declarations(module: Module, known: list[Module]) -> Iterator[str]:
    ids = {action.id for other in known for _, action, _, _ in actions(other)}

    def of_group(group: str) -> set[str]:
        return {place for place, *_ in actions(module, group)} if group in module.groups() else set()

    for permission in module.permissions:
        if not PERMISSION.fullmatch(permission) or not permission.startswith(f"{module.name}:"):
            yield f"{module.package}: the permission {permission!r} is not {module.name}:<resource>:<action>"
    for place, action, signature, method in actions(module):
        if not action.id.startswith(f"{module.name}."):
            yield f"{place}: the id {action.id!r} does not begin with {module.name!r} and a full stop"
        if action.permission and action.permission not in module.permissions:
            yield f"{place}: the permission {action.permission!r} is not among the permissions of {module.package}"
        if action.command and place not in of_group(group := action.command.split()[0]):
            yield f"{place}: the command {action.command!r} needs a feature of that group: Feature(..., {group!r})"
        if action.command and len(action.command.split()) < 2:
            yield f"{place}: the command {action.command!r} needs a group and a verb"
        if action.path and not action.path.startswith("/"):
            yield f"{place}: the path {action.path!r} does not begin with /"
        if action.count and action.count not in ids:
            yield f"{place}: count names {action.count!r}, which is no action"
        if action.preview and action.preview not in ids:
            yield f"{place}: preview names {action.preview!r}, which is no action"
        if not inspect.getdoc(method):
            yield f"{place}: it has no docstring, which is its summary in OpenAPI and its help"
        given = signature.input if hasattr(signature.input, "__dataclass_fields__") else None
        names = {name_outside(field.name) for field in fields(given)} if given else set()
        for missing in {part[1:-1] for part in action.path.split("/") if part.startswith("{")} - names:
            yield f"{place}: {{{missing}}} of the path is no field of its input"
        yield from (f"{place}: {line}" for line in _shown(action, signature, names))
        if given and (action.path or action.command):
            yield from (f"{place}: the field {name} of {given.__name__} has no Doc" for name in _undocumented(given))
    has_routes = any(action.path for _, action, _, _ in actions(module))
    if has_routes != bool(module.process):
        yield f"{module.package}: say serves={has_routes}, as it has {'a' if has_routes else 'no'} route"


def _templates(module: Module) -> Iterator[str]:
    """Check that each template of the console is one, and named after an action."""
    ids = {action.id for _, action, _, _ in actions(module)}
    for file in sorted(Path(import_module(module.package).__path__[0], "console").glob("*.html")):
        if file.stem not in ids:
            yield f"{module.package}: the template console/{file.name} is named after no action"
        try:
            Environment(autoescape=True).parse(file.read_text())
        except TemplateSyntaxError as error:
            yield f"{module.package}: the template console/{file.name}, line {error.lineno}: {error.message}"


def _shown(action: Action, signature: Signature, given: set[str]) -> Iterator[str]:
    """Check that what a command shows are fields: of the input, of the result, of the rows of a page."""
    results = {name_outside(name) for name in getattr(signature.returns, "__dataclass_fields__", ())}
    for what, text, known in (("confirm", action.confirm, {"count"}), ("message", action.message, results)):
        for name in {name for _, name, _, _ in Formatter().parse(text) if name} - known - given:
            yield f"{what} names {{{name}}}, which is no field"
    if action.command and get_origin(signature.returns) is Page:
        [row] = get_args(signature.returns)
        if not hasattr(row, "columns"):
            yield f"{row.__name__} has no columns, which its command lists"
        for column in getattr(row, "columns", ()):
            name = column.of or column.heading.replace(" ", "_")
            if not callable(name) and not hasattr(row, name) and name not in row.__dataclass_fields__:
                yield f"the column {column.heading!r} of {row.__name__} is of no field"


def _undocumented(kind: Any) -> Iterator[str]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if not _has_doc(hint):
            yield name


def _has_doc(hint: Any) -> bool:
    return (
        isinstance(hint, Doc)
        or any(map(_has_doc, get_args(hint)))
        or any(isinstance(part, Doc) for part in getattr(hint, "__metadata__", ()))
    )


def _composition(module: Module, providers: Providers, sections: list[type[Any]]) -> Iterator[str]:
    """Check that every feature can be made, and that every scheduled task is run."""
    for kind in module.feature_classes():
        try:
            check(kind, providers, sections)
        except InvalidDeclaration as error:
            yield str(error)
    run = {work.task.name for _, work in works(module) if work.task}
    for schedule in module.scheduled():
        if schedule.task.name not in run:
            yield f"{module.package}: no @task runs {schedule.task.name}, which {schedule.name} enqueues"


def works(module: Module) -> Iterator[tuple[str, Work]]:
    """Yield the place of each task's and subscriber's method, and its declaration."""
    for kind in module.feature_classes():
        for name, declaration, _ in declared(kind):
            if isinstance(declaration, Work):
                yield f"{kind.__module__}.{kind.__qualname__}.{name}", declaration


def _duplicates(known: list[Module], processes: Iterable[str]) -> Iterator[str]:
    """Check that names which must be unique are."""
    taken: dict[tuple[str, str], str] = {("group", name): "app.cli" for name in COMMANDS}
    taken |= {("group", name): "app.processes" for name in processes}
    for module in known:
        claims = [("group", name, module.package) for name in module.groups()]
        try:
            for place, action, _, _ in actions(module):
                claims.append(("id", action.id, place))
                if action.path:
                    claims.append(("route", f"{action.method} {re.sub(r'{[^}]*}', '{}', action.path)}", place))
                if action.command:
                    many = " of many" if action.count else ""  # a command is one action for one thing, one for many
                    claims.append((f"command{many}", action.command, place))
            claims += [("task or subscriber", work.id, place) for place, work in works(module)]
        except InvalidDeclaration:
            continue
        for what, name, place in claims:
            if (other := taken.setdefault((what, name), place)) is not place:
                yield f"{place}: the {what} {name!r} is taken by {other}"
