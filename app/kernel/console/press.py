"""Presses: the page of a button, with its form, its question and its count, and what happens when it is pressed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from app.kernel.actions.operation import Call
from app.kernel.callers import Caller
from app.kernel.console.browser import BrowserSessions
from app.kernel.console.command_line import command_of
from app.kernel.console.cookies import SESSION
from app.kernel.console.forms import Field, text_of
from app.kernel.console.pages import Pages, Press, Reading
from app.kernel.console.requests import ROOT, Request, local
from app.kernel.decoding import fields_outside
from app.kernel.errors import Invalid, Refusal, Unauthenticated
from app.kernel.http.problems import HttpProblem
from app.kernel.http.routes import Guarded, Prepare, check_may

CONFIRMED_S = 600
"""How long a proof of who the visitor is suffices for dangerous changes."""
_AT_ONCE_S = 2.0


@dataclass
class Pressing:
    """A button, what was filled in, and what has become of it."""

    press: Press
    texts: Mapping[str, str]
    back: str
    is_guarded: bool
    """Whether it needs a recent proof of who the visitor is."""
    needs_proof: bool
    has_second_factor: bool
    command: str
    errors: dict[str, str] = field(default_factory=dict[str, str])
    refusal: Refusal | None = None
    question: str = ""
    """Asked before a change that cannot be undone."""
    count: int | None = None
    preview: Any = None
    """What it would do."""
    choices: dict[str, list[tuple[str, list[str]]]] = field(default_factory=dict[str, list[tuple[str, list[str]]]])
    """Of fields whose values a read lists: the values, and how they are shown."""
    is_ready: bool = False
    """Whether the next press runs it."""
    result: Any = None
    given: Any = None
    is_done: bool = False
    done_count: int = 0
    cursor: str = ""
    """Of a batch that is not finished."""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])

    @property
    def fields(self) -> list[tuple[Field, str, str]]:
        """The fields that are filled in, their texts, and what is wrong with them."""
        return [(f, self.texts.get(f.name, ""), self.errors.get(f.name, "")) for f in self.press.form.asked]

    @property
    def target(self) -> dict[str, str]:
        """The parameters of the path."""
        return {f.name: self.texts.get(f.name, "") for f in self.press.form.fields if f.in_path}

    @property
    def message(self) -> str:
        """The report of success."""
        action, result = self.press.operation.action, self.result
        if result is not None and type(result).__str__ is not object.__str__:
            return str(result)
        words = {**fields_outside(self.given), **fields_outside(result)}
        if self.press.count is not None:
            words |= {name: self.done_count for name in words if name.endswith("_count")}
        if action.message:
            return action.message.format_map(words)
        name = next(iter(self.target.values()), "")
        return f"{self.press.label}: done{f' ({name})' if name else ''}"

    @property
    def has_secrets(self) -> bool:
        """Whether the result has a field that is shown once only."""
        result = self.result
        return is_dataclass(result) and any(not item.repr for item in fields(result))


class Presses:
    """Presses the buttons."""

    def __init__(self, pages: Pages, sessions: BrowserSessions) -> None:
        self._pages = pages
        self._sessions = sessions

    def opened(self, press: Press, request: Request, given: Mapping[str, str]) -> Pressing:
        """Return a button for its page. Raises Denied without its permission, HttpProblem without what it changes."""
        action, visitor = press.operation.action, request.signed_in
        check_may(visitor.caller, action)
        texts = {f.name: given[f.name] for f in press.form.fields if f.name in given}
        if not all(texts.get(f.name) for f in press.form.fields if f.in_path):
            raise HttpProblem(404)
        is_guarded = bool(action.confirm) or self._sessions.guards(action.permission)
        pressing = Pressing(
            press,
            texts,
            local(given.get("_back", ROOT)),
            is_guarded,
            is_guarded and visitor.confirmed_s > CONFIRMED_S,
            visitor.has_second_factor,
            command_of(action, press.form, texts, request.base),
        )
        if not pressing.press.form.asked and not press.count:
            pressing.is_ready = True
            pressing.question = _question(action.confirm, texts, 1)
        return pressing

    async def prefill(self, pressing: Pressing, request: Request) -> None:
        """Fill the form with what the read at the same path returns, if the visitor may read it."""
        press = pressing.press
        above = self._pages.at(press.operation.action.path)
        is_replaced = press.operation.action.method in ("PUT", "PATCH")
        if not is_replaced or above is None or above.run is None or above.form is None or not above.may(_may(request)):
            return
        read = above.form

        async def prepare() -> tuple[Call, Any]:
            return Call(request.signed_in.caller), read.decode({**pressing.texts, "limit": "100"})

        found = await above.run(request.signed_in.caller, prepare)
        if getattr(found, "next_cursor", None) is not None:
            return  # a part would remove the rest
        pressing.texts = {**press.form.texts(found), **pressing.texts}

    async def choose(self, pressing: Pressing, request: Request) -> None:
        """List the values that fields can have, as far as the visitor may read them and they fit on a page."""
        for item in pressing.press.form.asked:
            reading = self._pages.named(item.choices.action) if item.choices else None
            if item.choices is None or reading is None or reading.run is None or not reading.may(_may(request)):
                continue
            found = await reading.run(request.signed_in.caller, self._all_of(reading, request))
            if found.next_cursor is None:
                value, shown = item.choices.value, item.choices.shown
                pressing.choices[item.name] = [
                    (text_of(getattr(row, value)), [text_of(getattr(row, name)) for name in shown])
                    for row in found.items
                    if text_of(getattr(row, value)) not in item.choices.excluded
                ]

    def _all_of(self, reading: Reading, request: Request) -> Prepare:
        async def prepare() -> tuple[Call, Any]:
            return Call(request.signed_in.caller), reading.form and reading.form.decode({"limit": "100"})

        return prepare

    async def preview(self, pressing: Pressing, request: Request) -> None:
        """Preview a change whose form is complete; a refusal is part of the result."""
        try:
            if pressing.is_ready and pressing.press.preview is not None:
                await self._preview(pressing, request, pressing.press.form.decode(pressing.texts))
        except Refusal as refusal:
            pressing.refusal = refusal

    async def _preview(self, pressing: Pressing, request: Request, given: Any) -> None:
        preview = pressing.press.preview
        assert preview is not None
        pressing.preview = await self._run(preview, request.signed_in.caller, given)
        pressing.question = _question(pressing.press.operation.action.confirm, pressing.texts, 1)
        pressing.is_ready = True

    async def pressed(self, pressing: Pressing, request: Request) -> Pressing:
        """Press a button with what the form has: ask, count or run. Refusals of the action are part of the result."""
        form, press, caller = request.form, pressing.press, request.signed_in.caller
        try:
            if pressing.needs_proof:
                await self._prove(pressing, request)
            given = press.form.decode(pressing.texts)
            if press.count is not None and "_counted" not in form:
                await self._count(pressing, request, given)
                return pressing
            if press.preview is not None and "_previewed" not in form:
                await self._preview(pressing, request, given)
                return pressing
            if press.operation.action.confirm and "_confirmed" not in form:
                pressing.question = _question(press.operation.action.confirm, pressing.texts, 1)
                pressing.is_ready = True
                return pressing
            if press.count is not None:
                await self._in_parts(pressing, request, given)
            else:
                pressing.result = await self._run(press.run, caller, given)
                pressing.is_done = True
            pressing.given = given
        except Invalid as refusal:
            pressing.refusal, pressing.errors = refusal, dict(refusal.fields)
            pressing.is_ready = False
        except Refusal as refusal:
            pressing.refusal = refusal
        return pressing

    async def _prove(self, pressing: Pressing, request: Request) -> None:
        password, code = request.form.get("_password", ""), request.form.get("_code", "")
        if not password:
            raise Invalid("", (("_password", "is required: it is some time since you last gave it"),))
        try:
            proven = await self._sessions.confirm(request.origin, request.token, password, code or None)
        except Invalid as refusal:
            raise Invalid("", tuple((f"_{name}", text) for name, text in refusal.fields)) from None
        except Unauthenticated as refusal:
            raise Invalid("", (("_code" if "OTP" in refusal.code else "_password", str(refusal)),)) from None
        pressing.headers.append(request.cookies.put(SESSION, proven.token))
        pressing.needs_proof = False

    async def _count(self, pressing: Pressing, request: Request, given: Any) -> None:
        press = pressing.press
        assert press.count is not None
        pressing.count = await press.count(Call(request.signed_in.caller), given)
        if pressing.count:
            asked = press.operation.action.confirm or f"{press.label.removesuffix(' by filter')} {{count}}?"
            pressing.question, pressing.is_ready = _question(asked, pressing.texts, pressing.count), True

    async def _run(self, run: Guarded, caller: Caller, given: Any) -> Any:
        async def prepare() -> tuple[Call, Any]:
            return Call(caller), given

        return await run(caller, prepare)

    async def _in_parts(self, pressing: Pressing, request: Request, given: Any) -> None:
        """Run a batched change for some seconds; the page goes on with the cursor."""
        until = time.monotonic() + _AT_ONCE_S
        pressing.done_count = _number(request.form.get("_done", ""))
        pressing.count = _number(request.form.get("_count", ""))
        cursor = request.form.get("cursor") or None
        while True:
            result = await self._run(pressing.press.run, request.signed_in.caller, replace(given, cursor=cursor))
            pressing.done_count += sum(
                value for name, value in fields_outside(result).items() if name.endswith("_count")
            )
            cursor = result.next_cursor
            if cursor is None or time.monotonic() >= until:
                break
        pressing.cursor, pressing.is_done = cursor or "", cursor is None
        counts = [name for name in fields_outside(result) if name.endswith("_count")]
        pressing.result = replace(result, **{counts[0]: pressing.done_count}) if len(counts) == 1 else result


def _question(confirm: str, texts: Mapping[str, str], count: int) -> str:
    return confirm.format_map(_Words({**texts, "count": f"{count:,}"})) if confirm else ""


class _Words(dict[str, str]):
    """Words of a question; one that is not known stays as it is."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


def _may(request: Request) -> Callable[[str], bool]:
    return request.signed_in.caller.may


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 12 else 0
