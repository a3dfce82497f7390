"""Who sends a request: credentials of the Authorization header, and the authenticators that routes declare."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote_plus

from app.kernel.callers import BasicAuth, BearerToken, Caller, Origin
from app.kernel.errors import Unauthenticated
from app.kernel.http.asgi import Scope, header


class Authenticate(Protocol):
    """Turn an access token into who asks. A module provides it."""

    async def __call__(self, token: str, origin: Origin) -> Caller:
        """Return who holds the token. Raises Unauthenticated, Unavailable."""
        ...


class Authenticator(Protocol):
    """Finds out who sends a request. A dataclass: it is made of its fields, as features are."""

    name: ClassVar[str]
    scheme: ClassVar[Mapping[str, Any]]
    """The OpenAPI security scheme, under that name."""

    async def __call__(self, scope: Scope, origin: Origin) -> Caller:
        """Return who asks. Raises Unauthenticated, Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Bearer:
    """An access token in the Authorization header (RFC 6750, section 2.1), the only place it is taken from."""

    name: ClassVar[str] = "bearer"
    scheme: ClassVar[Mapping[str, Any]] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}

    authenticate: Authenticate

    async def __call__(self, scope: Scope, origin: Origin) -> Caller:
        """Return who holds the token. Raises Unauthenticated, Unavailable."""
        return await self.authenticate(bearer_token(scope), origin)


def bearer_token(scope: Scope) -> BearerToken:
    """Return the token of the Authorization header. Raises Unauthenticated."""
    scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise Unauthenticated("send an access token: Authorization: Bearer ...")
    return BearerToken(token.strip().decode("latin-1"))


def basic_auth(scope: Scope) -> BasicAuth:
    """Return name and password of the Authorization header, decoded as OAuth 2 wants it (RFC 6749, section 2.3.1)."""
    scheme, _, encoded = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return BasicAuth()
    try:
        username, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise Unauthenticated("the Authorization header is malformed") from None
    return BasicAuth(unquote_plus(username), unquote_plus(password))
