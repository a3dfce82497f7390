"""Change an actor."""

from dataclasses import dataclass, field, replace
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database, Transaction
from app.kernel.errors import Denied, Invalid
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import (
    Actor,
    ActorNotFound,
    ActorType,
    LastSuperuser,
    Password,
    Username,
    UsernameExists,
    username_key,
)
from app.modules.auth.domain.permissions import check_has_power_over
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import ActorDisabled, ActorEnabled, PasswordChanged
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.postgres.sessions import PostgresSessions


@dataclass(frozen=True, slots=True)
class ActorChange:
    """What to change; what is absent stays."""

    id: UUID
    type: ActorType | None = None
    username: Username | None = None
    password: Password | None = field(default=None, repr=False)
    is_active: bool | None = None
    is_superuser: bool | None = None


@operation("auth.update_actor", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class UpdateActor:
    """Change an actor over whom the caller has power.

    Another password, being disabled or losing the rank of superuser ends the actor's sessions. Only a superuser changes
    the type of another actor; what the new type does not sign in with is removed.
    """

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions
    roles: PostgresRoles
    passwords: Passwords
    audit: Audit
    queue: Queue

    async def __call__(self, caller: Caller, change: ActorChange) -> Actor:
        """Return the actor as it is now. Safe to repeat.

        Raises ActorNotFound, Denied, InvalidUsername, LastSuperuser, RateLimited, UsernameExists, WeakPassword.
        """
        password_hash = None
        if change.password is not None:
            if change.id == caller.actor_id:  # a stolen token must not be enough to take an account over
                raise Denied("change your own password with PUT /auth/v1/me/password")
            present = await self.actors.get(self.db, change.id)
            name = change.username or (present.username if present else "")
            password_hash = await self.passwords.hash(
                self.passwords.checked(change.password, name), caller.origin.limited
            )
        async with self.db.begin() as tx:
            actor, is_last = await locked_under_power(tx, caller, change.id, self.actors, self.roles)
            check_has_power_over(caller, (), is_superuser=bool(change.is_superuser))
            if change.type not in (None, actor.type) and (not caller.is_superuser or caller.actor_id == actor.id):
                raise Denied("only a superuser changes the type of an actor, and nobody their own")
            wanted = replace(
                actor,
                type=change.type or actor.type,
                username=change.username or actor.username,
                is_active=actor.is_active if change.is_active is None else change.is_active,
                is_superuser=actor.is_superuser if change.is_superuser is None else change.is_superuser,
            )
            if is_last and not (wanted.is_superuser and wanted.signs_in):
                raise LastSuperuser
            return await self._changed(tx, caller, actor, wanted, password_hash)

    async def _changed(
        self, tx: Transaction, caller: Caller, before: Actor, wanted: Actor, password_hash: str | None
    ) -> Actor:
        if wanted.type == "service_acc" and password_hash is not None:
            raise Invalid("a service account has no password", (("password", "a service account has none"),))
        saved = await self.actors.save(tx, wanted, username_key(wanted.username))
        if saved is None:
            raise UsernameExists(f"the username {wanted.username} is taken")
        becomes_another = (before.type == "service_acc") != (saved.type == "service_acc")
        if becomes_another:
            await self.actors.forget_ways_in(tx, saved.id)
        if password_hash is not None:
            await self.actors.set_password(tx, saved.id, password_hash)
            await self.queue.publish(tx, PasswordChanged(saved.id))
        ended = 0
        loses_rank = before.is_superuser and not saved.is_superuser
        if password_hash is not None or becomes_another or loses_rank or not saved.is_active:
            ended = await self.sessions.end_all(tx, saved.id)
        if before.is_active != saved.is_active:
            await self.queue.publish(tx, ActorEnabled(saved.id) if saved.is_active else ActorDisabled(saved.id))
        await self.audit.record(
            tx,
            caller,
            "auth.update_actor",
            target=saved.id,
            changed=_changed_fields(before, saved, password=password_hash is not None),
            sessions_ended=ended,
        )
        return saved


def _changed_fields(before: Actor, after: Actor, *, password: bool) -> list[str]:
    names = ("type", "username", "is_active", "is_superuser")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return [*changed, "password"] if password else changed


async def locked_under_power(
    tx: Transaction, caller: Caller, actor_id: UUID, actors: PostgresActors, roles: PostgresRoles
) -> tuple[Actor, bool]:
    """Return the actor, locked, and whether it is the last active superuser.

    Raises ActorNotFound; Denied when the actor may do more than the caller.
    """
    superusers = await actors.superusers(tx)  # before the actor: everybody locks in this order
    found = await actors.lock(tx, actor_id)
    if found is None:
        raise ActorNotFound
    actor = found[0]
    of_roles = await roles.permissions(tx, [role.id for role in await roles.of_actor(tx, actor.id)])
    held = of_roles | await roles.direct(tx, actor.id)
    check_has_power_over(caller, held, is_superuser=actor.is_superuser)
    return actor, superusers == frozenset({actor.id})
