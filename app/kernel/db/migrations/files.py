"""Migration files: `{yyyymmddHHMMSS}_{module}_{description}.sql`, each with a `.rollback.sql`."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.kernel.errors import Invalid
from app.kernel.product import NAME

FILE_NAME = re.compile(r"(?P<timestamp>\d{14})_(?P<module>[a-z][a-z0-9]*)_(?P<description>[a-z0-9]+(?:_[a-z0-9]+)*)")
_LONGEST_NAME = 100
_ADVICE = "-- `just check` lints its locks; docs/upgrading.md says how to change the schema without stopping\n"


class BadMigration(Invalid):
    """A migration file cannot be used."""

    code = "BAD_MIGRATION"
    title = "A migration file cannot be used"
    hint = f"{NAME} migrate status"


@dataclass(frozen=True, slots=True)
class Migration:
    """A file in the folder of migrations."""

    id: str
    module: str
    path: Path
    sha256: str

    @property
    def rollback(self) -> Path:
        """The rollback file."""
        return self.path.with_suffix(".rollback.sql")

    def require_statement(self) -> None:
        """Raise BadMigration when the file has only comments."""
        lines = self.path.read_bytes().splitlines()
        if all(not line.strip() or line.lstrip().startswith(b"--") for line in lines):
            raise BadMigration(f"{self.path.name} has no statement yet; write it, or remove it")


def read(folder: Path) -> list[Migration]:
    """Return the migrations of a folder, in order. Raises BadMigration for a bad name or a missing rollback."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        if path.name.endswith(".rollback.sql"):
            continue
        match = FILE_NAME.fullmatch(path.stem)
        if match is None:
            raise BadMigration(f"{path.name}: the name must be {{yyyymmddHHMMSS}}_{{module}}_{{description}}.sql")
        text = path.read_bytes().replace(b"\r\n", b"\n")
        found.append(Migration(path.stem, match["module"], path, hashlib.sha256(text).hexdigest()))
        if not found[-1].rollback.is_file():
            raise BadMigration(f"{path.name}: {path.stem}.rollback.sql is missing beside it")
    return found


def create(folder: Path, module: str, description: str, modules: Sequence[str]) -> tuple[Path, Path]:
    """Create an empty migration and its rollback; return both paths. Raises Invalid for an invalid name."""
    words = re.sub(r"[^a-z0-9]+", "_", description.lower()).strip("_")
    if module not in modules:
        raise Invalid(f"unknown module {module!r}; one of {', '.join(modules)}")
    if not words:
        raise Invalid("the description needs a letter or a digit, such as: add_user_roles")
    if len(words) > _LONGEST_NAME:
        raise Invalid(f"the description is longer than {_LONGEST_NAME} characters; the rest belongs into the file")
    newest = max((int(migration.id[:14]) for migration in read(folder)), default=0)
    # later than the newest file, even within one second or when another clock is ahead
    moment = max(int(datetime.now(UTC).strftime("%Y%m%d%H%M%S")), newest + 1)
    up = folder / f"{moment}_{module}_{words}.sql"
    down = up.with_suffix(".rollback.sql")
    up.write_text(f"-- {module}: {' '.join(description.split())}\n{_ADVICE}", encoding="utf-8")
    down.write_text(f"-- undoes {up.name}\n", encoding="utf-8")
    return up, down
