"""Sign-in over HTTP, for commands. Imports no client library: one request needs none."""

import re
import shlex
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import urlsplit

import typer

from app import ROOT
from app.kernel.config import HttpServerSettings
from app.kernel.errors import Invalid, RateLimited, Unauthenticated, Unavailable
from app.kernel.product import NAME
from app.kernel.running import ask, running, strangers, url_of
from app.modules.auth.domain.second_factor import OtpRequired
from app.modules.auth.domain.sessions import InvalidCredentials
from app.processes import load_settings

_PATH = "/auth/v1/login"
_EXPECTED = "expected a URL such as https://api.example.com"
_TIMEOUT_S = 40.0  # longer than http_server.handle_timeout
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1: nothing that a shell or a terminal acts on


def places(url: str | None) -> list[str]:
    """Return where to sign in: the given URL, or the local processes, then the address in the settings.

    Raises BadParameter for a URL that would send the password to another machine in clear text.
    """
    if url is None:
        found = [each.url for each in running(ROOT) if each.name in ("run-all-in-one", "run-auth-http")]
        settings = load_settings(only=(HttpServerSettings,))[HttpServerSettings]
        return list(dict.fromkeys([*found, url_of(settings.host, settings.port)]))
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise typer.BadParameter(_EXPECTED, param_hint="--url") from None
    if not is_valid:
        raise typer.BadParameter(_EXPECTED, param_hint="--url")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise typer.BadParameter("http would send the password in clear text; use https", param_hint="--url")
    return [url]


def sign_in(asked: Sequence[str], credentials: Mapping[str, str], *, verified: bool) -> dict[str, Any]:
    """Return the answer of the first place that serves the auth API; `verified` checks its certificate.

    Raises OtpRequired, InvalidCredentials, RateLimited, Invalid; Unavailable if nothing serves it, or what does so
    belongs to another user or is not the auth API.
    """
    for url in asked:
        if not verified:
            _check_owner(url)
        status, answer = ask(url, _PATH, _TIMEOUT_S, credentials, verified=verified) or (404, {})
        if status == 200:
            _check_token(url, answer)
            return answer
        if status != 404:
            raise _refusal(url, status, answer, credentials["username"])
    places = " or ".join(asked)
    raise Unavailable(
        f"nothing serves the auth API at {places}; start it, or give --url", hint=f"{NAME} run-all-in-one"
    )


def _check_owner(url: str) -> None:
    """Raise Unavailable if another user listens there: the password is for our own process, and for root."""
    if users := strangers(urlsplit(url).port or 0):
        raise Unavailable(
            f"{url} belongs to the user {min(users)}, who would get the password; give it as --url if you trust them",
            hint=f"{NAME} auth login --url {url}",
        )


def _check_token(url: str, answer: Mapping[str, Any]) -> None:
    session = answer.get("session")
    token = cast("dict[str, Any]", session).get("access_token") if isinstance(session, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Unavailable(f"the answer of {url} is not that of the auth API")


def _refusal(url: str, status: int, answer: Mapping[str, Any], username: str) -> Exception:
    detail, code = str(answer.get("detail") or answer.get("title") or f"status {status}"), answer.get("code")
    if code == OtpRequired.code:
        return OtpRequired("a one-time password is needed; run this on a terminal")
    if code == InvalidCredentials.code:
        name = shlex.quote(username)
        return InvalidCredentials(
            "the username or the password is wrong, or the username is locked or disabled",
            hint=f"{NAME} auth unlock --username {name}\n{NAME} auth reset-password --username {name}",
        )
    kinds: dict[int, type[Exception]] = {401: Unauthenticated, 429: RateLimited, 400: Invalid, 422: Invalid}
    return kinds.get(status, Unavailable)(f"{url} refused: {detail}")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, such as 127.example.com
        return False
