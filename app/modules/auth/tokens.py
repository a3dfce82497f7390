"""Tokens.

Access tokens are JWT (RFC 7519) of the type at+jwt (RFC 9068), signed with ES256. Refresh tokens are a counter and its
MAC.
"""

import base64
import hmac
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry

from app.kernel.identifiers import uuid7
from app.modules.auth.domain import Claims, InvalidToken, IssuedToken, Session, TokenExpired
from app.modules.auth.keys import Keyring
from app.modules.auth.settings import AuthSettings

_ALGORITHM = "ES256"
_TYPE = "at+jwt"
_LONGEST = 4096
_ANY_AGE_S = 10**10


class JwtTokens:
    """Issues and reads the tokens of one deployment."""

    def __init__(self, keyring: Keyring, settings: AuthSettings) -> None:
        self._signing = keyring.signing[0]
        self._keys = KeySet(list(keyring.signing))
        self._refresh_mac = keyring.refresh_mac
        self._settings = settings
        expected: Any = {
            "iss": {"essential": True, "value": settings.issuer},
            "aud": {"essential": True, "value": settings.audience},
            "sub": {"essential": True},
            "sid": {"essential": True},
            "jti": {"essential": True},
            "exp": {"essential": True},
        }
        self._registry = JWTClaimsRegistry(leeway=0, **expected)
        self._registry_of_ended = JWTClaimsRegistry(leeway=_ANY_AGE_S, **expected)

    def access(self, session: Session, now: datetime) -> IssuedToken:
        """Return a new access token for the session."""
        expires_at = now + timedelta(seconds=self._settings.access_token_ttl)
        claims: dict[str, Any] = {
            "iss": self._settings.issuer,
            "aud": self._settings.audience,
            "sub": str(session.actor_id),
            "sid": str(session.id),
            "jti": str(uuid7()),
            "iat": int(now.timestamp()),
            "exp": int(expires_at.timestamp()),
        }
        header = {"alg": _ALGORITHM, "typ": _TYPE, "kid": self._signing.kid}
        return IssuedToken(jwt.encode(header, claims, self._signing, algorithms=[_ALGORITHM]), expires_at)

    def refresh(self, session: Session) -> IssuedToken:
        """Return the refresh token of the session's present counter."""
        content = session.id.bytes + session.refresh_counter.to_bytes(8, "big")
        mac = hmac.digest(self._refresh_mac, content, "sha256")
        value = base64.urlsafe_b64encode(content + mac).rstrip(b"=").decode()
        return IssuedToken(f"rt_{value}", min(session.idle_expires_at, session.expires_at))

    def claims(self, token: str, *, allow_expired: bool = False) -> Claims:
        """Return what an access token says. Raises InvalidToken, TokenExpired."""
        if len(token) > _LONGEST:
            raise InvalidToken
        try:
            decoded = jwt.decode(token, self._keys, algorithms=[_ALGORITHM])
            if decoded.header.get("typ") != _TYPE:
                raise InvalidToken
            registry = self._registry_of_ended if allow_expired else self._registry
            registry.validate(decoded.claims)
            return Claims(UUID(decoded.claims["sub"]), UUID(decoded.claims["sid"]))
        except ExpiredTokenError:
            raise TokenExpired from None
        except (JoseError, ValueError, AttributeError, TypeError):
            raise InvalidToken from None
