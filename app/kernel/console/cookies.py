"""Cookies of the console, and the tokens in forms that prove that a request comes from one of its pages."""

import base64
import hmac
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from app.kernel.errors import Denied
from app.kernel.http.asgi import Scope, header
from app.kernel.product import NAME

SESSION, FORM, STEP, FLASH = "console", "console-form", "console-step", "console-flash"
_LONGEST = 4096
_FLASH_S, _STEP_S = 60, 300
_MOST_FLASH = 1000


class ForgedRequest(Denied):
    """The request does not come from a current page of this console."""

    code = "FORGED_REQUEST"
    title = "This page is out of date; check what it says, and press again"


@dataclass(frozen=True, slots=True)
class Cookies:
    """The cookies of a request.

    Their names have the prefix `__Host-`, so that they are Secure, and only this host can set them (RFC 6265bis,
    section 4.1.3.2). Only on a laptop without TLS they are plain, because not every browser stores Secure cookies of
    http://localhost.
    """

    found: dict[str, str]
    is_plain: bool

    @classmethod
    def of(cls, scope: Scope, *, may_be_plain: bool) -> "Cookies":
        """Return the cookies of a request."""
        is_plain = may_be_plain and scope["scheme"] != "https"
        found: dict[str, str] = {}
        for name, value in scope["headers"]:
            if name == b"cookie" and len(value) <= 2 * _LONGEST:
                for part in value.decode("latin-1").split(";"):
                    key, _, text = part.strip().partition("=")
                    found.setdefault(key, text)
        return cls(found, is_plain)

    def get(self, name: str) -> str:
        """Return the value of a cookie; empty without one."""
        return self.found.get(self._name(name), "")

    def put(self, name: str, value: str, max_age_s: int | None = None) -> tuple[bytes, bytes]:
        """Return the header field that sets a cookie, until the browser is closed by default."""
        age = "" if max_age_s is None else f"; Max-Age={max_age_s}"
        secure = "" if self.is_plain else "; Secure"
        text = f"{self._name(name)}={value}; Path=/{age}; HttpOnly; SameSite=Strict{secure}"
        return b"set-cookie", text.encode("latin-1")

    def drop(self, *names: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield the header fields that remove cookies which the request had."""
        return (self.put(name, "", 0) for name in names if self._name(name) in self.found)

    def _name(self, name: str) -> str:
        return f"{'' if self.is_plain else '__Host-'}{NAME}-{name}"

    def flash(self, token: str, kind: str, text: str) -> tuple[bytes, bytes]:
        """Return the header field that keeps a message for the next page."""
        content = json.dumps([kind, text[:_MOST_FLASH]]).encode()
        signed = _mac(token, b"flash", content)[:16] + content
        return self.put(FLASH, base64.urlsafe_b64encode(signed).decode(), _FLASH_S)

    def flashed(self, token: str) -> tuple[str, str] | None:
        """Return kind and text of the message for this page, if it is one of this session."""
        try:
            signed = base64.urlsafe_b64decode(self.get(FLASH))
            mac, content = signed[:16], signed[16:]
            if not hmac.compare_digest(mac, _mac(token, b"flash", content)[:16]):
                return None
            kind, text = json.loads(content)
        except ValueError:
            return None
        return str(kind), str(text)

    def step(self, token: str) -> tuple[bytes, bytes]:
        """Return the header field that keeps the token of the second step of a sign-in."""
        return self.put(STEP, token, _STEP_S)


def new_form_token() -> str:
    """Return a token for the cookie of a browser that is not signed in."""
    return secrets.token_urlsafe(32)


def csrf_of(token: str) -> str:
    """Return the token for the forms of a session; it reveals nothing about the token in the cookie."""
    return base64.urlsafe_b64encode(_mac(token, b"csrf", b"")).decode().rstrip("=") if token else ""


def check_same_origin(scope: Scope) -> None:
    """Raise ForgedRequest if the browser says that another site made the request."""
    site = header(scope, b"sec-fetch-site")
    if site is not None:
        if site != b"same-origin":
            raise ForgedRequest
        return
    origin = header(scope, b"origin")  # browsers without Sec-Fetch-Site, or without TLS
    if origin is not None and origin.partition(b"://")[2] != (header(scope, b"host") or b""):
        raise ForgedRequest


def check_csrf(token: str, given: str) -> None:
    """Raise ForgedRequest unless a form has the token of the session."""
    if not token or not hmac.compare_digest(csrf_of(token).encode(), given.encode()):
        raise ForgedRequest


def _mac(token: str, purpose: bytes, content: bytes) -> bytes:
    return hmac.digest(token.encode("latin-1"), purpose + b"\0" + content, "sha256")
