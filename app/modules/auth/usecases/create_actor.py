"""Create an actor."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.errors import Denied, Invalid
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import Actor, ActorType, Password, Username, UsernameExists, username_key
from app.modules.auth.domain.permissions import check_has_power_over
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import ActorCreated
from app.modules.auth.postgres.actors import PostgresActors


@dataclass(frozen=True, slots=True)
class NewActor:
    """An actor to be. A service account has no password; it uses API keys."""

    type: ActorType
    username: Username
    password: Password | None = field(default=None, repr=False)
    is_active: bool = True
    is_superuser: bool = False


@operation("auth.create_actor", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class CreateActor:
    """Create an actor."""

    db: Database
    actors: PostgresActors
    passwords: Passwords
    audit: Audit
    queue: Queue

    async def __call__(self, caller: Caller, new: NewActor) -> Actor:
        """Return the actor. Not safe to repeat.

        Raises Denied, InvalidUsername, RateLimited, UsernameExists, WeakPassword.
        """
        check_has_power_over(caller, (), is_superuser=new.is_superuser)
        if new.type == "admin" and not caller.is_superuser:
            raise Denied("only a superuser creates an admin")
        key = username_key(new.username)
        if new.type == "service_acc" and new.password is not None:
            raise Invalid("a service account has no password", (("password", "a service account has none"),))
        password_hash = None
        if new.password is not None:
            password_hash = await self.passwords.hash(
                self.passwords.checked(new.password, new.username), caller.origin.limited
            )
        now = datetime.now(UTC)
        actor = Actor(uuid7(), new.type, new.username, new.is_superuser, new.is_active, None, now, now)
        async with self.db.begin() as tx:
            added = await self.actors.add(tx, actor, key, password_hash)
            if added is None:
                raise UsernameExists(f"the username {new.username} is taken")
            await self.audit.record(tx, caller, "auth.create_actor", target=added.id, is_superuser=added.is_superuser)
            await self.queue.publish(tx, ActorCreated(added.id, added.type, added.username))
        return added
