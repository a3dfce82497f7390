"""Sign-in, refresh and sign-out; the password and the permissions of the caller.

Most actions take the database and commit themselves: refusals are counted, recorded or end a session, and password
hashing takes too long to hold a connection.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated
from uuid import UUID

from annotated_types import Len
from loguru import logger

from app.kernel.actions import BearerToken, Caller, Database, Doc, change, read
from app.kernel.audit import Audit
from app.kernel.errors import Denied, RateLimited
from app.kernel.identifiers import uuid7
from app.kernel.queue.enqueue import Queue
from app.modules.auth.authentication import Reauthenticate, SecondFactorCheck
from app.modules.auth.domain.actors import Actor, ActorType, InvalidUsername, Password, WeakPassword, username_key
from app.modules.auth.domain.limits import (
    LOCKED_FROM,
    SPRAYED_FROM,
    Limit,
    Tally,
    Try,
    check,
    limit_of_name,
    limit_of_password,
    limits_of_sign_in,
)
from app.modules.auth.domain.second_factor import OtpRequired
from app.modules.auth.domain.sessions import (
    MOST_SESSIONS,
    AuthenticatedCaller,
    InvalidCredentials,
    InvalidRefreshToken,
    InvalidToken,
    RefreshTokenExpired,
    RefreshTokenReused,
    SessionTokens,
)
from app.modules.auth.keyring import Keyring
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import PasswordChanged, SessionStarted
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.postgres.sign_ins import Account, SignIns
from app.modules.auth.settings import AuthSettings
from app.modules.auth.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Credentials:
    """A username, its password, and a one-time password if the actor has a second factor."""

    username: Annotated[str, Len(1, 256), Doc("Username, in any case.", "ada")]
    password: Annotated[str, Len(1, 1024), Doc("Password.", "violet-harbour-lantern")] = field(repr=False)
    otp: Annotated[str, Len(6, 64), Doc("One-time password or recovery code.", "492039")] | None = field(
        default=None, repr=False
    )


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The actor who signed in, and the new session."""

    actor: Actor
    session: SessionTokens


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token."""

    refresh_token: Annotated[str, Len(1, 512), Doc("Refresh token of the session.")] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Me:
    """The caller, its session and its permissions."""

    actor: Actor
    session_id: UUID | None
    permissions: list[str]


@dataclass(frozen=True, slots=True)
class NewPassword:
    """The current and the new password, and a one-time password if the actor has a second factor."""

    current_password: Annotated[str, Len(1, 1024), Doc("Current password.", "quiet-meadow-compass")] = field(repr=False)
    new_password: Password = field(repr=False)
    otp: Annotated[str, Len(6, 64), Doc("One-time password or recovery code.", "492039")] | None = field(
        default=None, repr=False
    )


@dataclass(frozen=True, slots=True)
class Requirement:
    """The permission that the request needs. Without it, a live session is enough."""

    permission: (
        Annotated[str, Len(1, 128), Doc("Permission that the caller must hold.", "platform:jobs:read")] | None
    ) = None


@dataclass(frozen=True, slots=True)
class Verified:
    """The caller, as the proxy describes it to the service behind it."""

    actor_id: UUID
    actor_type: ActorType
    permissions: list[str]


def _identity(verified: Verified) -> dict[str, str]:
    return {
        "x-auth-actor-id": str(verified.actor_id),
        "x-auth-actor-type": verified.actor_type,
        "x-auth-permissions": ",".join(verified.permissions),
    }


_REFUSALS = {"reused": RefreshTokenReused, "expired": RefreshTokenExpired}


@dataclass(frozen=True, slots=True)
class SignIn:
    """Sign in and out, and change the own password."""

    sign_ins: SignIns
    actors: Actors
    sessions: Sessions
    passwords: Passwords
    second_factor: SecondFactorCheck
    reauthenticate: Reauthenticate
    keyring: Keyring
    tokens: Tokens
    limits: Limits
    audit: Audit
    queue: Queue
    settings: AuthSettings

    @change("auth.login", POST="/auth/v1/login", public=True, raises=(RateLimited, OtpRequired, InvalidCredentials))
    async def login(self, db: Database, caller: Caller, credentials: Credentials) -> LoggedIn:
        """Sign in with a password. Returns the actor and the tokens of a new session.

        Within 15 minutes, ten failures lock a username: the right password is then refused like a wrong one. Thirty
        failures for a username, 100 from an address, or one password failing for 20 usernames within an hour are
        answered RATE_LIMITED without hashing. An attempt counts before its password is verified.

        OTP_REQUIRED: the password is right, and a second factor is required. INVALID_CREDENTIALS: the password is
        wrong, or the username is unknown, disabled or locked; the answers and their times are the same. Safe to
        repeat: each request starts a session.
        """
        account, limits, known = await self._find(db, caller, credentials)
        new_hash = None
        async with self.passwords.turn(caller.origin.limited) as hashing:
            tried = await self.limits.reserve(db, limits, known)
            async with self.limits.undone_unless_decided(db, tried):
                fits = await hashing.verify(credentials.password, account.password_hash if account else None)
                is_locked = tried.tallies[limits[0].key].failed >= LOCKED_FROM
                verified = account if fits and not is_locked and account and account.actor.signs_in else None
                if verified and verified.password_hash and self.passwords.is_outdated(verified.password_hash):
                    new_hash = await hashing.hash(credentials.password)
        if verified and verified.has_second_factor:
            async with self.limits.undone_unless_decided(db, tried):
                second = await self.second_factor(db, verified.actor.id, credentials.otp)
            if second == "required":
                await self.limits.give_back(db, tried)
                raise OtpRequired
            verified = None if second == "bad" else replace(verified, has_second_factor=second == "good")
        if verified:
            async with self.limits.undone_unless_decided(db, tried):
                if started := await self.start(db, caller, verified, new_hash, tried):
                    return started
        await self.failed(db, caller, account, tried)
        raise InvalidCredentials

    async def _find(
        self, db: Database, caller: Caller, given: Credentials
    ) -> tuple[Account | None, list[Limit], dict[str, Tally]]:
        """Return the account, and the limits of an attempt with their tallies.

        Raises RateLimited without waiting for a turn to hash.
        """
        try:
            key = username_key(given.username)
        except InvalidUsername:
            key = ""  # matches no actor, in the same time
        address, password = caller.origin.limited, limit_of_password(self.keyring.marking_key, given.password)
        limits = limits_of_sign_in(given.username, None, address, password)
        account, tallies = await self.sign_ins.find(db, key, [limit.key for limit in limits])
        if account:
            limits = limits_of_sign_in(given.username, account.actor.id, address, password)
        check(limits, tallies)
        return account, limits, tallies

    async def failed(self, db: Database, caller: Caller, account: Account | None, tried: Try) -> None:
        """Count and record a failed attempt."""
        await self.limits.fail(db, tried)
        asked = replace(caller, actor_id=account.actor.id if account else None)
        await self.audit.refused(db, asked, "auth.login", InvalidCredentials.code)
        by_password = [tried.tallies[limit.key] for limit in tried.limits if limit.once_for]
        if any(tally.failed + tally.pending == SPRAYED_FROM for tally in by_password):
            logger.error("password spraying: one password failed for {} usernames within an hour", SPRAYED_FROM)
            await self.audit.refused(db, caller, "auth.password_spraying", RateLimited.code)

    async def start(
        self, db: Database, caller: Caller, verified: Account, new_hash: str | None, tried: Try
    ) -> LoggedIn | None:
        """Return the session; None if the account has changed since its verification."""
        actor, settings = verified.actor, self.settings
        await self.keyring.signing()  # before the transaction, because a reload takes another connection
        async with db.begin() as tx:
            session = await self.sign_ins.start(
                tx, verified, uuid7(), caller.origin, settings.session_idle, settings.session_lifetime
            )
            if session is None:
                return None
            if new_hash is not None:
                await self.actors.set_password(tx, actor.id, new_hash)
            by_name = limit_of_name(actor.username, actor.id)
            await self.sign_ins.settle(tx, actor.id, MOST_SESSIONS, tried, forgiven=by_name)
            signed_in = replace(caller, actor_id=actor.id, session_id=session.id)
            await self.audit.record(tx, signed_in, "auth.login", target=actor.id)
            await self.queue.publish(tx, SessionStarted(actor.id, session.id))
            tokens = await self.tokens.issue(session, session.rotated_at)
        await self.limits.settled(tried, by_name)
        return LoggedIn(replace(actor, last_active_at=session.rotated_at), tokens)

    @change(
        "auth.refresh",
        POST="/auth/v1/refresh",
        public=True,
        raises=(InvalidRefreshToken, RefreshTokenExpired, RefreshTokenReused),
    )
    async def refresh(self, db: Database, caller: Caller, given: RefreshToken) -> SessionTokens:
        """Rotate a session's refresh token (RFC 9700, section 4.14.2).

        For ten seconds the previous token returns the same successor again, in case the response was lost: within them
        a request is safe to repeat. The use of an older token ends the session: REFRESH_TOKEN_REUSED.
        """
        session_id, counter = self.tokens.refresh_claims(given.refresh_token)
        await self.keyring.signing()  # as for sign-in
        async with db.begin() as tx:
            session = await self.sessions.lock(tx, session_id)
            verdict = session.verdict(counter) if session else "unknown"
            if session and verdict == "rotate":
                session = session.rotated(self.settings.session_idle)
                await self.sessions.rotate(tx, session)
            if session and verdict in ("rotate", "repeat"):
                return await self.tokens.issue(session, session.now)
            if session and verdict == "reused":
                await self.sessions.end(tx, session.id, session.actor_id)
                asked = replace(caller, actor_id=session.actor_id, session_id=session.id)
                await self.audit.record(tx, asked, "auth.refresh", outcome=RefreshTokenReused.code)
        # raised after the transaction, which commits the end of the session
        raise _REFUSALS.get(verdict, InvalidRefreshToken)

    @change("auth.logout", POST="/auth/v1/logout", public=True, raises=(InvalidToken,))
    async def logout(self, db: Database, caller: Caller, token: BearerToken) -> None:
        """End the session of an access token, at once in every process. Safe to repeat, also after expiry."""
        claims = await self.tokens.claims(token, allow_expired=True)
        asked = replace(caller, actor_id=claims.actor_id, session_id=claims.session_id)
        async with db.begin() as tx:
            if await self.sessions.end(tx, claims.session_id, claims.actor_id):
                await self.audit.record(tx, asked, "auth.logout")

    @change(
        "auth.change_password",
        PUT="/auth/v1/me/password",
        raises=(WeakPassword, *Reauthenticate.raises),
    )
    async def change_password(self, db: Database, caller: AuthenticatedCaller, given: NewPassword) -> None:
        """Change the caller's password. Ends the caller's other sessions."""
        actor = await self.reauthenticate.fully(db, caller, given.current_password, given.otp)
        normal = self.passwords.checked(given.new_password, actor.username, "new_password")
        password_hash = await self.passwords.hash(normal, caller.origin.limited)
        async with db.begin() as tx:
            await self.actors.set_password(tx, actor.id, password_hash)
            await self.sessions.check_still_lives(tx, caller)
            ended = await self.sessions.end_all(tx, actor.id, but=caller.session_id)
            await self.audit.record(tx, caller, "auth.change_password", target=actor.id, sessions_ended=ended)
            await self.queue.publish(tx, PasswordChanged(actor.id))

    @read("auth.get_me", GET="/auth/v1/me")
    async def me(self, caller: AuthenticatedCaller) -> Me:
        """Show the caller's actor, session and permissions. Safe to repeat."""
        return Me(caller.actor, caller.session_id, caller.held)

    @read("auth.verify", GET="/auth/v1/verify", headers=_identity, raises=(Denied,))
    async def verify(self, caller: AuthenticatedCaller, required: Requirement) -> Verified:
        """Verify a request for a reverse proxy (forward authentication). Safe to repeat."""
        if required.permission is not None and not caller.may(required.permission):
            raise Denied(f"the permission {required.permission} is required")
        return Verified(caller.actor.id, caller.actor.type, caller.held)
