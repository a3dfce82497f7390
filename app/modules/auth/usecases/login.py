"""Sign in with a password."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated

from annotated_types import Len
from loguru import logger

from app.kernel.audit import Audit
from app.kernel.db import Database, Queries, now
from app.kernel.errors import RateLimited
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import Actor, InvalidUsername, username_key
from app.modules.auth.domain.limits import (
    LOCKED_FROM,
    REFUSED_FROM,
    REFUSED_FROM_ADDRESS,
    SPRAY_WINDOW_S,
    SPRAYED_FROM,
    Limit,
    check,
    limit_of_name,
    limit_of_password,
    too_many_at_once,
    undone_unless_decided,
)
from app.modules.auth.domain.second_factor import OtpRequired
from app.modules.auth.domain.sessions import MOST_SESSIONS, InvalidCredentials, Session, SessionTokens
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import SessionStarted
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.second_factor import StoredSecondFactor
from app.modules.auth.tokens import Tokens


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


@dataclass(frozen=True, slots=True)
class Try:
    """A sign-in that counts against its limits: by name, by address and by password."""

    limits: list[Limit]
    pair: str
    """The key of the name with this password."""
    is_locked: bool
    is_spraying: bool


@operation("auth.login", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class Login:
    """Start a session for whoever knows the password.

    Within 15 minutes, ten failures lock a name: even the right password is answered as a wrong one. Thirty failures
    for a name, or a hundred from an address, are answered RATE_LIMITED before anything is computed; so is, for an hour,
    a password that has failed for twenty names. A try counts before its password is looked at.
    """

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions
    passwords: Passwords
    second_factor: StoredSecondFactor
    tokens: Tokens
    limits: Limits
    audit: Audit
    queue: Queue
    idle_s: float
    lifetime_s: float
    marking_key: bytes = field(repr=False)

    async def __call__(self, caller: Caller, credentials: Credentials) -> LoggedIn:
        """Return the actor and tokens of a new session. Safe to repeat: each call is a session of its own.

        Raises RateLimited; OtpRequired when the password is right and a second factor is needed; InvalidCredentials,
        the same after the same time for a wrong password and an unknown, disabled or locked name.
        """
        actor, password_hash = await self._find(credentials.username)
        by_name = limit_of_name(credentials.username, actor.id if actor else None)
        by_password = limit_of_password(self.marking_key, credentials.password)
        limits = [
            Limit(by_name, REFUSED_FROM),
            Limit(f"login:address:{caller.origin.limited}", REFUSED_FROM_ADDRESS),
            Limit(by_password, SPRAYED_FROM, SPRAY_WINDOW_S),
        ]
        check(limits, await self.limits.look(self.db, limits))  # quickly, without waiting for a turn
        new_hash = None
        async with self.passwords.turn(caller.origin.limited) as hashing:
            tried = await self._reserve(limits, f"{by_password}:{by_name}")
            async with self._undone_unless_decided(tried):
                fits = await hashing.verify(credentials.password, password_hash)
                welcome = fits and not tried.is_locked and actor is not None and actor.signs_in
                if welcome and password_hash is not None and self.passwords.is_outdated(password_hash):
                    new_hash = await hashing.hash(credentials.password)
        async with self._undone_unless_decided(tried):
            second = await self.second_factor.check(actor.id, credentials.otp) if welcome and actor else "bad"
        if second == "required":
            await self._give_back(self.db, tried)
            raise OtpRequired
        if actor is None or password_hash is None or second == "bad":
            await self._failed(caller, actor, tried)
            raise InvalidCredentials
        async with self._undone_unless_decided(tried):
            return await self._start(caller, actor, password_hash, new_hash, tried)

    async def _reserve(self, limits: list[Limit], pair: str) -> Try:
        by_password = limits[-1]
        async with self.db.begin() as tx:  # all or nothing: a name that is noted and not counted would never be
            is_new = await self.limits.is_new(tx, pair, by_password.window_s)  # a password counts once for each name
            limits = [*limits[:-1], replace(by_password, counts=is_new)]
            of_name, _, of_password = await self.limits.reserve(tx, limits)
            is_locked = of_name.failed >= LOCKED_FROM
            if not is_locked and of_name.failed + of_name.pending > LOCKED_FROM:
                raise too_many_at_once()
        is_spraying = is_new and of_password.failed + of_password.pending == SPRAYED_FROM
        return Try(limits, pair, is_locked, is_spraying)

    def _undone_unless_decided(self, tried: Try) -> AbstractAsyncContextManager[None]:
        return undone_unless_decided(lambda: self._give_back(self.db, tried))

    async def _give_back(self, db: Queries, tried: Try, *, forgiven: str = "") -> None:
        if tried.limits[-1].counts:
            await self.limits.forget(db, tried.pair)  # first, as when it was reserved: everybody locks in this order
        await self.limits.give_back(db, tried.limits, forgiven=forgiven)

    async def _failed(self, caller: Caller, actor: Actor | None, tried: Try) -> None:
        await self.limits.fail(self.db, tried.limits)
        asked = replace(caller, actor_id=actor.id if actor else None)
        await self.audit.refused(self.db, asked, "auth.login", InvalidCredentials.code)
        if tried.is_spraying:
            logger.error("password spraying: one password has failed for {} names within an hour", SPRAYED_FROM)
            await self.audit.refused(self.db, caller, "auth.password_spraying", RateLimited.code)

    async def _find(self, username: str) -> tuple[Actor | None, str | None]:
        try:
            key = username_key(username)
        except InvalidUsername:
            key = ""  # nobody has it; but look, so that it takes as long
        return await self.actors.by_username(self.db, key) or (None, None)

    async def _start(self, caller: Caller, actor: Actor, verified: str, new_hash: str | None, tried: Try) -> LoggedIn:
        at = await now(self.db)
        expires_at = at + timedelta(seconds=self.lifetime_s)
        idle_expires_at = min(at + timedelta(seconds=self.idle_s), expires_at)
        session = Session(uuid7(), actor.id, 0, at, idle_expires_at, expires_at)
        tokens = await self.tokens.issue(session, at)
        signed_in = replace(caller, actor_id=actor.id, session_id=session.id)
        async with self.db.begin() as tx:
            found = await self.actors.lock(tx, actor.id)
            if found is None or not found[0].signs_in or found[1] != verified:
                raise InvalidCredentials  # changed or disabled while the password was verified
            await self.sessions.start(tx, session, caller.origin)
            await self.sessions.end_least_used(tx, actor.id, MOST_SESSIONS)
            if new_hash is not None:
                await self.actors.set_password(tx, actor.id, new_hash)
            await self._give_back(tx, tried, forgiven=tried.limits[0].key)
            await self.audit.record(tx, signed_in, "auth.login", target=actor.id)
            await self.queue.publish(tx, SessionStarted(actor.id, session.id))
        return LoggedIn(replace(actor, last_active_at=at), tokens)
