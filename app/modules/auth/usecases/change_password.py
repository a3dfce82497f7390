"""Change one's password."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import Password
from app.modules.auth.domain.sessions import AuthenticatedCaller
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import PasswordChanged
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.usecases.reauthenticate import Reauthenticate


@dataclass(frozen=True, slots=True)
class NewPassword:
    """The present password, the one to come, and a one-time password if there is a second factor."""

    current_password: Annotated[str, Len(1, 1024)] = field(repr=False)
    new_password: Password = field(repr=False)
    otp: Annotated[str, Len(6, 64)] | None = field(default=None, repr=False)


@operation("auth.change_password", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ChangePassword:
    """Set another password for the caller, who proves to be the one who signed in."""

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions
    passwords: Passwords
    reauthenticate: Reauthenticate
    audit: Audit
    queue: Queue

    async def __call__(self, caller: AuthenticatedCaller, given: NewPassword) -> None:
        """Store it, and end the caller's other sessions.

        Raises WeakPassword, InvalidCredentials, OtpRequired, InvalidOtp, RateLimited, SessionNotFound.
        """
        actor = await self.reauthenticate.fully(caller, given.current_password, given.otp)
        normal = self.passwords.checked(given.new_password, actor.username, "new_password")
        password_hash = await self.passwords.hash(normal, caller.origin.limited)
        async with self.db.begin() as tx:
            await self.actors.set_password(tx, actor.id, password_hash)
            await self.sessions.check_still_lives(tx, caller)
            ended = await self.sessions.end_all(tx, actor.id, but=caller.session_id)
            await self.audit.record(tx, caller, "auth.change_password", target=actor.id, sessions_ended=ended)
            await self.queue.publish(tx, PasswordChanged(actor.id))
