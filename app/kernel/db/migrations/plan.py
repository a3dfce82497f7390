"""Compares migration files with the records of the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from app.kernel.config import Misconfigured
from app.kernel.db.migrations.files import BadMigration, Migration
from app.kernel.errors import Conflict, NotFound
from app.kernel.product import NAME

State = Literal["applied", "pending", "edited", "unknown"]


UP = f"{NAME} migrate up"


@dataclass(frozen=True, slots=True)
class Status:
    """State of a migration. `unknown`: applied by a newer release, without a file here."""

    id: str
    state: State
    applied_at: datetime | None
    file: Migration | None

    @property
    def module(self) -> str:
        """The module whose schema it changes."""
        return self.id[15:].partition("_")[0]


def compare(files: Sequence[Migration], applied: Mapping[str, datetime], checksums: Mapping[str, str]) -> list[Status]:
    """Return every migration with its state, in order. Raises Misconfigured for a database from before the squash."""
    by_id = {migration.id: migration for migration in files}
    names = sorted(by_id.keys() | applied.keys())
    if files and names[0] not in by_id:
        empty = "name an empty database in POSTGRES_DB, or delete .local/postgres if the server is embedded"
        raise Misconfigured(
            f"this database was made before the migrations were squashed, by {names[0]}; {empty}", hint=UP
        )
    found: list[Status] = []
    for name in names:
        file = by_id.get(name)
        if name not in applied:
            found.append(Status(name, "pending", None, file))
            continue
        state: State = "unknown"
        if file is not None:
            state = "applied" if checksums.get(name, file.sha256) == file.sha256 else "edited"
        found.append(Status(name, state, applied[name].replace(tzinfo=UTC), file))
    return found


def to_apply(found: Sequence[Status]) -> list[Migration]:
    """Return pending migrations in order. Raises BadMigration for an edited or an empty file."""
    if edited := [s.id for s in found if s.state == "edited"]:
        raise BadMigration(
            f"{', '.join(edited)}: edited after it was applied; restore the file and write a new migration"
        )
    pending = [s.file for s in found if s.state == "pending" and s.file]
    for migration in pending:
        migration.require_statement()
    return pending


def to_roll_back(found: Sequence[Status], module: str) -> list[Migration]:
    """Return all applied migrations of a module, newest first, or without a module the last one of all.

    Raises NotFound for an unknown module, BadMigration for a missing file, Conflict for the kernel before its modules.
    """
    modules = sorted({s.module for s in found})
    if module and module not in modules:
        raise NotFound(
            f"there are no migrations of {module!r}; modules with migrations: {', '.join(modules)}",
            hint=f"{NAME} migrate status",
        )
    applied = [s for s in reversed(found) if s.applied_at is not None]
    if module == "kernel" and (others := sorted({s.module for s in applied} - {"kernel"})):
        raise Conflict(f"every module uses the tables of the kernel; roll back {', '.join(others)} first")
    wanted = [s for s in applied if s.module == module] if module else applied[:1]
    if gone := [s.id for s in wanted if s.file is None]:
        raise BadMigration(f"{gone[0]} has no file here; roll back with the release that applied it")
    return [s.file for s in wanted if s.file]


def newer_release(found: Sequence[Status]) -> str:
    """Return a warning about applied migrations without a file here, or an empty text."""
    unknown = [s.id for s in found if s.state == "unknown"]
    if not unknown:
        return ""
    count = f"{len(unknown)} applied migration{'s have' if len(unknown) > 1 else ' has'} no file here"
    return (
        f"{count}, the last is {unknown[-1]}: a newer release has migrated this database; this older one continues,"
        f" see {NAME} migrate status"
    )


def behind(pending: Sequence[Migration]) -> str:
    """Return a message about pending migrations."""
    count = f"{len(pending)} migration{'s are' if len(pending) > 1 else ' is'} pending"
    return f"{count}, the first is {pending[0].id}"
