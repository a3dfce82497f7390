"""Reset somebody's password."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.errors import Invalid
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import ActorNotFound, username_key
from app.modules.auth.domain.limits import limit_of_name
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import PasswordChanged
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import PostgresSessions


@dataclass(frozen=True, slots=True)
class Reset:
    """Whose password was reset, and how many sessions that ended."""

    username: str
    sessions_ended: int


@operation("auth.reset_password", Kind.MANUAL_COMMAND)
@dataclass(frozen=True, slots=True)
class ResetPassword:
    """Set a new password for an actor, end its sessions, and lift the lock of its name."""

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions
    passwords: Passwords
    limits: Limits
    audit: Audit
    queue: Queue

    async def __call__(self, caller: Caller, username: str, password: str) -> Reset:
        """Return what was ended. Raises ActorNotFound, WeakPassword, Invalid. Safe to repeat."""
        key = username_key(username)
        password_hash = await self.passwords.hash(self.passwords.checked(password, username))
        async with self.db.begin() as tx:
            found = await self.actors.by_username(tx, key)
            if found is None:
                raise ActorNotFound(f"there is no actor {username}")
            actor = found[0]
            if actor.type == "service_acc":
                raise Invalid(f"{actor.username} is a service account: it has API keys and no password")
            await self.actors.set_password(tx, actor.id, password_hash)
            ended = await self.sessions.end_all(tx, actor.id)
            await self.limits.forget(tx, limit_of_name(username, actor.id))
            await self.audit.record(tx, caller, "auth.reset_password", target=actor.id, sessions_ended=ended)
            await self.queue.publish(tx, PasswordChanged(actor.id))
        return Reset(actor.username, ended)
