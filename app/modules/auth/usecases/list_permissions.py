"""The catalogue of permissions."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.kernel.operations import Kind, operation
from app.kernel.pages import Page


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission that a module declares."""

    name: str
    description: str


@operation("auth.list_permissions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListPermissions:
    """List what can be granted."""

    catalogue: Mapping[str, str]

    async def __call__(self) -> Page[Permission]:
        """Return the catalogue. Safe to repeat."""
        return Page([Permission(name, self.catalogue[name]) for name in sorted(self.catalogue)])
