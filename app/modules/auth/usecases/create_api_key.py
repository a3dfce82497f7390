"""Give a service account an API key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from annotated_types import Interval, Len

from app.kernel.audit import Audit
from app.kernel.db import Database, now
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.api_keys import ApiKey, NoServiceAccount, new_secret
from app.modules.auth.domain.permissions import Permissions, check_may_grant, checked_permissions
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.api_keys import PostgresApiKeys
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.update_actor import locked_under_power


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key to be: whose, what for, what it may do at the most, and for how long."""

    id: UUID
    name: Annotated[str, Len(1, 64)]
    permissions: Permissions
    expires_in_days: Annotated[int, Interval(ge=1, le=3650)] = 365


@dataclass(frozen=True, slots=True)
class CreatedApiKey:
    """A new key, with its secret, which is shown this once."""

    id: UUID
    name: str
    key: str = field(repr=False)
    permissions: list[str]
    expires_at: datetime
    created_at: datetime


@operation("auth.create_api_key", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class CreateApiKey:
    """Make an API key for a service account, with a part of the account's permissions."""

    db: Database
    actors: PostgresActors
    roles: PostgresRoles
    api_keys: PostgresApiKeys
    audit: Audit
    catalogue: Mapping[str, str]

    async def __call__(self, caller: Caller, new: NewApiKey) -> CreatedApiKey:
        """Return the key with its secret. Not safe to repeat: each call makes one.

        Raises ActorNotFound, NoServiceAccount, InvalidPermission; Denied unless the caller holds what the key lists.
        """
        permissions = checked_permissions(new.permissions, self.catalogue)
        check_may_grant(caller, permissions)
        at = await now(self.db)
        expires_at = at + timedelta(days=new.expires_in_days)
        key = ApiKey(uuid7(), new.name, sorted(permissions), expires_at, None, at)
        secret = new_secret(key.id)
        async with self.db.begin() as tx:
            actor, _ = await locked_under_power(tx, caller, new.id, self.actors, self.roles)
            if actor.type != "service_acc":
                raise NoServiceAccount
            await self.api_keys.add(tx, key, actor.id, secret.secret_hash)
            await self.audit.record(
                tx, caller, "auth.create_api_key", target=actor.id, key=str(key.id), permissions=key.permissions
            )
        return CreatedApiKey(key.id, key.name, secret.key, key.permissions, key.expires_at, key.created_at)
