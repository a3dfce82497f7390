"""The pages of the console, derived from actions (ADR 45).

A read that returns a Page at a path without parameters is a list, and so a page, named by the last part of the path.
Everything below the path belongs to it: the read of one row is the page of that row, further reads are its sections,
and changes are buttons of the nearest read above them. A read without a list is a page if it needs a permission, or if
something is below it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, get_args, get_origin

from app.kernel.actions.columns import Column, Columns
from app.kernel.actions.operation import ActionOperation
from app.kernel.console.forms import Form
from app.kernel.decoding import name_outside
from app.kernel.http.authenticators import Bearer
from app.kernel.http.routes import Guarded, NoteDenied, path_parameters, sends_itself
from app.kernel.paging import Page
from app.kernel.queue import InvalidDeclaration

RESERVED = frozenset({"assets", "live", "press", "sign-in", "sign-out"})


@dataclass(frozen=True)
class Press:
    """A change that a button makes."""

    run: Guarded
    form: Form
    count: ActionOperation | None
    preview: Guarded | None

    @property
    def operation(self) -> ActionOperation:
        """The action."""
        return self.run.operation

    @cached_property
    def label(self) -> str:
        """The text of the button: the verb of the command or of the action."""
        action = self.operation.action
        words = action.command.split()[-1] if action.command else action.id.partition(".")[2]
        text = words.replace("-", " ").replace("_", " ").capitalize()
        return f"{text} by filter" if self.count else text

    @property
    def is_direct(self) -> bool:
        """Whether pressing it asks for nothing more."""
        return self.asks_nothing_else and not self.form.asked

    @property
    def asks_nothing_else(self) -> bool:
        """Whether pressing it asks for no more than its form has."""
        return not (self.operation.action.confirm or self.count or self.preview)


@dataclass
class Reading:
    """A read that the console shows, and what is below its path."""

    run: Guarded | None
    path: str
    form: Form | None
    template: str
    title: str
    slug: str = ""
    is_list: bool = False
    columns: Columns = ()
    presses: list[Press] = field(default_factory=list[Press])
    item: "Reading | None" = None
    """Of a list: the page of a row. It has no read of its own if there are only buttons or sections."""
    sections: list["Reading"] = field(default_factory=list["Reading"])
    """Further reads below its path."""

    @property
    def key(self) -> str:
        """The last parameter of its path."""
        return path_parameters(self.path)[-1] if path_parameters(self.path) else ""

    @property
    def has_page(self) -> bool:
        """Whether a row has a page: there is more to see than in the list."""
        return self.run is not None or bool(self.sections)

    @property
    def group(self) -> str:
        """The module."""
        return self.run.operation.id.partition(".")[0] if self.run else ""

    def may(self, may: Callable[[str], bool]) -> bool:
        """Return whether a caller may see it."""
        permission = self.run.operation.action.permission if self.run else ""
        return not permission or may(permission)


class Pages:
    """The pages by slug, in the order of the features, and the buttons by action."""

    def __init__(
        self,
        operations: Iterable[ActionOperation],
        denied: NoteDenied,
        has_template: Callable[[str], bool] = lambda _: False,
    ) -> None:
        known = list(operations)
        self._denied = denied
        self._has_template = has_template
        self._by_id = {operation.id: operation for operation in known}
        served = [each for each in known if each.action.path and _is_for_people(each)]
        self._reads = {each.action.path: each for each in served if not each.action.changes and _is_shown(each)}
        self._all: dict[str, Reading] = {}
        changes = [each for each in served if each.action.changes]
        self.presses = {each.id: self._press(each) for each in changes if Form(each).can_be_shown}
        self.by_slug: dict[str, Reading] = {}
        for path in self._reads:
            self._reading(path)
        for press in self.presses.values():
            if (above := self._above(press.operation.action.path)) is not None:
                above.presses.append(press)
        for reading in self._all.values():
            if not path_parameters(reading.path) and (above := self._nearest(reading.path)) is not None:
                above.sections.append(reading)  # such as /me/sessions below /me, or /backups/status below /backups
            elif self._is_page(reading):
                self._add(reading)

    def _press(self, operation: ActionOperation) -> Press:
        count = self._by_id[operation.action.count] if operation.action.count else None
        previewed = self._by_id[operation.action.preview] if operation.action.preview else None
        preview = Guarded(previewed, self._denied) if previewed else None
        return Press(Guarded(operation, self._denied), Form(operation), count, preview)

    def _reading(self, path: str) -> Reading:
        """Return the reading of a path, and place it below the one above."""
        if path in self._all:
            return self._all[path]
        operation = self._reads.get(path)
        words = [part for part in path.split("/") if part and not part.startswith("{")]
        title = "My account" if words[-1] == "me" else words[-1].replace("-", " ").replace("_", " ").capitalize()
        made = self._all[path] = Reading(
            Guarded(operation, self._denied) if operation else None,
            path,
            Form(operation) if operation else None,
            operation.id if operation and self._has_template(operation.id) else "",
            title,
            words[-1],
        )
        if operation is not None:
            made.is_list = get_origin(operation.signature.returns) is Page
            made.columns = _columns(get_args(operation.signature.returns)[0]) if made.is_list else ()
        parent, _, last = path.rpartition("/")
        if last.startswith("{"):
            if parent in self._reads and get_origin(self._reads[parent].signature.returns) is Page:
                self._reading(parent).item = made
        elif path_parameters(path):
            self._reading(path[: path.rindex("}") + 1]).sections.append(made)
        return made

    def _above(self, path: str) -> Reading | None:
        """Return the nearest reading above a change, or the row of a list that it changes."""
        at = path
        while at:
            if at in self._reads or at in self._all:
                return self._reading(at)
            parent, _, last = at.rpartition("/")
            if last.startswith("{") and parent in self._reads and self._reading(parent).is_list:
                return self._reading(at)
            at = parent
        return None

    def _nearest(self, path: str) -> Reading | None:
        """Return the page above a path without parameters."""
        at = path.rpartition("/")[0]
        while at and at not in self._reads:
            at = at.rpartition("/")[0]
        return self._reading(at) if at else None

    def _is_page(self, reading: Reading) -> bool:
        parameters = path_parameters(reading.path)
        if not parameters:
            needs_permission = reading.run is not None and bool(reading.run.operation.action.permission)
            return reading.is_list or needs_permission or bool(reading.presses) or self._is_above(reading)
        is_below_list = reading.path.rpartition("/")[0] in self._reads
        return len(parameters) == 1 and reading.path.endswith("}") and not is_below_list and reading.run is not None

    def _is_above(self, reading: Reading) -> bool:
        return any(path.startswith(f"{reading.path}/") for path in self._reads)

    def _add(self, reading: Reading) -> None:
        if reading.slug in self.by_slug or reading.slug in RESERVED:
            raise InvalidDeclaration(f"the console has two pages {reading.slug!r}, the second one for {reading.path}")
        self.by_slug[reading.slug] = reading

    def at(self, path: str) -> Reading | None:
        """Return the reading of a path."""
        return self._all.get(path)

    def named(self, action_id: str) -> Reading | None:
        """Return the reading of an action."""
        operation = self._by_id.get(action_id)
        return self._all.get(operation.action.path) if operation and operation.action.path else None

    def changed_by(self, action_id: str) -> Reading | None:
        """Return the page of the row that an action changes or adds; None without one."""
        operation = self._by_id.get(action_id)
        path = operation.action.path if operation and operation.action.changes else ""
        found = self._all.get(path[: path.index("}") + 1] if "{" in path else path)
        row = found.item if found is not None and found.is_list else found
        return row if row is not None and row.has_page and path_parameters(row.path) == [row.key] else None

    def link(self, name: str, value: object) -> tuple[str, str] | None:
        """Return the page and the key of what a field names, such as `actor_id`; None if there is no such page."""
        word = name.removesuffix("_id").replace("_", "-").replace(" ", "-")
        for slug in (f"{word}s", word):
            found = self.by_slug.get(slug)
            if found is not None and value and (found.key or (found.item and found.item.has_page)):
                return slug, str(value)
        return None

    def groups(self, may: Callable[[str], bool]) -> Iterator[tuple[str, list[Reading]]]:
        """Yield the pages that a caller may see, by module."""
        found: dict[str, list[Reading]] = {}
        for reading in self.by_slug.values():
            if reading.may(may) and reading.slug != "me":
                found.setdefault(reading.group, []).append(reading)
        # what was made for people comes before lists
        for group in sorted(found, key=lambda group: all(reading.is_list for reading in found[group])):
            yield group, sorted(found[group], key=lambda reading: reading.is_list or bool(reading.key))


def _is_for_people(operation: ActionOperation) -> bool:
    action = operation.action
    return not action.public and action.authenticator is Bearer


def _is_shown(operation: ActionOperation) -> bool:
    returned = operation.signature.returns
    return operation.action.method == "GET" and not sends_itself(returned) and Form(operation).can_be_shown


def _columns(row: Any) -> Columns:
    """Return the columns of a row type; by default its fields."""
    found: Columns = getattr(row, "columns", ())
    if found or not is_dataclass(row):
        return found or (Column("value", str),)
    return tuple(Column(name_outside(item.name).replace("_", " "), item.name) for item in fields(row))
