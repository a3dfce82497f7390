"""API keys of service accounts."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from annotated_types import Interval, Len

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.db import now
from app.kernel.fields import IdOf
from app.kernel.identifiers import uuid7
from app.kernel.module import Catalogue
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.modules.auth.domain.actors import ActorNotFound
from app.modules.auth.domain.api_keys import ApiKey, ApiKeyNotFound, NoServiceAccount, new_secret
from app.modules.auth.domain.permissions import InvalidPermission, Permissions, check_may_grant, checked_permissions
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.api_keys import ApiKeys
from app.modules.auth.power import Power

AccountId = Annotated[UUID, Doc("Id of the service account."), IdOf("actor", ("auth.actors",), "auth actors list")]


@dataclass(frozen=True, slots=True)
class ApiKeysWanted:
    """A service account, and the page of the list of its keys."""

    id: AccountId
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A new API key of a service account."""

    id: AccountId
    name: Annotated[str, Len(1, 64), Doc("Name of the key, such as its purpose.", "nightly import")]
    permissions: Permissions
    expires_in_days: Annotated[int, Interval(ge=1, le=3650), Doc("Days until the key expires.")] = 365


@dataclass(frozen=True, slots=True)
class CreatedApiKey:
    """A new API key with its secret, which is shown only once."""

    id: UUID
    name: str
    key: str = field(repr=False)
    permissions: list[str]
    expires_at: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKeyRef:
    """An API key of an account."""

    id: AccountId
    key_id: Annotated[UUID, Doc("Id of the key."), IdOf("key", ("auth.api_keys",))]


@dataclass(frozen=True, slots=True)
class ApiKeyAdministration:
    """List, create and revoke API keys."""

    actors: Actors
    api_keys: ApiKeys
    power: Power
    catalogue: Catalogue

    @read(
        "auth.list_api_keys",
        GET="/auth/v1/actors/{id}/keys",
        permission="auth:actors:read",
        raises=(ActorNotFound,),
        command="auth api-keys list",
    )
    async def list(self, db: Database, wanted: ApiKeysWanted) -> Page[ApiKey]:
        """List the API keys of a service account, newest first, without their secrets."""
        await self.actors.get(db, wanted.id)
        found = await self.api_keys.of_actor(db, wanted.id, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @change(
        "auth.create_api_key",
        POST="/auth/v1/actors/{id}/keys",
        permission="auth:actors:write",
        raises=(ActorNotFound, NoServiceAccount, InvalidPermission),
        status=201,
    )
    async def create(self, tx: Transaction, caller: Caller, new: NewApiKey, note: Note) -> CreatedApiKey:
        """Create an API key of a service account. The caller must hold its permissions. Not safe to repeat."""
        permissions = checked_permissions(new.permissions, self.catalogue.permissions)
        check_may_grant(caller, permissions)
        found = await self.power.over(tx, caller, new.id)
        if found.actor.type != "service_acc":
            raise NoServiceAccount
        at = await now(tx)
        key = ApiKey(uuid7(), new.name, sorted(permissions), at + timedelta(days=new.expires_in_days), None, at)
        secret = new_secret(key.id)
        await self.api_keys.add(tx, key, new.id, secret.secret_hash)
        note.details |= {"key": str(key.id), "permissions": key.permissions}
        return CreatedApiKey(key.id, key.name, secret.key, key.permissions, key.expires_at, key.created_at)

    @change(
        "auth.revoke_api_key",
        DELETE="/auth/v1/actors/{id}/keys/{key_id}",
        permission="auth:actors:write",
        raises=(ActorNotFound, ApiKeyNotFound),
        command="auth api-keys revoke",
        confirm="Revoke the key {key_id}?",
        message="revoked the key {key_id}",
    )
    async def revoke(self, tx: Transaction, caller: Caller, key: ApiKeyRef, note: Note) -> None:
        """Revoke an API key, at once in every process."""
        await self.power.over(tx, caller, key.id)
        if not await self.api_keys.remove(tx, key.id, key.key_id):
            raise ApiKeyNotFound
        note.details["key"] = str(key.key_id)
