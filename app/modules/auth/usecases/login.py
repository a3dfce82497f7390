"""Sign in with a password."""

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.errors import RateLimited
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import Actor, Actors, InvalidUsername, Passwords, username_key
from app.modules.auth.domain.second_factor import OtpRequired, SecondFactor
from app.modules.auth.domain.sessions import (
    MOST_SESSIONS,
    InvalidCredentials,
    Limits,
    Session,
    Sessions,
    SessionTokens,
    Tokens,
)
from app.modules.auth.portal import SessionStarted

WINDOW_S = 900.0
LOCKED_FROM = 10
REFUSED_FROM = 30
REFUSED_FROM_ADDRESS = 100


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who somebody is."""

    username: Annotated[str, Len(1, 256)]
    password: Annotated[str, Len(1, 1024)] = field(repr=False)
    otp: Annotated[str, Len(6, 64)] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Who signed in, and their new session."""

    actor: Actor
    session: SessionTokens


def limit_of_name(username: str) -> str:
    """Return the key under which failures for a name are counted, whether there is such an actor or not."""
    try:
        key = username_key(username)
    except InvalidUsername:
        key = username
    return "login:name:" + hashlib.sha256(key.encode(errors="replace")).hexdigest()


@operation("auth.login", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class Login:
    """Start a session for whoever knows the password.

    Within 15 minutes, ten failures lock a name: even the right password is answered as a wrong one. Thirty failures
    for a name, or a hundred from an address, are answered RATE_LIMITED before anything is computed.
    """

    db: Database
    actors: Actors
    sessions: Sessions
    passwords: Passwords
    second_factor: SecondFactor
    tokens: Tokens
    limits: Limits
    audit: Audit
    queue: Queue
    idle_s: float
    lifetime_s: float

    async def __call__(self, caller: Caller, credentials: Credentials) -> LoggedIn:
        """Return the actor and tokens of a new session. Safe to repeat: each call is a session of its own.

        Raises RateLimited; OtpRequired when the password is right and a second factor is needed; InvalidCredentials,
        the same after the same time for a wrong password and an unknown, disabled or locked name.
        """
        by_name, by_address = limit_of_name(credentials.username), f"login:address:{caller.origin.limited}"
        await self._refuse_too_many(by_name, by_address)
        actor, password_hash = await self._find(credentials.username)
        fits = await self.passwords.verify(credentials.password, password_hash)
        # counted now, not before: guesses that run side by side must not outrun the lock
        failures, _ = await self.limits.hits(self.db, by_name, WINDOW_S)
        welcome = fits and actor is not None and actor.is_active and failures < LOCKED_FROM
        second = await self.second_factor.check(actor.id, credentials.otp) if welcome and actor else "bad"
        if second == "required":
            raise OtpRequired
        if actor is None or password_hash is None or second == "bad":
            await self.limits.hit(self.db, by_name, WINDOW_S)
            await self.limits.hit(self.db, by_address, WINDOW_S)
            asked = replace(caller, actor_id=actor.id if actor else None)
            await self.audit.record(self.db, asked, "auth.login", outcome=InvalidCredentials.code)
            raise InvalidCredentials
        new_hash = None
        if self.passwords.is_outdated(password_hash):
            new_hash = await self.passwords.hash(credentials.password)
        return await self._start(caller, actor, password_hash, new_hash, by_name if failures else None)

    async def _refuse_too_many(self, by_name: str, by_address: str) -> None:
        for key, most in ((by_name, REFUSED_FROM), (by_address, REFUSED_FROM_ADDRESS)):
            failures, ends_in_s = await self.limits.hits(self.db, key, WINDOW_S)
            if failures >= most:
                raise RateLimited("too many failed sign-ins; try again later", retry_after_s=ends_in_s)

    async def _find(self, username: str) -> tuple[Actor | None, str | None]:
        try:
            key = username_key(username)
        except InvalidUsername:
            key = ""  # nobody has it; but look, so that it takes as long
        return await self.actors.by_username(self.db, key) or (None, None)

    async def _start(
        self, caller: Caller, actor: Actor, verified: str, new_hash: str | None, forget: str | None
    ) -> LoggedIn:
        now = datetime.now(UTC)
        expires_at = now + timedelta(seconds=self.lifetime_s)
        idle_expires_at = min(now + timedelta(seconds=self.idle_s), expires_at)
        session = Session(uuid7(), actor.id, 0, now, idle_expires_at, expires_at)
        tokens = await self.tokens.issue(session, now)
        signed_in = replace(caller, actor_id=actor.id, session_id=session.id)
        async with self.db.begin() as tx:
            found = await self.actors.lock(tx, actor.id)
            if found is None or not found[0].is_active or found[1] != verified:
                raise InvalidCredentials  # changed or disabled while the password was verified
            await self.sessions.start(tx, session, caller.origin)
            await self.sessions.end_least_used(tx, actor.id, MOST_SESSIONS)
            if new_hash is not None:
                await self.actors.set_password(tx, actor.id, new_hash)
            if forget is not None:
                await self.limits.forget(tx, forget)
            await self.audit.record(tx, signed_in, "auth.login", target=actor.id)
            await self.queue.publish(tx, SessionStarted(actor.id, session.id))
        return LoggedIn(replace(actor, last_active_at=now), tokens)
