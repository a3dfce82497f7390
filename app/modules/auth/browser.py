"""Sessions of browsers, for the console: a cookie with an opaque token names them (ADR 46)."""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace
from uuid import UUID

from app.kernel.actions import Caller, Database
from app.kernel.audit import Audit
from app.kernel.callers import Origin
from app.kernel.console.browser import SignedIn, Visitor
from app.kernel.errors import Invalid
from app.modules.auth.authentication import Reauthenticate, SecondFactorCheck
from app.modules.auth.callers import Callers
from app.modules.auth.domain.actors import InvalidUsername, username_key
from app.modules.auth.domain.limits import LOCKED_FROM, check, limits_of_second_step
from app.modules.auth.domain.second_factor import InvalidOtp, OtpRequired
from app.modules.auth.domain.sessions import AuthenticatedCaller, BrowserSession, Claims, SessionNotFound
from app.modules.auth.keyring import Keyring
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.postgres.sign_ins import Account, SignIns
from app.modules.auth.settings import AuthSettings
from app.modules.auth.sign_in import Credentials, SignIn

_TOKEN_BYTES = 32
_SECOND_STEP_S = 300


@dataclass(frozen=True, slots=True)
class BrowserSignIn:
    """Signs browsers in and out. Implements `BrowserSessions` of the console.

    The session is one of auth like any other; the database has only the SHA-256 of its token. Each sign-in and each
    new proof gives it a new token, so that one that was planted or seen before is worth nothing.
    """

    db: Database
    by_password: SignIn
    sign_ins: SignIns
    sessions: Sessions
    callers: Callers
    second_factor: SecondFactorCheck
    reauthenticate: Reauthenticate
    keyring: Keyring
    limits: Limits
    audit: Audit
    settings: AuthSettings

    async def sign_in(self, origin: Origin, username: str, password: str) -> SignedIn:
        """Start a session, or the second step of its sign-in. Limits and refusals are those of `auth.login`."""
        _check_lengths(username=(username, 256), password=(password, 1024))
        try:
            started = await self.by_password.login(self.db, Caller(origin=origin), Credentials(username, password))
        except OtpRequired:
            return SignedIn(await self._second_step_token(username), is_complete=False)
        return await self._named(started.session.id)

    async def second_step(self, origin: Origin, token: str, otp: str) -> SignedIn:
        """Start a session with a code and the statement that the password was right. Raises InvalidOtp."""
        _check_lengths(otp=(otp, 64))
        caller, account = Caller(origin=origin), await self._of_second_step(token)
        if account is None:
            raise SessionNotFound("the sign-in took too long; start again")
        limits = limits_of_second_step(account.actor.id, origin.limited)
        known = await self.limits.look(self.db, limits)
        check(limits, known)
        tried = await self.limits.reserve(self.db, limits, known)
        async with self.limits.undone_unless_decided(self.db, tried):
            is_locked = tried.tallies[limits[0].key].failed >= LOCKED_FROM
            second = "bad" if is_locked else await self.second_factor(self.db, account.actor.id, otp)
            if second == "good":
                started = await self.by_password.start(self.db, caller, account, None, tried)
                if started is not None:
                    return await self._named(started.session.id)
        await self.by_password.failed(self.db, caller, account, tried)
        raise InvalidOtp

    async def find(self, origin: Origin, token: str, *, is_active: bool) -> Visitor:
        """Return the visitor of a token, with current permissions. Raises SessionNotFound."""
        session, caller = await self._authenticated(token, origin)
        if is_active:
            await self.sessions.keep(self.db, session.id, self.settings.session_idle)
        return Visitor(caller, caller.actor.username, session.confirmed_s, session.has_second_factor)

    async def confirm(self, origin: Origin, token: str, password: str, otp: str | None) -> SignedIn:
        """Check password and second factor again. Raises InvalidCredentials, RateLimited, OtpRequired, InvalidOtp."""
        _check_lengths(password=(password, 1024), otp=(otp or "", 64))
        session, caller = await self._authenticated(token, origin)
        await self.reauthenticate.fully(self.db, caller, password, otp or None)
        fresh = _new_token()
        async with self.db.begin() as tx:
            if not await self.sessions.confirm_in_browser(tx, session.id, _digest(fresh), _digest(token)):
                raise SessionNotFound
            await self.audit.record(tx, caller, "auth.reauthenticate", target=caller.actor.id)
        return SignedIn(fresh)

    async def sign_out(self, origin: Origin, token: str, *, everywhere: bool) -> None:
        """End the session, or all sessions of its actor, at once in every process. Safe to repeat."""
        try:
            session, caller = await self._authenticated(token, origin)
        except SessionNotFound:
            return
        async with self.db.begin() as tx:
            if everywhere:
                ended = await self.sessions.end_all(tx, caller.actor.id)
                await self.audit.record(tx, caller, "auth.logout", target=caller.actor.id, sessions_ended=ended)
            elif await self.sessions.end(tx, session.id, session.actor_id):
                await self.audit.record(tx, caller, "auth.logout")

    def guards(self, permission: str) -> bool:
        """Return whether a permission is one of auth: roles, permissions, keys, sessions of others, superusers."""
        return permission.startswith("auth:")

    async def _authenticated(self, token: str, origin: Origin) -> tuple[BrowserSession, AuthenticatedCaller]:
        session = await self.sessions.in_browser(self.db, _digest(token))
        if session is None:
            raise SessionNotFound
        caller = self.callers.get(session.id)
        if caller is None or caller.actor_id != session.actor_id:
            claims, name = Claims(session.actor_id, session.id), f"session:{session.id}:{session.actor_id}"
            found = await self.callers.load(session.id, name, lambda: self.sessions.caller(self.db, claims))
            if found is None:
                raise SessionNotFound
            if found.fresh_s <= 0:
                await self.sessions.touch(self.db, session.actor_id)
            caller = found.caller
        return session, caller.at(origin)

    async def _named(self, session_id: UUID) -> SignedIn:
        """Return a new token for a session that was just started."""
        token = _new_token()
        if not await self.sessions.confirm_in_browser(self.db, session_id, _digest(token), None):
            raise SessionNotFound
        return SignedIn(token)

    async def _second_step_token(self, username: str) -> str:
        """Return the statement that the password of a name was right, for some minutes. It holds no secret."""
        account = await self._account(username)
        if account is None:
            raise SessionNotFound
        stated = f"{int(self.keyring.now()) + _SECOND_STEP_S}:{username}"
        mac = _mac(self.keyring.second_step_mac, stated, account)
        return base64.urlsafe_b64encode(mac + stated.encode()).decode()

    async def _of_second_step(self, token: str) -> Account | None:
        """Return the account of a statement; None if it is invalid, expired, or the account has changed."""
        try:
            content = base64.urlsafe_b64decode(token)
            mac, stated = content[:_TOKEN_BYTES], content[_TOKEN_BYTES:].decode()
            expires, _, username = stated.partition(":")
            is_current = int(expires) > self.keyring.now()
        except ValueError:
            return None
        account = await self._account(username) if is_current else None
        keys = self.keyring.second_step_macs
        if account is None or not any(hmac.compare_digest(mac, _mac(key, stated, account)) for key in keys):
            return None
        return replace(account, has_second_factor=True)

    async def _account(self, username: str) -> Account | None:
        try:
            key = username_key(username)
        except InvalidUsername:
            return None
        account, _ = await self.sign_ins.find(self.db, key, [])
        return account if account and account.actor.signs_in and account.password_hash else None


def _mac(key: bytes, stated: str, account: Account) -> bytes:
    """Return the MAC of a statement; a new password makes it invalid."""
    return hmac.digest(key, f"{account.actor.id}:{account.password_hash}:{stated}".encode(), "sha256")


def _new_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _check_lengths(**given: tuple[str, int]) -> None:
    wrong = [(name, f"must have at most {most} characters") for name, (text, most) in given.items() if len(text) > most]
    if wrong:
        raise Invalid("the input is invalid; see errors", tuple(wrong))
