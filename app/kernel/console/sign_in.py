"""Sign-in and sign-out: a username and a password, then a code if the actor has a second factor.

Each step is a form of its own. Between them, a cookie holds a statement that the password was right; the password
itself is never in a page or a cookie.
"""

from collections.abc import Callable
from typing import Any

from app.kernel.console.browser import BrowserSessions, SignedIn
from app.kernel.console.cookies import FLASH, FORM, SESSION, STEP, check_csrf, csrf_of, new_form_token
from app.kernel.console.requests import ROOT, Request, address, local, page, redirect
from app.kernel.errors import Invalid, Refusal, Unauthenticated, Unavailable
from app.kernel.http.asgi import header
from app.kernel.http.codecs import Response
from app.kernel.http.problems import HttpProblem, retry_after, status_of

Render = Callable[..., str]


class SignIn:
    """The pages under /console/sign-in and /console/sign-out."""

    def __init__(self, sessions: BrowserSessions) -> None:
        self._sessions = sessions

    async def answer(self, request: Request, render: Render, *, is_post: bool) -> Response:
        """Answer a request. Raises ForgedRequest, HttpProblem, Unavailable."""
        match request.segments, is_post:
            case ("sign-in",), False:
                return self._form(request, render)
            case ("sign-in",), True:
                return await self._password(request, render)
            case ("sign-in", "code"), False:
                return self._form(request, render, is_second=True)
            case ("sign-in", "code"), True:
                return await self._code(request, render)
            case ("sign-out",), True:
                return await self._out(request)
            case _:
                raise HttpProblem(404)

    def required(self, request: Request, *, is_post: bool) -> Response:
        """Return the redirect of a visitor who must sign in first."""
        target = request.address if not is_post else local(request.form.get("_back", ROOT))
        return redirect(address("sign-in", next=target), *request.cookies.drop(SESSION))

    def _form(
        self, request: Request, render: Render, *, is_second: bool = False, refusal: Refusal | None = None
    ) -> Response:
        target = local(request.form.get("next") or request.query.get("next", ROOT))
        if is_second and not request.cookies.get(STEP):
            return redirect(address("sign-in", next=target))
        if request.visitor is not None and refusal is None:
            return redirect(target)
        headers: list[tuple[bytes, bytes]] = []
        token = request.cookies.get(FORM)
        if not token:
            token = new_form_token()
            headers.append(request.cookies.put(FORM, token))
        if header(request.scope, b"sec-fetch-site") == b"cross-site" and "again" not in request.query:
            # a link on another site brings no strict cookie; a visitor who is signed in has it in the next request
            headers.append((b"refresh", f"0; url={address('sign-in', next=target, again='1')}".encode()))
        texts = {name: request.form.get(name, "") for name in ("username",)}
        errors = dict(refusal.fields) if isinstance(refusal, Invalid) else {}
        context: dict[str, Any] = {"next": target, "csrf": csrf_of(token), "texts": texts, "errors": errors}
        text = render(
            "sign_in.html", title="Sign in", **context, is_second=is_second, message=str(refusal) if refusal else ""
        )
        return page(text, *headers, *retry_after(refusal), status=status_of(type(refusal)) if refusal else 200)

    async def _password(self, request: Request, render: Render) -> Response:
        check_csrf(request.cookies.get(FORM), request.form.get("_csrf", ""))
        username, password = request.form.get("username", ""), request.form.get("password", "")
        try:
            _check_given(username=username, password=password)
            done = await self._sessions.sign_in(request.origin, username, password)
        except (Unauthenticated, Invalid, Unavailable) as refusal:
            return self._form(request, render, refusal=refusal)
        if not done.is_complete:
            target = local(request.form.get("next", ROOT))
            return redirect(address("sign-in", "code", next=target), request.cookies.step(done.token))
        return self._signed_in(request, done)

    async def _code(self, request: Request, render: Render) -> Response:
        check_csrf(request.cookies.get(FORM), request.form.get("_csrf", ""))
        try:
            _check_given(code=request.form.get("code", ""))
            code = "".join(request.form["code"].split())
            done = await self._sessions.second_step(request.origin, request.cookies.get(STEP), code)
        except (Unauthenticated, Invalid, Unavailable) as refusal:
            return self._form(request, render, is_second=True, refusal=refusal)
        return self._signed_in(request, done)

    def _signed_in(self, request: Request, done: SignedIn) -> Response:
        gone = request.cookies.drop(FORM, STEP, FLASH)
        return redirect(request.form.get("next", ROOT), request.cookies.put(SESSION, done.token), *gone)

    async def _out(self, request: Request) -> Response:
        check_csrf(request.token, request.form.get("_csrf", ""))
        await self._sessions.sign_out(request.origin, request.token, everywhere="everywhere" in request.form)
        return redirect(address("sign-in"), *request.cookies.drop(SESSION, FLASH))


def _check_given(**given: str) -> None:
    if missing := tuple((name, "is required") for name, text in given.items() if not text):
        raise Invalid("something is missing", missing)
