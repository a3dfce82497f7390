"""The catalogue of permissions."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.kernel.operations import Kind, operation


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission that a module declares."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All permissions, by name; they fit one page."""

    items: list[Permission]
    next_cursor: str | None = None


@operation("auth.list_permissions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListPermissions:
    """List what can be granted."""

    catalogue: Mapping[str, str]

    async def __call__(self) -> Catalogue:
        """Return the catalogue. Safe to repeat."""
        return Catalogue([Permission(name, self.catalogue[name]) for name in sorted(self.catalogue)])
