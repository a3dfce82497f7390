"""Authentication of requests: the Authorization header, and the authenticators that routes declare."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote_plus

from app.kernel.callers import BasicAuth, BearerToken, Caller, Origin
from app.kernel.errors import Unauthenticated
from app.kernel.http.asgi import Scope, header


class Authenticate(Protocol):
    """Verifies an access token. A module provides it."""

    async def __call__(self, token: str, origin: Origin) -> Caller:
        """Return the holder of the token. Raises Unauthenticated, Unavailable."""
        ...


class Authenticator(Protocol):
    """Authenticates a request. A dataclass: it is made of its fields, as features are."""

    name: ClassVar[str]
    scheme: ClassVar[Mapping[str, Any]]
    """The OpenAPI security scheme."""

    async def __call__(self, scope: Scope, origin: Origin) -> Caller:
        """Return the caller. Raises Unauthenticated, Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Bearer:
    """An access token in the Authorization header (RFC 6750, section 2.1)."""

    name: ClassVar[str] = "bearer"
    scheme: ClassVar[Mapping[str, Any]] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}

    authenticate: Authenticate

    async def __call__(self, scope: Scope, origin: Origin) -> Caller:
        """Return the holder of the token. Raises Unauthenticated, Unavailable."""
        return await self.authenticate(bearer_token(scope), origin)


def bearer_token(scope: Scope) -> BearerToken:
    """Return the token of the Authorization header. Raises Unauthenticated."""
    scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise Unauthenticated("send an access token: Authorization: Bearer ...")
    return BearerToken(token.strip().decode("latin-1"))


def basic_auth(scope: Scope) -> BasicAuth:
    """Return name and password of the Authorization header, decoded as in RFC 6749, section 2.3.1."""
    scheme, _, encoded = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return BasicAuth()
    try:
        username, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise Unauthenticated("the Authorization header is malformed") from None
    return BasicAuth(unquote_plus(username), unquote_plus(password))
