"""The archive of an export: a ZIP file with the rows of each table as PostgreSQL copies them, and a manifest."""

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql

from app.kernel.db.export import Personal
from app.kernel.db.export.tables import SECRET, Table, migrations_of, selected, sequences_of, tables_of, undeclared
from app.kernel.decoding import Decoder
from app.kernel.errors import Conflict, Invalid, NotFound, Unavailable
from app.kernel.product import NAME, VERSION
from app.kernel.queue import InvalidDeclaration

_MANIFEST = "manifest.json"
_MANIFEST_BYTES, _PIECE_BYTES = 8 * 2**20, 2**20
Told = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Copied:
    """A table of an archive: its columns, rows, and the size and SHA-256 of its content."""

    name: str
    columns: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence: its last value, and whether that was taken."""

    name: str
    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in an archive. Tables are in the order in which foreign keys let them be imported."""

    format: Literal[1]
    module: str
    app_version: str
    exported_at: datetime
    is_scrubbed: bool
    migrations: tuple[str, ...]
    tables: tuple[Copied, ...]
    sequences: tuple[Sequence, ...]

    @property
    def rows(self) -> int:
        """The rows of all tables."""
        return sum(table.rows for table in self.tables)


_DECODER: Decoder[Manifest] = Decoder(Manifest)


