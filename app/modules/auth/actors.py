"""Administration of actors."""

from dataclasses import dataclass, field, replace
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.audit import Audit
from app.kernel.errors import Denied, RateLimited
from app.kernel.fields import IdOf
from app.kernel.paging import Cursor, Limit, Page, after, mark
from app.kernel.product import NAME
from app.kernel.queue.enqueue import Queue
from app.modules.auth.domain.actors import (
    Actor,
    ActorAlreadyDisabled,
    ActorNotFound,
    ActorType,
    InvalidUsername,
    LastSuperuser,
    Password,
    Username,
    UsernameExists,
    WeakPassword,
    check_may_have_password,
    new_actor,
    username_key,
)
from app.modules.auth.domain.permissions import check_has_power_over
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import ActorCreated, ActorDisabled, ActorEnabled, PasswordChanged
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.power import LockedActor, Power

ActorId = Annotated[UUID, Doc("Id of the actor."), IdOf("actor", ("auth.actors",), "auth actors list")]


@dataclass(frozen=True, slots=True)
class ActorsWanted:
    """Filters and page of a list of actors."""

    type: Annotated[ActorType | None, Doc("Filter by type.")] = None
    is_active: Annotated[bool | None, Doc("Filter by active or disabled actors.")] = None
    q: Annotated[Annotated[str, Len(1, 64)] | None, Doc("Filter by a part of the username.", "ad")] = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ActorRef:
    """An actor."""

    id: ActorId


@dataclass(frozen=True, slots=True)
class NewActor:
    """A new actor. A service account has no password; it uses API keys."""

    type: Annotated[ActorType, Doc("Type of the actor.")]
    username: Username
    password: Password | None = field(default=None, repr=False)
    is_active: Annotated[bool, Doc("Whether the actor can sign in.")] = True
    is_superuser: Annotated[bool, Doc("Whether the actor holds every permission.")] = False


@dataclass(frozen=True, slots=True)
class ActorChange:
    """Changes to an actor; absent fields stay unchanged."""

    id: ActorId
    type: Annotated[ActorType | None, Doc("Type of the actor.")] = None
    username: Username | None = None
    password: Password | None = field(default=None, repr=False)
    is_active: Annotated[bool | None, Doc("Whether the actor can sign in.")] = None
    is_superuser: Annotated[bool | None, Doc("Whether the actor holds every permission.")] = None


@dataclass(frozen=True, slots=True)
class Disabled:
    """A disabled actor, and the number of its sessions that ended."""

    id: UUID
    sessions_ended: int


