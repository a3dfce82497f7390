"""Tokens: access tokens are JWT (RFC 9068) signed with ES256; refresh tokens are a session id, a counter and a MAC."""

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.kernel.identifiers import uuid7
from app.modules.auth.domain.sessions import (
    Claims,
    InvalidRefreshToken,
    InvalidToken,
    Session,
    SessionTokens,
    TokenExpired,
)
from app.modules.auth.keyring import ALGORITHM, Keyring
from app.modules.auth.settings import AuthSettings

_TYPE = "at+jwt"
_LONGEST = 4096
_REMEMBERED = 4096
_LEEWAY_S = 30  # of `iat` and `nbf`, for clocks that differ
_REFRESH_PREFIX = "rt_"
_REFRESH_BYTES = 16 + 8 + 32


class Tokens:
    """Issues and verifies tokens. The result of a signature check is cached; expiry is checked every time."""

    def __init__(self, keyring: Keyring, settings: AuthSettings) -> None:
        self._keyring = keyring
        self._settings = settings
        self._expected = (settings.issuer, settings.audience)
        self._verified: OrderedDict[bytes, tuple[str, int, Claims]] = OrderedDict()

    async def issue(self, session: Session, now: datetime) -> SessionTokens:
        """Return a new access token and the refresh token of the session's current counter."""
        from joserfc import jwt

        key = await self._keyring.signing()
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
        header = {"alg": ALGORITHM, "typ": _TYPE, "kid": key.kid}
        access = jwt.encode(header, claims, key, algorithms=[ALGORITHM])
        refresh_expires_at = min(session.idle_expires_at, session.expires_at)
        return SessionTokens(session.id, "Bearer", access, expires_at, self._refresh(session), refresh_expires_at)

    async def claims(self, token: str, *, allow_expired: bool = False) -> Claims:
        """Return the claims of an access token. Raises InvalidToken, TokenExpired."""
        if len(token) > _LONGEST or not token.isascii():
            raise InvalidToken
        digest = hashlib.sha256(token.encode()).digest()
        remembered = self._verified.get(digest)
        if remembered is not None:
            kid, expires, claims = remembered
            if await self._keyring.find(kid) is not None:
                if expires <= self._keyring.now() and not allow_expired:
                    raise TokenExpired
                return claims
        from app.modules.auth.jws import STATED, taken_apart

        try:
            signed = taken_apart(token)
            key = await self._keyring.find(signed.kid)
            if key is None:
                raise InvalidToken
            stated = STATED.validate_json(signed.verified(key.public_key))
        except ValueError:
            raise InvalidToken from None
        now = self._keyring.now()
        if (stated.iss, stated.aud) != self._expected or max(stated.iat, stated.nbf) > now + _LEEWAY_S:
            raise InvalidToken
        if stated.exp <= now and not allow_expired:
            raise TokenExpired
        claims = Claims(stated.sub, stated.sid)
        self._verified[digest] = (signed.kid, stated.exp, claims)
        if len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)
        return claims

    def refresh_claims(self, token: str) -> tuple[UUID, int]:
        """Return the session and the counter of a refresh token. Raises InvalidRefreshToken."""
        try:
            content = base64.b64decode(token.removeprefix(_REFRESH_PREFIX) + "=", altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise InvalidRefreshToken from None
        stated, mac = content[:24], content[24:]
        expected = [hmac.digest(key, stated, "sha256") for key in self._keyring.refresh_macs]
        if len(content) != _REFRESH_BYTES or not any(hmac.compare_digest(mac, each) for each in expected):
            raise InvalidRefreshToken
        return UUID(bytes=stated[:16]), int.from_bytes(stated[16:], "big")

    def _refresh(self, session: Session) -> str:
        stated = session.id.bytes + session.refresh_counter.to_bytes(8, "big")
        mac = hmac.digest(self._keyring.refresh_mac, stated, "sha256")
        return _REFRESH_PREFIX + base64.urlsafe_b64encode(stated + mac).rstrip(b"=").decode()
