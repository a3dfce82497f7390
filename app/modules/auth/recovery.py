"""Recovery of accounts by operators at a terminal."""

from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.audit import Audit
from app.kernel.errors import Invalid
from app.kernel.queue.enqueue import Queue
from app.modules.auth.domain.actors import Actor, ActorNotFound, UsernameExists, new_actor, username_key
from app.modules.auth.domain.limits import limit_of_name
from app.modules.auth.domain.second_factor import NoSecondFactor
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import ActorCreated, PasswordChanged
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import Sessions


@dataclass(frozen=True, slots=True)
class NamedActor:
    """An actor by username."""

    username: Annotated[str, Doc("Username of the actor.")]


@dataclass(frozen=True, slots=True)
class Credentials:
    """A username and its new password."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Superuser:
    """A superuser, and whether this call created it."""

    id: UUID
    username: str
    created: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """An actor whose password or second factor was reset, and the number of its sessions that ended."""

    username: str
    sessions_ended: int


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A username, and whether it was locked."""

    username: str
    unlocked: bool

    def __str__(self) -> str:
        return f"{self.username} can sign in again" if self.unlocked else f"{self.username} was not locked"


@dataclass(frozen=True, slots=True)
class Recovery:
    """Create superusers, reset passwords and second factors, and unlock usernames."""

    actors: Actors
    sessions: Sessions
    second_factors: SecondFactors
    limits: Limits
    passwords: Passwords
    queue: Queue
    audit: Audit

    @read("auth.find_superuser")
    async def find_superuser(self, db: Database, named: NamedActor) -> Superuser | None:
        """Return the superuser of this name, or None. Raises InvalidUsername; UsernameExists for another actor."""
        found = await self.actors.by_username(db, username_key(named.username))
        return None if found is None else self._superuser(found[0])

    @change("auth.create_superuser")
    async def create_superuser(self, db: Database, caller: Caller, new: Credentials) -> Superuser:
        """Create a superuser with a password.

        Safe to repeat, also concurrently: an existing superuser keeps its password. Raises InvalidUsername,
        WeakPassword; UsernameExists if another actor has the name.
        """
        key = username_key(new.username)
        password_hash = await self.passwords.hash(self.passwords.checked(new.password, new.username))
        actor = new_actor("admin", new.username, is_superuser=True)
        async with db.begin() as tx:  # begun after hashing, because it holds a connection
            if added := await self.actors.add(tx, actor, key, password_hash):
                await self.audit.record(tx, caller, "auth.create_superuser", target=added.id)
                await self.queue.publish(tx, ActorCreated(added.id, added.type, added.username))
                return Superuser(added.id, added.username, created=True)
            found = await self.actors.by_username(tx, key)
        if found is None:
            raise UsernameExists(f"the username {new.username} was taken meanwhile; try again")
        return self._superuser(found[0])

    def _superuser(self, found: Actor) -> Superuser:
        if not found.is_superuser:
            raise UsernameExists(
                f"the username {found.username} belongs to an actor who is no superuser; choose another"
            )
        return Superuser(found.id, found.username, created=False)

    @change("auth.reset_password")
    async def reset_password(self, db: Database, caller: Caller, new: Credentials) -> Reset:
        """Set a new password for an actor, end its sessions, and unlock its username. Safe to repeat.

        Raises ActorNotFound, WeakPassword; Invalid for a service account.
        """
        username_key(new.username)
        password_hash = await self.passwords.hash(self.passwords.checked(new.password, new.username))
        async with db.begin() as tx:  # begun after hashing, because it holds a connection
            actor = await self._named(tx, new.username)
            if actor.type == "service_acc":
                raise Invalid(f"{actor.username} is a service account: it has API keys and no password")
            await self.actors.set_password(tx, actor.id, password_hash)
            ended = await self.sessions.end_all(tx, actor.id)
            await self.limits.forget(tx, limit_of_name(new.username, actor.id))
            await self.audit.record(tx, caller, "auth.reset_password", target=actor.id, sessions_ended=ended)
            await self.queue.publish(tx, PasswordChanged(actor.id))
        return Reset(actor.username, ended)

    @change(
        "auth.reset_second_factor",
        command="auth reset-second-factor",
        message="removed the second factor of {username}; {sessions_ended} sessions ended",
        examples=("--username ann",),
    )
    async def reset_second_factor(self, tx: Transaction, lost: NamedActor, note: Note) -> Reset:
        """Remove the second factor of an actor and end its sessions. The password stays.

        Verify the identity of the person first: afterwards the password alone is enough to sign in.
        """
        actor = await self._named(tx, lost.username)
        if not await self.second_factors.remove(tx, actor.id):
            raise NoSecondFactor(f"{actor.username} has no second factor")
        ended = await self.sessions.end_all(tx, actor.id)
        note.target, note.details["sessions_ended"] = actor.id, ended
        return Reset(actor.username, ended)

    @change("auth.unlock", command="auth unlock", examples=("--username root",))
    async def unlock(self, tx: Transaction, locked: NamedActor, note: Note) -> Unlocked:
        """Unlock a username that failed sign-ins have locked. Safe to repeat."""
        actor = await self._named(tx, locked.username)
        note.target = actor.id
        return Unlocked(locked.username, await self.limits.forget(tx, limit_of_name(locked.username, actor.id)))

    async def _named(self, tx: Transaction, username: str) -> Actor:
        found = await self.actors.by_username(tx, username_key(username))
        if found is None:
            raise ActorNotFound(f"there is no actor {username}")
        return found[0]
