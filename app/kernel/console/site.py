"""The console as an ASGI application under /console; it passes everything else on."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from app.kernel.actions import is_caller
from app.kernel.actions.compose import make
from app.kernel.actions.operation import ActionOperation
from app.kernel.audit import DenialLog
from app.kernel.config import UNSAFE, HttpServerSettings
from app.kernel.console.browser import BrowserSessions
from app.kernel.console.cookies import FLASH, check_csrf, check_same_origin
from app.kernel.console.downloads import SUFFIX, download
from app.kernel.console.live import CSRF, Live, digest, ended
from app.kernel.console.pages import Pages, Press, Reading
from app.kernel.console.press import Presses, Pressing
from app.kernel.console.requests import HEADERS, ROOT, Request, address, page, redirect, texts
from app.kernel.console.sign_in import Render, SignIn
from app.kernel.errors import Invalid, Refusal, Unauthenticated
from app.kernel.http.asgi import App, Receive, Scope, Send, respond
from app.kernel.http.assets import Assets
from app.kernel.http.codecs import Response, check_media_type, read_body
from app.kernel.http.problems import HttpProblem, check_reads, code_and_title, retry_after, status_of
from app.kernel.http.results import EventStream, File
from app.kernel.http.routes import NoteDenied
from app.kernel.process import Process
from app.kernel.telemetry import logs

if TYPE_CHECKING:
    from jinja2 import Environment

    from app.kernel.console.views import Viewer
_ASSETS = f"{ROOT}/assets/"
_SEEN = "seen-of-this-page"
_FORM = "application/x-www-form-urlencoded"


async def console(
    p: Process, operations: Sequence[ActionOperation], folders: Mapping[str, Path], app: App
) -> "Console":
    """Return the console over some actions, with the templates of modules. Raises MissingProvider."""
    return Console(
        operations,
        await make(p, BrowserSessions),
        await make(p, DenialLog),
        p.settings[HttpServerSettings],
        folders,
        is_unsafe=p.settings.environment in UNSAFE,
        app=app,
    )


class Console:
    """Answers under /console. The templates are loaded at the first request of a page."""

    def __init__(
        self,
        operations: Sequence[ActionOperation],
        sessions: BrowserSessions,
        denied: NoteDenied,
        limits: HttpServerSettings,
        folders: Mapping[str, Path],
        *,
        is_unsafe: bool,
        app: App,
    ) -> None:
        found = {file.stem for folder in folders.values() if folder.is_dir() for file in folder.glob("*.html")}
        self._own_templates = found
        self._pages = Pages(operations, denied, found.__contains__)
        self._sessions = sessions
        self._sign_in = SignIn(sessions)
        self._presses = Presses(self._pages, sessions)
        self._live = Live()
        self._limits = limits
        self._folders = folders
        self._is_unsafe = is_unsafe
        self._app = app
        self._loaded: tuple[Environment, Assets] | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path != ROOT and not path.startswith(f"{ROOT}/"):
            await self._app(scope, receive, send)
            return
        scope["state"]["route"] = f"{ROOT}/{{page}}"
        environment, assets = await self._opened()
        if path.startswith(_ASSETS):
            await assets(scope, receive, send)
            return
        is_post = scope["method"] == "POST"
        if not is_post:
            check_reads(scope)
        request = Request.of(scope, may_be_plain=self._is_unsafe)
        response = await self._answered(request, receive, environment, is_post=is_post)
        if isinstance(response, EventStream | File):
            await response.send(scope, receive, send, 200, HEADERS)
        else:
            await respond(send, *response)

    async def _opened(self) -> "tuple[Environment, Assets]":
        if self._loaded is None:
            async with self._loading:
                self._loaded = self._loaded or await asyncio.to_thread(self._load)
        return self._loaded

    def _load(self) -> "tuple[Environment, Assets]":
        from app.kernel.console.render import environment

        kept = [each for each in HEADERS if each[0] != b"cache-control"]
        assets = Assets(_ASSETS, Path(__file__).parent / "static", headers=kept)
        return environment(self._folders, assets, may_change=self._is_unsafe), assets

    async def _answered(
        self, request: Request, receive: Receive, environment: "Environment", *, is_post: bool
    ) -> Response | EventStream | File:
        try:
            if is_post:
                check_same_origin(request.scope)
                check_media_type(request.scope, _FORM)
                most, timeout_s = self._limits.max_body_bytes, self._limits.body_timeout
                request = replace(request, form=texts(await read_body(request.scope, receive, most, timeout_s)))
            if request.token:
                request = await self._visited(request)
            if request.segments[:1] in (("sign-in",), ("sign-out",)):
                return await self._sign_in.answer(request, _renderer(environment), is_post=is_post)
            if request.visitor is None:
                raise Unauthenticated
            if is_post:
                check_csrf(request.token, request.form.get("_csrf", ""))
                return await self._pressed(request, environment)
            return await self._shown(request, environment)
        except Unauthenticated:
            if request.segments == ("live",):
                return EventStream(ended())
            return self._sign_in.required(request, is_post=is_post)
        except (Refusal, HttpProblem) as refusal:
            return self._refused(request, refusal, environment)

    async def _visited(self, request: Request) -> Request:
        """Return the request with its visitor, if its session is live."""
        try:
            is_active = request.segments != ("live",)
            visitor = await self._sessions.find(request.origin, request.token, is_active=is_active)
        except Unauthenticated:
            return request
        logs.context(actor_id=visitor.caller.actor_id)
        return replace(request, visitor=visitor)

    async def _shown(self, request: Request, environment: "Environment") -> Response | EventStream | File:
        match request.segments:
            case ():
                return redirect(self._first(request))
            case ("live",):
                return self._stream(request, environment)
            case ("press", action):
                pressing = self._presses.opened(self._pressable(action), request, request.query)
                await self._presses.prefill(pressing, request)
                await self._presses.preview(pressing, request)
                await self._presses.choose(pressing, request)
                return self._pressing(pressing, request, environment)
            case (name,) if (listed := self._pages.by_slug.get(name.removesuffix(SUFFIX))) is not None and (
                name.endswith(SUFFIX) and listed.is_list
            ):
                return await download(listed, request)
            case (slug,) if (top := self._pages.by_slug.get(slug)) is not None and top.key:
                return self._lookup(top, request, environment)
            case _:
                return await self._page(request, environment)

    async def _pressed(self, request: Request, environment: "Environment") -> Response:
        match request.segments:
            case ("press", action):
                press = self._pressable(action)
            case _:
                raise HttpProblem(405, headers=((b"allow", b"GET, HEAD"),))
        logs.context(operation=press.operation.id)
        await press.run.check(request.signed_in.caller)
        pressing = await self._presses.pressed(self._presses.opened(press, request, request.form), request)
        if not pressing.is_done or pressing.has_secrets:
            await self._presses.choose(pressing, request)
            return self._pressing(pressing, request, environment)
        token = _token_of(pressing, request)
        return redirect(pressing.back, *pressing.headers, request.cookies.flash(token, "done", pressing.message))

    def _first(self, request: Request) -> str:
        may = request.signed_in.caller.may
        first = next((readings[0] for _, readings in self._pages.groups(may)), None)
        return address(first.slug if first else "me")

    def _pressable(self, action: str) -> Press:
        if action not in self._pages.presses:
            raise HttpProblem(404)
        return self._pages.presses[action]

    # pages

    def _found(self, request: Request) -> tuple[Reading, dict[str, str]]:
        """Return the read of a path, and the parameters in the path. Raises HttpProblem 404."""
        slug, *rest = request.segments or ("",)
        top = self._pages.by_slug.get(slug)
        if top is None:
            raise HttpProblem(404)
        path: dict[str, str] = {}
        reading = top
        if top.key:
            if not rest:
                raise HttpProblem(404)
            path[top.key] = rest.pop(0)
        while rest:
            word = rest.pop(0)
            below = next((section for section in reading.sections if section.slug == word), None)
            if below is None and reading.item is not None:
                below = reading.item
                path[below.key] = word
            if below is None:
                raise HttpProblem(404)
            reading = below
        return reading, path

    async def _page(self, request: Request, environment: "Environment") -> Response:
        reading, path = self._found(request)
        text = await self._rendered(request, reading, path, environment, is_whole=True)
        return page(text, *request.cookies.drop(FLASH))

    def _lookup(self, reading: Reading, request: Request, environment: "Environment") -> Response:
        """Return the page that asks what to look up, or the redirect there."""
        if text := request.query.get(reading.key, "").strip():
            return redirect(address(reading.slug, text))
        assert reading.form is not None
        field = next(field for field in reading.form.fields if field.name == reading.key)
        about = {**self._around(request), "field": field, "title": reading.title}
        return page(environment.get_template("lookup.html").render(about, layout="layout.html", csrf=request.csrf))

    async def _rendered(
        self,
        request: Request,
        reading: Reading,
        path: Mapping[str, str],
        environment: "Environment",
        *,
        is_whole: bool,
    ) -> str:
        from app.kernel.console.views import Viewer

        viewer = Viewer(self._pages, request, request.address)
        view = await viewer.of(reading, {**request.query, **path})
        name = f"{reading.template}.html" if reading.template else "list.html" if reading.is_list else "item.html"
        template = environment.get_template(name)
        about: dict[str, Any] = {
            "view": view,
            "result": view.result,
            "title": _title(reading, path, view.result),
            **self._around(request),
            "above": self._above(reading, path, viewer),
            "key": path.get(reading.key, ""),
            "button": viewer.button,
            "link": viewer.link,
            "target_of": viewer.target_of,
        }
        if not is_whole:
            return template.render(about, layout="live.html", csrf=CSRF).strip()
        about["live_href"] = address("live", of=request.address, seen=_SEEN)
        text = template.render(about, layout="layout.html", csrf=request.csrf)
        live = text.partition("<!-- live -->")[2].partition("<!-- /live -->")[0].strip()
        return text.replace(_SEEN, digest(live.replace(request.csrf, CSRF)), 1)

    def _above(self, reading: Reading, path: Mapping[str, str], viewer: "Viewer") -> list[tuple[str, str]]:
        """Return titles and addresses of the pages above a page."""
        parts = reading.path.split("/")
        above = [self._pages.at("/".join(parts[:at])) for at in range(len(parts))]
        shown = [found for found in above if found is not None and (found.run or found.sections)]
        named = [path[found.key] if found.path.endswith("}") else found.title for found in shown]
        return [(name, viewer.href(found, path)) for name, found in zip(named, shown, strict=True)]

    def _around(self, request: Request) -> dict[str, Any]:
        """Return what the layout of each page shows."""
        visitor = request.signed_in
        current = request.segments[0] if request.segments else ""
        return {
            "visitor": visitor,
            "may": visitor.caller.may,
            "groups": list(self._pages.groups(visitor.caller.may)),
            "current": current,
            "above": [],
            "flash": request.cookies.flashed(request.token),
            "place": request.address,
            "live_href": "",
        }

    # presses

    def _pressing(self, pressing: Pressing, request: Request, environment: "Environment") -> Response:
        from app.kernel.console.cookies import csrf_of

        refusal = pressing.refusal
        status = status_of(type(refusal)) if refusal is not None else 200
        own = pressing.press.operation.id
        name = f"{own}.html" if own in self._own_templates else "press.html"
        text = environment.get_template(name).render(
            {**self._around(request), "pressing": pressing, "title": pressing.press.label},
            layout="layout.html",
            csrf=csrf_of(_token_of(pressing, request)),
        )
        return page(text, *pressing.headers, *retry_after(refusal), status=status)

    # refusals

    def _refused(self, request: Request, refusal: Refusal | HttpProblem, environment: "Environment") -> Response:
        headers: list[tuple[bytes, bytes]] = []
        if isinstance(refusal, HttpProblem):
            status, headers = refusal.status, [*refusal.headers]
            _, title = code_and_title(status)
        else:
            status, title, headers = status_of(type(refusal)), refusal.title, retry_after(refusal)
        around = self._around(request) if request.visitor else {}
        wrong = refusal.fields if isinstance(refusal, Invalid) else ()
        detail = "; ".join(f"{name} {text}" for name, text in wrong) or str(refusal)
        layout = "layout.html" if request.visitor else "plain.html"
        text = environment.get_template("refused.html").render(
            {**around, "title": title, "status": status, "detail": detail if detail != title else ""},
            layout=layout,
            csrf=request.csrf,
            request_id=request.scope["state"].get("request_id", ""),
            address_of=request.address,
        )
        return page(text, *headers, status=status)

    # live

    def _stream(self, request: Request, environment: "Environment") -> EventStream:
        try:
            of = urlsplit(request.query.get("of", ""))
        except ValueError:
            raise HttpProblem(404) from None
        scope = {**request.scope, "raw_path": of.path.encode("ascii", "replace"), "query_string": of.query.encode()}
        shown = Request.of(scope, may_be_plain=self._is_unsafe)
        reading, path = self._found(shown)

        async def look() -> tuple[Hashable, Callable[[], Awaitable[str]], str]:
            visitor = await self._sessions.find(request.origin, request.token, is_active=False)
            seen = replace(shown, visitor=visitor)

            async def render() -> str:
                return await self._rendered(seen, reading, path, environment, is_whole=False)

            caller = visitor.caller
            own = caller.session_id if _is_personal(reading) else None
            return (shown.base, shown.address, caller.permissions, caller.is_superuser, own), render, request.csrf

        return EventStream(self._live.stream(request.query.get("seen", ""), look))


def _is_personal(reading: Reading) -> bool:
    """Return whether a read or one of its sections depends on the caller itself."""
    found = [each.run.operation for each in (reading, *reading.sections) if each.run]
    return any(is_caller(kind) for operation in found for kind in operation.signature.parameters)


def _title(reading: Reading, path: Mapping[str, str], result: object) -> str:
    """Return the title of a page: of a row, what people call it."""
    if not path or not reading.path.endswith("}"):
        return reading.title
    named = (getattr(result, name, None) for name in ("title", "name", "username", "task"))
    return next((name for name in named if isinstance(name, str) and name), "") or path[reading.key]


def _token_of(pressing: Pressing, request: Request) -> str:
    """Return the token of the session after a press, which may have given it a new one."""
    for name, value in pressing.headers:
        if name == b"set-cookie":
            return value.decode().partition("=")[2].partition(";")[0]
    return request.token


def _renderer(environment: "Environment") -> Render:
    def render(name: str, **context: Any) -> str:
        return environment.get_template(name).render(context, layout="plain.html")

    return render