def export(
    conninfo: str, module: str, output: Path, personal: Personal | None, told: Told = lambda _: None
) -> Manifest:
    """Write the rows of a module, as one snapshot sees them, to a new file; scrubbed by rules, if they are given.

    The file appears when it is whole. `told` is given the bytes that were copied. Raises NotFound, Conflict if the file
    exists, InvalidDeclaration if the rules do not cover the tables, Unavailable, psycopg.Error, and what `told` raises.
    """
    if output.exists():
        raise Conflict(f"{output} exists: choose another name")
    part = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                made = _exported(conninfo, module, archive, personal, told)
                archive.writestr(_MANIFEST, json.dumps(asdict(made), default=_time, indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.link(part, output)  # fails if the file exists by now
    except FileExistsError:
        raise Conflict(f"{output} exists: choose another name") from None
    except FileNotFoundError:
        raise NotFound(f"there is no folder {output.parent}") from None
    except OSError as error:
        raise Unavailable(f"{output} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return made


def _exported(conninfo: str, module: str, archive: zipfile.ZipFile, personal: Personal | None, told: Told) -> Manifest:
    with psycopg.connect(conninfo, autocommit=True) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute("SELECT set_config('statement_timeout', '0', true)")
        connection.execute("SELECT set_config(%s, %s, true)", (SECRET, secrets.token_hex(32)))
        tables = tables_of(connection, module)
        if personal is not None and (problems := undeclared(tables, personal)):
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise InvalidDeclaration(f"`personal` of the module {module} does not fit its tables: {problems[0]}{more}")
        try:
            copied = [_copied(connection, table, archive, personal, told) for table in tables]
        except (psycopg.DataError, psycopg.errors.UndefinedFunction) as error:
            if personal is None:
                raise
            raise InvalidDeclaration(f"`personal` of the module {module} does not fit: {_line(error)}") from error
        sequences = [Sequence(*found) for found in sequences_of(connection, module)]
        return Manifest(
            format=1,
            module=module,
            app_version=VERSION,
            exported_at=datetime.now(UTC),
            is_scrubbed=personal is not None,
            migrations=tuple(migrations_of(connection, module)),
            tables=tuple(copied),
            sequences=tuple(sequences),
        )


def _copied(
    connection: psycopg.Connection[Any], table: Table, archive: zipfile.ZipFile, personal: Personal | None, told: Told
) -> Copied:
    digest, size = hashlib.sha256(), 0
    statement = sql.SQL("COPY ({}) TO STDOUT").format(selected(table, personal))
    with connection.cursor() as cursor:
        with archive.open(_member(table.name), "w", force_zip64=True) as member, cursor.copy(statement) as copy:
            for piece in copy:
                content = bytes(piece)
                digest.update(content)
                size += len(content)
                member.write(content)
                told(len(content))
        return Copied(table.name, table.names, cursor.rowcount, size, digest.hexdigest())


def load(conninfo: str, path: Path, modules: Iterable[str], told: Told = lambda _: None) -> Manifest:
    """Import an archive into the empty tables of its module, in one transaction, with the values of its sequences.

    Raises NotFound, Invalid for what is no whole archive, Conflict unless the database has the same migrations of the
    module and none of its rows, psycopg.Error, and what `told` raises; then nothing has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            if manifest.module not in modules:
                raise NotFound(f"{path} is of the module {manifest.module}, which does not exist here")
            with psycopg.connect(conninfo, autocommit=True) as connection, connection.transaction():
                connection.execute("SELECT set_config('statement_timeout', '0', true)")
                connection.execute("SELECT set_config('lock_timeout', '10s', true)")
                connection.execute("SET CONSTRAINTS ALL DEFERRED")
                _load(connection, manifest, archive, path, told)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (psycopg.IntegrityError, psycopg.errors.StringDataRightTruncation) as error:
        raise Conflict(f"{path} does not fit the constraints of the tables here: {_line(error)}") from error
    except psycopg.DataError as error:
        raise _damaged(path, _line(error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, "it is no whole ZIP file") from error
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
    return manifest


def _load(
    connection: psycopg.Connection[Any], manifest: Manifest, archive: zipfile.ZipFile, path: Path, told: Told
) -> None:
    module, here = manifest.module, migrations_of(connection, manifest.module)
    if (there := list(manifest.migrations)) != here:
        differing = sorted(set(there) ^ set(here))
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        message = f"{path} was exported with other migrations of {module}: {differing[0]}{more}"
        raise Conflict(message, hint=f"{NAME} migrate status")
    tables = {table.name: table for table in tables_of(connection, module)}
    described = sorted((copied.name, sorted(copied.columns)) for copied in manifest.tables)
    if described != sorted((table.name, sorted(table.names)) for table in tables.values()):
        raise Conflict(f"{path} has other tables or columns than the module {module} here")
    for table in tables.values():
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table.identifier))
        if connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(table.identifier)).fetchone():
            raise Conflict(f"{module}.{table.name} has rows already; an import needs empty tables of the module")
    for copied in manifest.tables:
        columns = sql.SQL(", ").join(map(sql.Identifier, copied.columns))
        into = sql.SQL("COPY {} ({}) FROM STDIN").format(tables[copied.name].identifier, columns)
        with connection.cursor() as cursor:
            with cursor.copy(into) as copy:
                for piece in _content(archive, copied, path):
                    copy.write(piece)
                    told(len(piece))
            if cursor.rowcount != copied.rows:
                raise _damaged(path, f"{copied.name} has {cursor.rowcount} rows, not {copied.rows}")
    known = {name for name, _, _ in sequences_of(connection, module)}
    for sequence in manifest.sequences:
        if sequence.name not in known:
            raise Conflict(f"{path} has the sequence {sequence.name}, which the module {module} does not have here")
        name = sql.Identifier(module, sequence.name).as_string(connection)
        connection.execute("SELECT setval(%s, %s::bigint, %s)", (name, sequence.last_value, sequence.is_called))


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    try:
        if archive.getinfo(_MANIFEST).file_size > _MANIFEST_BYTES:
            raise _damaged(path, "its manifest is too long")
        return _DECODER.json(json.loads(archive.read(_MANIFEST)))
    except KeyError:
        raise _damaged(path, "it has no manifest") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its manifest is no JSON") from error
    except Invalid as error:
        if error.fields:
            raise _damaged(path, "its manifest has another form") from error
        raise


def _content(archive: zipfile.ZipFile, copied: Copied, path: Path) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    try:
        member = archive.open(_member(copied.name))
    except KeyError:
        raise _damaged(path, f"it has no rows of {copied.name}") from None
    with member:
        while piece := member.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            if size > copied.bytes:
                break
            yield piece
    if (size, digest.hexdigest()) != (copied.bytes, copied.sha256):
        raise _damaged(path, f"the rows of {copied.name} are not those that were exported")


def _member(table: str) -> str:
    return f"tables/{table}.copy"


def _damaged(path: Path, why: str) -> Invalid:
    return Invalid(f"{path} is damaged, or no export: {why}")


def _line(error: psycopg.Error) -> str:
    return str(error).splitlines()[0]


def _time(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
