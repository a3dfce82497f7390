"""The archive of an export: a ZIP file with the rows of each table in the text format of COPY, and a manifest."""

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql

from app.kernel.audit import entry
from app.kernel.callers import operator
from app.kernel.db.export import Personal
from app.kernel.db.export.tables import (
    NEW_KEY,
    Sequence,
    Table,
    migrations_of,
    selected,
    sequences_of,
    tables_of,
    undeclared,
    unlocked_of,
)
from app.kernel.decoding import Decoder
from app.kernel.errors import Conflict, Denied, Invalid, NotFound, Unavailable
from app.kernel.product import NAME, VERSION
from app.kernel.queue import InvalidDeclaration
from app.kernel.text import plural

_MANIFEST = "manifest.json"
_MANIFEST_BYTES, _PIECE_BYTES = 8 * 2**20, 2**20
# what databases, roles and clients may set otherwise, and what changes how COPY writes or reads values
_SESSION: tuple[LiteralString, ...] = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL client_encoding = 'UTF8'",
    "SET LOCAL datestyle = 'ISO'",
    "SET LOCAL intervalstyle = 'postgres'",
    "SET LOCAL extra_float_digits = 1",
    "SET LOCAL lc_monetary = 'C'",
    "SET LOCAL array_nulls = on",
    "SET LOCAL xmloption = content",
)
# by a constraint, a length or a trigger
_REFUSED = (psycopg.IntegrityError, psycopg.errors.StringDataRightTruncation, psycopg.errors.RaiseException)
Advance = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Copied:
    """A table of an archive: its columns with their types, rows, and the size and SHA-256 of its content."""

    name: str
    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of an archive. Tables are in the order in which foreign keys let them be imported."""

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
        """The number of rows of all tables."""
        return sum(table.rows for table in self.tables)


_DECODER: Decoder[Manifest] = Decoder(Manifest)


class _Damaged(Exception):
    """A file is not an archive as export wrote it; the message says why."""


def export(
    conninfo: str, module: str, output: Path, personal: Personal | None, advance: Advance = lambda _: None
) -> Manifest:
    """Write the rows of a module, as one snapshot sees them, to a new file; scrubbed by rules, if they are given.

    The file appears when it is complete. The audit trail records the export before the first row is read. `advance`
    takes the bytes copied since its last call. Raises NotFound, Conflict if the file exists or a table changed while
    it began, InvalidDeclaration if the rules do not cover the tables, Unavailable, psycopg.Error, and what `advance`
    raises.
    """
    part = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    try:
        if os.path.lexists(output):
            raise FileExistsError
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                made = _exported(conninfo, module, archive, personal, advance)
                archive.writestr(_MANIFEST, json.dumps(asdict(made), default=datetime.isoformat, indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.link(part, output)  # fails if the file exists by now
    except FileExistsError:
        raise Conflict(f"{output} exists: choose another name") from None
    except FileNotFoundError:
        raise NotFound(f"there is no folder {output.parent}") from None
    except OSError as error:
        raise Unavailable(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return made


def _exported(
    conninfo: str, module: str, archive: zipfile.ZipFile, personal: Personal | None, advance: Advance
) -> Manifest:
    with psycopg.connect(conninfo) as connection:
        listed = tables_of(connection, module)
        connection.commit()
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        _set(connection)
        connection.execute("SET LOCAL row_security = off")  # refuses what a policy would leave out
        _lock(connection, listed)  # before the first query takes the snapshot: it shows a rewritten table as empty
        connection.execute(NEW_KEY)
        tables = tables_of(connection, module)
        if unlocked := unlocked_of(connection, module):
            raise Conflict(f"the table {unlocked[0]} changed meanwhile, or is being detached: try again")
        if personal is not None and (problems := undeclared(tables, personal)):
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise InvalidDeclaration(f"`personal` of the module {module} does not fit its tables: {problems[0]}{more}")
        with psycopg.connect(conninfo) as another:
            another.execute(*entry(operator(), "platform.export_module", target=module, scrubbed=personal is not None))
        try:
            copied = [_copied(connection, archive, table, selected(table, personal), advance) for table in tables]
        except (psycopg.DataError, psycopg.errors.UndefinedFunction) as error:
            if personal is None:
                raise
            raise InvalidDeclaration(f"`personal` of the module {module} does not fit: {_line(error)}") from error
        return Manifest(
            format=1,
            module=module,
            app_version=VERSION,
            exported_at=datetime.now(UTC),
            is_scrubbed=personal is not None,
            migrations=tuple(migrations_of(connection, module)),
            tables=tuple(copied),
            sequences=tuple(sequences_of(connection, module)),
        )


def _set(connection: psycopg.Connection[Any]) -> None:
    for statement in _SESSION:
        connection.execute(statement)


def _lock(connection: psycopg.Connection[Any], tables: Iterable[Table]) -> None:
    for table in tables:
        try:
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(table.identifier))
        except psycopg.errors.UndefinedTable as error:
            raise Conflict(f"the table {table.schema}.{table.name} changed meanwhile: try again") from error


def _copied(
    connection: psycopg.Connection[Any], archive: zipfile.ZipFile, table: Table, rows: sql.Composed, advance: Advance
) -> Copied:
    digest, size = hashlib.sha256(), 0
    with connection.cursor() as cursor:
        with (
            archive.open(_member(table.name), "w", force_zip64=True) as member,
            cursor.copy(sql.SQL("COPY ({}) TO STDOUT").format(rows)) as copy,
        ):
            for piece in copy:
                digest.update(piece)
                size += len(piece)
                member.write(piece)
                advance(len(piece))
        return Copied(table.name, table.names, table.types, cursor.rowcount, size, digest.hexdigest())


def load(
    conninfo: str,
    path: Path,
    modules: Iterable[str],
    advance: Advance = lambda _: None,
    *,
    allows_scrubbed: bool = True,
) -> Manifest:
    """Import an archive into the empty tables of its module, with the values of its sequences.

    One transaction, with its audit record. Raises NotFound, Invalid for a file that is not a complete archive, Conflict
    unless the database has the same migrations of the module and none of its rows, Denied for scrubbed data unless
    the environment `allows_scrubbed`, psycopg.Error, and what `advance` raises; then nothing has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive)
            if manifest.module not in modules:
                raise NotFound(f"{path} is of the module {manifest.module!r}, which does not exist here")
            if manifest.is_scrubbed and not allows_scrubbed:
                raise Denied(f"{path} is scrubbed, for development: everybody knows the passwords of its accounts")
            with psycopg.connect(conninfo) as connection:
                _set(connection)
                connection.execute("SET CONSTRAINTS ALL DEFERRED")
                _load(connection, manifest, archive, advance)
                about = entry(
                    operator(),
                    "platform.import_module",
                    target=manifest.module,
                    scrubbed=manifest.is_scrubbed,
                    rows=manifest.rows,
                )
                connection.execute(*about)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except _REFUSED as error:
        raise Conflict(f"{path} does not fit the constraints of the tables here: {_line(error)}") from error
    except (_Damaged, psycopg.DataError) as error:
        raise Invalid(f"{path} is damaged, or not an export: {_line(error)}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} is damaged, or not an export: it is not a complete ZIP file") from error
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror or error}") from error
    return manifest


