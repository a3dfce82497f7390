"""Signing keys, without their secret parts."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A signing key, without its secret part."""

    kid: str
    algorithm: str
    created_at: datetime
    signs: bool
