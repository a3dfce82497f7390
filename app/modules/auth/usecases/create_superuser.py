"""Create the first actor, who may do everything."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import UsernameExists, username_key
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import ActorCreated
from app.modules.auth.postgres.actors import PostgresActors


@dataclass(frozen=True, slots=True)
class Superuser:
    """The superuser, and whether this call made it."""

    id: UUID
    username: str
    created: bool


@operation("auth.create_superuser", Kind.MANUAL_COMMAND)
@dataclass(frozen=True, slots=True)
class CreateSuperuser:
    """Create an active superuser who signs in with a password."""

    db: Database
    actors: PostgresActors
    passwords: Passwords
    audit: Audit
    queue: Queue

    async def __call__(self, caller: Caller, username: str, password: str) -> Superuser:
        """Return the superuser. Safe to repeat and to run many times at once: one is made; its password stays.

        Raises InvalidUsername, WeakPassword; UsernameExists when the name belongs to an actor who is no superuser.
        """
        key = username_key(username)
        password_hash = await self.passwords.hash(self.passwords.checked(password, username))
        actor_id = uuid7()
        async with self.db.begin() as tx:
            if await self.actors.add_superuser(tx, actor_id, username, key, password_hash):
                await self.audit.record(tx, caller, "auth.create_superuser", target=actor_id)
                await self.queue.publish(tx, ActorCreated(actor_id, "admin", username))
                return Superuser(actor_id, username, created=True)
            found = await self.actors.by_username(tx, key)
        if found is None or not found[0].is_superuser:
            raise UsernameExists(f"the username {username} belongs to an actor who is no superuser; choose another")
        return Superuser(found[0].id, found[0].username, created=False)
