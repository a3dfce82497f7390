"""API keys of service accounts: `NAME_<id>_<secret><checksum>`, where NAME is the name of the product."""

import hashlib
import os
import re
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.errors import Conflict, NotFound
from app.kernel.product import NAME

PREFIX = f"{NAME}_"
_FORM = re.compile(rf"{PREFIX}(?P<id>[0-9a-f]{{32}})_(?P<secret>[0-9a-f]{{64}})(?P<checksum>[0-9a-f]{{8}})")


class ApiKeyNotFound(NotFound):
    code = "API_KEY_NOT_FOUND"
    title = "There is no such API key"


class NoServiceAccount(Conflict):
    code = "NO_SERVICE_ACCOUNT"
    title = "Only service accounts have API keys"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret. It grants those of its permissions that its account holds."""

    id: UUID
    name: str
    permissions: list[str]
    expires_at: datetime
    last_used_at: datetime | None
    created_at: datetime

    columns: ClassVar[Columns] = (
        Column("key", "id"),
        Column("name"),
        Column("last used", "last_used_at"),
        Column("expires at"),
        Column("permissions"),
    )


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A new key, and the stored hash of its secret."""

    key: str = field(repr=False)
    secret_hash: bytes = field(repr=False)


def new_secret(key_id: UUID) -> NewSecret:
    """Return a new secret of 256 bits for a key."""
    secret = os.urandom(32)
    stated = f"{PREFIX}{key_id.hex}_{secret.hex()}"
    return NewSecret(f"{stated}{zlib.crc32(stated.encode()):08x}", hashlib.sha256(secret).digest())


def parsed(text: str) -> tuple[UUID, bytes] | None:
    """Return the id and the hash of the secret; None for a malformed key or a wrong checksum."""
    match = _FORM.fullmatch(text)
    if match is None or f"{zlib.crc32(text[:-8].encode()):08x}" != match["checksum"]:
        return None
    return UUID(match["id"]), hashlib.sha256(bytes.fromhex(match["secret"])).digest()
