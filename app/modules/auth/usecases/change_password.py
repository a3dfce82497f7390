"""Change one's password."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.errors import RateLimited
from app.kernel.operations import Kind, operation
from app.kernel.queue.events import Events
from app.modules.auth.domain.actors import Actors, Passwords, username_key
from app.modules.auth.domain.sessions import (
    AuthenticatedCaller,
    InvalidCredentials,
    Limits,
    SessionNotFound,
    Sessions,
)
from app.modules.auth.portal import PasswordChanged
from app.modules.auth.usecases.login import LOCKED_FROM, WINDOW_S, limit_of_name


@dataclass(frozen=True, slots=True)
class NewPassword:
    """The present password, and the one to come."""

    current_password: Annotated[str, Len(1, 1024)] = field(repr=False)
    new_password: Annotated[str, Len(1, 1024)] = field(repr=False)


@operation("auth.change_password", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ChangePassword:
    """Set another password for the caller, who proves to know the present one."""

    db: Database
    actors: Actors
    sessions: Sessions
    passwords: Passwords
    limits: Limits
    audit: Audit
    events: Events

    async def __call__(self, caller: AuthenticatedCaller, given: NewPassword) -> None:
        """Store it, and end the caller's other sessions. Raises WeakPassword, InvalidCredentials, RateLimited."""
        if caller.actor is None:
            raise SessionNotFound
        actor, by_name = caller.actor, limit_of_name(caller.actor.username)
        failures, ends_in_s = await self.limits.hits(self.db, by_name, WINDOW_S)
        if failures >= LOCKED_FROM:
            raise RateLimited("too many wrong passwords; try again later", retry_after_s=ends_in_s)
        normal = self.passwords.checked(given.new_password, actor.username, "new_password")
        found = await self.actors.by_username(self.db, username_key(actor.username))
        if not await self.passwords.verify(given.current_password, found[1] if found else None):
            await self.limits.hit(self.db, by_name, WINDOW_S)
            await self.audit.record(self.db, caller, "auth.change_password", outcome=InvalidCredentials.code)
            raise InvalidCredentials("the current password is wrong")
        password_hash = await self.passwords.hash(normal)
        async with self.db.begin() as tx:
            await self.actors.set_password(tx, actor.id, password_hash)
            ended = await self.sessions.end_all(tx, actor.id, but=caller.session_id)
            await self.audit.record(tx, caller, "auth.change_password", target=actor.id, sessions_ended=ended)
            await self.events.publish(tx, PasswordChanged(actor.id))
