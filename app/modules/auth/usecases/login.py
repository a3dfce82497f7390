"""Sign in with a password."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.db import Database
from app.kernel.identifiers import uuid7
from app.kernel.operations import Kind, operation
from app.modules.auth.domain import (
    Actor,
    Actors,
    InvalidCredentials,
    InvalidUsername,
    Passwords,
    Session,
    Sessions,
    Tokens,
    username_key,
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who somebody is."""

    username: Annotated[str, Len(1, 256)]
    password: Annotated[str, Len(1, 1024)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionTokens:
    """A session with the tokens to use it."""

    id: UUID
    token_type: str
    access_token: str = field(repr=False)
    access_token_expires_at: datetime
    refresh_token: str = field(repr=False)
    refresh_token_expires_at: datetime


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Who signed in, and their new session."""

    actor: Actor
    session: SessionTokens


@operation("auth.login", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class Login:
    """Start a session for whoever knows the password."""

    db: Database
    actors: Actors
    sessions: Sessions
    passwords: Passwords
    tokens: Tokens
    idle_s: float
    lifetime_s: float

    async def __call__(self, credentials: Credentials) -> LoggedIn:
        """Return the actor and tokens of a new session. Safe to repeat: each call is a session of its own.

        Raises InvalidCredentials, the same after the same time for a wrong password and an unknown or disabled name.
        """
        found = await self._find(credentials.username)
        actor, password_hash = found or (None, None)
        fits = await self.passwords.verify(credentials.password, password_hash)
        if actor is None or not fits or not actor.is_active:
            raise InvalidCredentials
        now = datetime.now(UTC)
        idle, lifetime = now + timedelta(seconds=self.idle_s), now + timedelta(seconds=self.lifetime_s)
        session = Session(uuid7(), actor.id, 0, min(idle, lifetime), lifetime)
        async with self.db.begin() as tx:
            await self.sessions.start(tx, session)
        access, refresh = self.tokens.access(session, now), self.tokens.refresh(session)
        return LoggedIn(
            actor,
            SessionTokens(session.id, "Bearer", access.value, access.expires_at, refresh.value, refresh.expires_at),
        )

    async def _find(self, username: str) -> tuple[Actor, str | None] | None:
        try:
            key = username_key(username)
        except InvalidUsername:
            return None
        return await self.actors.by_username(self.db, key)