def _load(connection: psycopg.Connection[Any], manifest: Manifest, archive: zipfile.ZipFile, advance: Advance) -> None:
    module, here = manifest.module, migrations_of(connection, manifest.module)
    if differing := sorted(set(manifest.migrations) ^ set(here)):
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        message = f"the export was made with other migrations of {module}: {differing[0]!r}{more}"
        raise Conflict(message, hint=f"{NAME} migrate status")
    tables = {table.name: table for table in tables_of(connection, module)}
    _fit(manifest, tables, {sequence.name for sequence in sequences_of(connection, module)})
    for table in tables.values():
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table.identifier))
        if connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(table.identifier)).rowcount:
            raise Conflict(f"{module}.{table.name} has rows already; an import needs empty tables of the module")
    for copied in manifest.tables:
        names = sql.SQL(", ").join(map(sql.Identifier, copied.columns))
        columns = sql.SQL("({})").format(names) if copied.columns else sql.SQL("")
        into = sql.SQL("COPY {} {} FROM STDIN").format(tables[copied.name].identifier, columns)
        with connection.cursor() as cursor, cursor.copy(into) as copy:
            for piece in _content(archive, copied):
                copy.write(piece)
                advance(len(piece))
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")  # triggers that are deferred write now
    for copied in manifest.tables:
        [(rows,)] = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(tables[copied.name].source))
        if rows != copied.rows:
            problem = f"{module}.{copied.name} has {plural(rows, 'row')} after the import, not {copied.rows}"
            raise Conflict(f"{problem}: a trigger has added or removed some")
    for sequence in manifest.sequences:
        name = sql.Identifier(module, sequence.name).as_string(connection)
        connection.execute("SELECT setval(%s, %s::bigint, %s)", (name, sequence.last_value, sequence.is_called))


def _fit(manifest: Manifest, tables: Mapping[str, Table], sequences: set[str]) -> None:
    module = manifest.module
    described = sorted((each.name, sorted(each.columns)) for each in manifest.tables)
    found = sorted((table.name, sorted(table.names)) for table in tables.values())
    if described != found or {sequence.name for sequence in manifest.sequences} != sequences:
        raise Conflict(f"the export has other tables, columns or sequences than the module {module} here")
    for copied in manifest.tables:
        here = {column.name: column.declared for column in tables[copied.name].columns}
        if len(copied.types) != len(here):
            raise _Damaged(f"its manifest has another form: types of {copied.name}")
        for name, declared in zip(copied.columns, copied.types, strict=True):
            if declared != here[name]:
                raise Conflict(f"{module}.{copied.name}.{name} is {here[name]} here, and {declared} in the export")


def _manifest(archive: zipfile.ZipFile) -> Manifest:
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in archive.infolist()):
        raise _Damaged("it is compressed in another way")
    try:
        with archive.open(_MANIFEST) as member:  # not by the size that the archive names
            text = member.read(_MANIFEST_BYTES + 1)
        if len(text) > _MANIFEST_BYTES:
            raise _Damaged("its manifest is too long")
        return _DECODER.json(json.loads(text))
    except KeyError:
        raise _Damaged("it has no manifest") from None
    except (ValueError, RecursionError) as error:
        raise _Damaged("its manifest is not JSON") from error
    except Invalid as error:
        raise _Damaged("its manifest has another form") from error


def _content(archive: zipfile.ZipFile, copied: Copied) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    try:
        member = archive.open(_member(copied.name))
    except KeyError:
        raise _Damaged(f"it has no rows of {copied.name}") from None
    with member:
        while size <= copied.bytes and (piece := member.read(_PIECE_BYTES)):
            digest.update(piece)
            size += len(piece)
            yield piece
    if (size, digest.hexdigest()) != (copied.bytes, copied.sha256):
        raise _Damaged(f"the rows of {copied.name} are not those that were exported")


def _member(table: str) -> str:
    return f"tables/{table}.copy"


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
