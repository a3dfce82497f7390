"""Signing keys, without their secret parts."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from app.kernel.actions.columns import Column, Columns


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A signing key, without its secret part."""

    kid: str
    algorithm: str
    created_at: datetime
    signs: bool

    columns: ClassVar[Columns] = (
        Column("key", "kid"),
        Column("algorithm"),
        Column("created at"),
        Column("signs", lambda key: "yes" if key.signs else ""),
    )
