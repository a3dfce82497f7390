"""What templates show of a read: its rows or its record, its filters, and the buttons that the visitor may press."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from app.kernel.actions.columns import Columns
from app.kernel.actions.operation import Call
from app.kernel.console import cells
from app.kernel.console.command_line import command_of
from app.kernel.console.downloads import SUFFIX
from app.kernel.console.forms import Field, text_of
from app.kernel.console.pages import Pages, Press, Reading
from app.kernel.console.requests import Request, address
from app.kernel.decoding import name_outside
from app.kernel.errors import Invalid
from app.kernel.http.routes import path_parameters


@dataclass(frozen=True)
class Button:
    """A change with the values of one row. A direct one is pressed at once; others ask on a page of their own."""

    label: str
    action: str
    values: Mapping[str, str]
    is_direct: bool
    is_dangerous: bool
    command: str
    hint: str
    back: str

    @property
    def href(self) -> str:
        """The address of its page."""
        return address("press", self.action, **self.values, _back=self.back)


@dataclass(frozen=True)
class Row:
    """A row of a list."""

    key: str
    cells: Sequence[Markup]
    buttons: Sequence[Button]


@dataclass
class View:
    """A read as a template shows it."""

    reading: Reading
    title: str
    intro: str = ""
    result: Any = None
    columns: Columns = ()
    numbers: Sequence[bool] = ()
    rows: Sequence[Row] = ()
    buttons: Sequence[Button] = ()
    filters: Sequence[tuple[Field, str, str]] = ()
    """Fields, their texts, and what is wrong with them."""
    is_filtered: bool = False
    next_href: str = ""
    first_href: str = ""
    csv_href: str = ""
    empty: str = ""
    command: str = ""
    sections: list["View"] = field(default_factory=list["View"])

    link: cells.Link = cells.no_link

    @property
    def record(self) -> cells.Record:
        """The result of a read without a list, as names, values and tables."""
        return cells.record(self.result, self.link)

    @property
    def has_buttons(self) -> bool:
        """Whether a row has a button."""
        return any(row.buttons for row in self.rows)


class Viewer:
    """Makes the views of one request."""

    def __init__(self, pages: Pages, request: Request, place: str) -> None:
        """`place` is the address of the page, to which buttons return."""
        self._pages = pages
        self._request = request
        self._caller = request.signed_in.caller
        self._place = place

    async def of(self, reading: Reading, texts: Mapping[str, str], *, is_section: bool = False) -> View:
        """Return the view of a read, and those of its sections. Raises Refusal."""
        view = View(reading, reading.title, link=self.link)
        path = {name: texts[name] for name in path_parameters(reading.path)}
        if reading.run is not None and reading.form is not None:
            await self._read(view, texts, path)
        shared: Mapping[str, str] = texts if reading.is_list else {}  # changes by filter have that of the list
        view.buttons = [
            self._button(press, {**path, **{f.name: shared[f.name] for f in press.form.asked if shared.get(f.name)}})
            for press in self._allowed(reading.presses)
        ]
        if not is_section:
            allowed = [section for section in reading.sections if section.may(self._caller.may)]
            view.sections = [await self.of(section, path, is_section=True) for section in allowed]
        return view

    async def _read(self, view: View, texts: Mapping[str, str], path: Mapping[str, str]) -> None:
        reading, form = view.reading, view.reading.form
        assert reading.run is not None
        assert form is not None
        operation = reading.run.operation
        errors: dict[str, str] = {}

        async def prepare() -> tuple[Call, Any]:
            return Call(self._caller), form.decode(texts)

        try:
            view.result = await reading.run(self._caller, prepare)
        except Invalid as invalid:
            errors = dict(invalid.fields)
            if path or not errors.keys() & {each.name for each in form.asked}:
                raise
        view.intro = operation.description.partition("\n")[0]
        shown = [(each, texts.get(each.name, ""), errors.get(each.name, "")) for each in form.asked]
        view.filters = shown if reading.is_list else ()
        view.is_filtered = any(text for _, text, _ in shown)
        given = {each.name: text for each, text, _ in shown if text}
        view.command = command_of(operation.action, form, {**path, **texts}, self._request.base)
        view.empty = operation.action.empty
        if reading.is_list and view.result is not None:
            self._list(view, {**given, **({"limit": texts["limit"]} if "limit" in texts else {})}, path, texts)

    def _list(self, view: View, given: Mapping[str, str], path: Mapping[str, str], texts: Mapping[str, str]) -> None:
        reading, items = view.reading, view.result.items
        view.columns = reading.columns
        view.numbers = [cells.is_number(column, items) for column in view.columns]
        view.rows = [self._row(reading, item, path) for item in items]
        place = self._place.partition("?")[0]
        if reading.slug in self._pages.by_slug and not path:
            view.csv_href = address(f"{reading.slug}{SUFFIX}", **{k: text for k, text in given.items() if k != "limit"})
        if view.result.next_cursor is not None:
            view.next_href = f"{place}?{urlencode({**given, 'cursor': view.result.next_cursor})}"
        if "cursor" in texts:
            view.first_href = f"{place}?{urlencode(given)}" if given else place

    def _row(self, reading: Reading, item: object, path: Mapping[str, str]) -> Row:
        below = reading.item
        if below is None:
            return Row("", cells.cells(item, reading.columns, link=self.link), ())
        key = _key(item, below.key)
        href = self.href(below, {**path, below.key: key}) if below.has_page and below.may(self._caller.may) else ""
        allowed = self._allowed(below.presses)
        buttons = [self._button(press, {**path, below.key: key}) for press in allowed]
        return Row(key, cells.cells(item, reading.columns, href, self.link), buttons)

    def href(self, reading: Reading, path: Mapping[str, str]) -> str:
        """Return the address of the page of a read."""
        words = [part for part in reading.path.split("/") if part]
        first = next(at for at, word in enumerate(words) if word in self._pages.by_slug and not word.startswith("{"))
        return address(*(path[word[1:-1]] if word.startswith("{") else word for word in words[first:]))

    def link(self, name: str, value: object) -> str:
        """Return the address of the page of what a field names; empty without one, or without the permission."""
        found = self._pages.link(name, value)
        if found is None:
            return ""
        top = self._pages.by_slug[found[0]]
        return address(*found) if (top.item or top).may(self._caller.may) else ""

    def target_of(self, action_id: str, target: str | None) -> str:
        """Return the address of the page of what an action changed; empty without one, or without the permission."""
        reading = self._pages.changed_by(action_id)
        if reading is None or not target or not reading.may(self._caller.may):
            return ""
        return self.href(reading, {reading.key: target})

    def _allowed(self, presses: Sequence[Press]) -> list[Press]:
        return [press for press in presses if self.may(press)]

    def may(self, press: Press) -> bool:
        """Return whether the visitor may press a button."""
        permission = press.operation.action.permission
        return not permission or self._caller.may(permission)

    def button(self, action_id: str, **values: object) -> Button | None:
        """Return the button of an action; None if the visitor may not press it."""
        press = self._pages.presses[action_id]
        texts = {name_outside(name): text_of(value) for name, value in values.items()}
        return self._button(press, texts) if self.may(press) else None

    def _button(self, press: Press, values: Mapping[str, str]) -> Button:
        operation = press.operation
        is_given = {each.name for each in press.form.asked if each.required} <= set(values)
        return Button(
            press.label,
            operation.id,
            values,
            press.is_direct or (is_given and press.asks_nothing_else and len(values) > 1),
            bool(operation.action.confirm) or operation.action.method == "DELETE",
            command_of(operation.action, press.form, values, self._request.base),
            operation.description.partition("\n")[0],
            self._place,
        )


def _key(item: object, parameter: str) -> str:
    """Return what identifies a row: the field that is named like the parameter, otherwise its id."""
    for name in (parameter, "id", "name"):
        if (found := getattr(item, name, None)) is not None:
            return text_of(found)
    return ""