@dataclass(frozen=True, slots=True)
class ActorAdministration:
    """List, show, create, update, disable and enable actors."""

    actors: Actors
    sessions: Sessions
    power: Power
    passwords: Passwords
    queue: Queue
    audit: Audit

    @read(
        "auth.list_actors",
        GET="/auth/v1/actors",
        permission="auth:actors:read",
        command="auth actors list",
        empty=f"create one with {NAME} auth create-superuser",
        examples=("--q ann", "--type service_acc --csv"),
    )
    async def list(self, db: Database, wanted: ActorsWanted) -> Page[Actor]:
        """List actors, newest first.

        With a part of a username, a page searches the newest 100,000 actors that match the other filters, and
        `next_cursor` goes on.
        """
        wants = (wanted.type, wanted.is_active, wanted.q)
        found, last = await self.actors.page(db, *wants, wanted.limit, after(wanted.cursor))
        return Page(found, last and mark(last))

    @change(
        "auth.create_actor",
        POST="/auth/v1/actors",
        permission="auth:actors:write",
        raises=(InvalidUsername, RateLimited, UsernameExists, WeakPassword),
        status=201,
    )
    async def create(self, db: Database, caller: Caller, new: NewActor) -> Actor:
        """Create an actor. Only superusers can create admins and superusers. Not safe to repeat."""
        check_has_power_over(caller, (), is_superuser=new.is_superuser)
        if new.type == "admin" and not caller.is_superuser:
            raise Denied("only a superuser creates an admin")
        key = username_key(new.username)
        password_hash = None
        if new.password is not None:  # hashed before the transaction, which holds a connection
            check_may_have_password(new.type)
            password_hash = await self._hashed(caller, new.password, new.username)
        actor = new_actor(new.type, new.username, is_superuser=new.is_superuser, is_active=new.is_active)
        async with db.begin() as tx:
            added = await self.actors.add(tx, actor, key, password_hash)
            if added is None:
                raise UsernameExists(f"the username {new.username} is taken")
            await self.audit.record(tx, caller, "auth.create_actor", target=added.id, is_superuser=added.is_superuser)
            await self.queue.publish(tx, ActorCreated(added.id, added.type, added.username))
        return added

    @read(
        "auth.get_actor",
        GET="/auth/v1/actors/{id}",
        permission="auth:actors:read",
        raises=(ActorNotFound,),
        command="auth actors show",
    )
    async def get(self, db: Database, wanted: ActorRef) -> Actor:
        """Show an actor."""
        return await self.actors.get(db, wanted.id)

    @change(
        "auth.update_actor",
        PATCH="/auth/v1/actors/{id}",
        permission="auth:actors:write",
        raises=(ActorNotFound, InvalidUsername, LastSuperuser, RateLimited, UsernameExists, WeakPassword),
    )
    async def update(self, db: Database, caller: Caller, wanted: ActorChange) -> Actor:
        """Update an actor. The caller must hold all permissions of the actor. Safe to repeat.

        Setting a password, disabling the actor and revoking its superuser status end its sessions. Only superusers can
        change the type of another actor. The change removes credentials that the new type does not use.
        """
        password_hash = None
        if wanted.password is not None:  # hashed before the transaction, which holds a connection
            if wanted.id == caller.actor_id:  # else a stolen token could take over the account
                raise Denied("change your own password with PUT /auth/v1/me/password")
            name = wanted.username or (await self.actors.get(db, wanted.id)).username
            password_hash = await self._hashed(caller, wanted.password, name)
        async with db.begin() as tx:
            found = await self.power.over(tx, caller, wanted.id)
            check_has_power_over(caller, (), is_superuser=bool(wanted.is_superuser))
            before = found.actor
            if wanted.type not in (None, before.type) and (not caller.is_superuser or caller.actor_id == before.id):
                raise Denied("only a superuser can change the type of an actor, and not of their own account")
            given = {name: value for name in _CHANGEABLE if (value := getattr(wanted, name)) is not None}
            saved, ended = await self._save(tx, found, replace(before, **given), password_hash)
            changed = [name for name in _CHANGEABLE if getattr(before, name) != getattr(saved, name)]
            if password_hash is not None:
                changed.append("password")
            if "is_active" in changed and saved.is_active:
                await self.audit.record(tx, caller, "auth.enable_actor", target=saved.id)
            elif "is_active" in changed:
                await self.audit.record(tx, caller, "auth.disable_actor", target=saved.id, sessions_ended=ended)
            if changed != ["is_active"]:
                await self.audit.record(
                    tx, caller, "auth.update_actor", target=saved.id, changed=changed, sessions_ended=ended
                )
        return saved

    @change(
        "auth.disable_actor",
        POST="/auth/v1/actors/{id}/disable",
        permission="auth:actors:write",
        raises=(ActorNotFound, ActorAlreadyDisabled, LastSuperuser),
        command="auth actors disable",
        confirm="Disable the actor {id}, and end its sessions?",
        message="{id} is disabled; {sessions_ended} sessions ended",
        notable=True,
    )
    async def disable(self, tx: Transaction, caller: Caller, actor: ActorRef, note: Note) -> Disabled:
        """Disable an actor: end its sessions and refuse its password and API keys, at once in every process."""
        found = await self.power.over(tx, caller, actor.id)
        if not found.actor.is_active:
            raise ActorAlreadyDisabled
        _, ended = await self._save(tx, found, replace(found.actor, is_active=False))
        note.details["sessions_ended"] = ended
        return Disabled(actor.id, ended)

    @change(
        "auth.enable_actor",
        POST="/auth/v1/actors/{id}/enable",
        permission="auth:actors:write",
        raises=(ActorNotFound,),
        command="auth actors enable",
        message="{id} is enabled",
        notable=True,
    )
    async def enable(self, tx: Transaction, caller: Caller, actor: ActorRef, note: Note) -> Actor:
        """Enable an actor: accept its password and API keys again. Safe to repeat."""
        found = await self.power.over(tx, caller, actor.id)
        note.recorded = not found.actor.is_active
        if found.actor.is_active:
            return found.actor
        enabled, _ = await self._save(tx, found, replace(found.actor, is_active=True))
        return enabled

    async def _hashed(self, caller: Caller, password: str, username: str) -> str:
        return await self.passwords.hash(self.passwords.checked(password, username), caller.origin.limited)

    async def _save(
        self, tx: Transaction, found: LockedActor, wanted: Actor, password_hash: str | None = None
    ) -> tuple[Actor, int]:
        """Store a change and its effects; return the actor and the number of ended sessions."""
        if found.is_last_superuser and not (wanted.is_superuser and wanted.signs_in):
            raise LastSuperuser
        if password_hash is not None:
            check_may_have_password(wanted.type)
        before, saved = found.actor, await self.actors.save(tx, wanted, username_key(wanted.username))
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
        return saved, ended


_CHANGEABLE = ("type", "username", "is_active", "is_superuser")
