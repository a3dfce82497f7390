"""Checks of any database: that it has rows, that foreign keys hold, that indexes fit their tables."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from app.kernel.backup.drill import Found

_LARGE_BYTES, _READ_BYTES = 2**30, 2**27
_STATEMENT_S, _ALL_S = 120.0, 900.0
_COUNTED = 1000

_TABLES: LiteralString = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""

# without those of partitions, which are parts of the constraints of whole tables
_FOREIGN_KEYS: LiteralString = """
    SELECT k.conname, n.nspname, c.relname, c.relkind, fn.nspname, f.relname, k.confmatchtype = 'f',
        coalesce(
            (SELECT sum(pg_relation_size(t.relid)) FROM pg_partition_tree(c.oid) t), pg_relation_size(c.oid)
        )::bigint,
        (SELECT array_agg(ARRAY[a.attname, b.attname, opn.nspname, op.oprname]::text[] ORDER BY i)
         FROM generate_subscripts(k.conkey, 1) i
         JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[i]
         JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = k.confkey[i]
         JOIN pg_operator op ON op.oid = k.conpfeqop[i] JOIN pg_namespace opn ON opn.oid = op.oprnamespace)
    FROM pg_constraint k
    JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class f ON f.oid = k.confrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace
    WHERE k.contype = 'f' AND k.convalidated AND k.conparentid = 0 AND c.relpersistence = 'p' AND f.relpersistence = 'p'
    ORDER BY 2, 3, 1
"""
_INDEXES: LiteralString = """
    SELECT i.indexrelid::regclass::text, i.indexrelid::bigint, pg_relation_size(i.indrelid)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisvalid AND i.indisready
    ORDER BY 3, 1
"""
_CORRUPT = ("XX001", "XX002")  # data_corrupted, index_corrupted


class Column(NamedTuple):
    """A column of a foreign key, the one that it refers to, and the operator that compares the two."""

    name: str
    referred: str
    schema: str
    operator: str


class ForeignKey(NamedTuple):
    """A foreign key. `is_full`: all of its columns are null, or none is. The size is that of the table, in bytes."""

    name: str
    schema: str
    table: str
    kind: str
    referred_schema: str
    referred: str
    is_full: bool
    size_bytes: int
    columns: list[list[str]]


@contextmanager
def session(conninfo: str) -> Generator[psycopg.Connection[Any]]:
    """Connect for checks: statements end after two minutes, and names are those of the catalogue alone."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(sql.SQL("SET statement_timeout = {}").format(int(_STATEMENT_S * 1000)))
        connection.execute("SET search_path = pg_catalog")
        connection.execute("SET work_mem = '64MB'")
        connection.execute("SET row_security = off")
        yield connection


def content(connection: psycopg.Connection[Any]) -> Found:
    """Find tables, and rows in them."""
    tables = connection.execute(_TABLES).fetchall()
    if not tables:
        return Found(problems=("the database has no tables",))
    exists = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {})")
    filled = sum(bool(_row(connection, exists.format(sql.Identifier(schema, name)))[0]) for schema, name in tables)
    if not filled:
        return Found(problems=(f"all {len(tables)} tables are empty",))
    return Found(f"{filled} of {len(tables)} tables have rows")


def foreign_keys(connection: psycopg.Connection[Any]) -> Found:
    """Find rows that refer to missing ones, for each valid foreign key. Of tables over 1 GiB, 128 MiB are read."""
    keys = [ForeignKey(*row) for row in connection.execute(_FOREIGN_KEYS)]
    problems: list[str] = []
    notes: list[str] = []
    until = time.monotonic() + _ALL_S
    for key in keys:
        what = f"{key.schema}.{key.table} ({key.name})"
        if time.monotonic() > until:
            notes.append(f"{what} was not checked: the checks have taken {_ALL_S / 60:.0f} minutes")
            continue
        try:
            orphans = _row(connection, _orphans(key))[0]
        except psycopg.errors.QueryCanceled:
            notes.append(f"{what} was not checked: it takes over {_STATEMENT_S:.0f} s")
            continue
        if orphans:
            number = f"{orphans:,}" if orphans < _COUNTED else f"{_COUNTED:,} or more"
            problems.append(f"{what}: {number} rows refer to missing rows of {key.referred_schema}.{key.referred}")
    return Found(f"{len(keys)} foreign keys", tuple(problems), tuple(notes))


def indexes(connection: psycopg.Connection[Any]) -> Found:
    """Compare B-tree indexes with their tables, if the extension amcheck is installed; it is created if need be."""
    if connection.execute("SELECT FROM pg_available_extensions WHERE name = 'amcheck'").fetchone() is None:
        return Found(skipped="the extension amcheck is not installed here")
    connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    [schema] = _row(
        connection,
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'amcheck'",
    )
    check = sql.SQL("SELECT {}(%s::oid::regclass, %s)").format(sql.Identifier(schema, "bt_index_check"))
    problems: list[str] = []
    notes: list[str] = []
    found = connection.execute(_INDEXES).fetchall()
    until = time.monotonic() + _ALL_S
    for name, oid, size_bytes in found:
        if time.monotonic() > until:
            notes.append(f"{name} was not checked: the checks have taken {_ALL_S / 60:.0f} minutes")
            continue
        try:
            connection.execute(check, (oid, size_bytes <= _LARGE_BYTES))
        except psycopg.errors.QueryCanceled:
            notes.append(f"{name} was not checked: it takes over {_STATEMENT_S:.0f} s")
        except psycopg.Error as error:
            if error.sqlstate not in _CORRUPT:
                raise
            problems.append(f"{name}: {error.diag.message_primary}")
    return Found(f"{len(found)} indexes", tuple(problems), tuple(notes))


def _orphans(key: ForeignKey) -> sql.Composed:
    """Return a query that counts the rows of a table that refer to a missing row, a thousand at most."""
    columns = [Column(*column) for column in key.columns]
    named = [sql.SQL("c.{}").format(sql.Identifier(column.name)) for column in columns]
    matches = sql.SQL(" AND ").join(
        sql.SQL("p.{} OPERATOR({}.{}) c.{}").format(
            sql.Identifier(column.referred),
            sql.Identifier(column.schema),
            sql.SQL(column.operator),  # pyright: ignore[reportArgumentType] - of the catalogue
            sql.Identifier(column.name),
        )
        for column in columns
    )
    given = sql.SQL(" OR " if key.is_full else " AND ").join(sql.SQL("{} IS NOT NULL").format(name) for name in named)
    sample = sql.SQL("")
    if key.size_bytes > _LARGE_BYTES:
        percent = sql.Literal(100 * _READ_BYTES / key.size_bytes)
        sample = sql.SQL("TABLESAMPLE SYSTEM ({})").format(percent)
    return sql.SQL(
        "SELECT count(*) FROM (SELECT FROM {only} {table} c {sample}"
        " WHERE ({given}) AND NOT EXISTS (SELECT FROM {referred} p WHERE {matches}) LIMIT {limit}) orphans"
    ).format(
        only=sql.SQL("ONLY" if key.kind == "r" else ""),
        table=sql.Identifier(key.schema, key.table),
        sample=sample,
        given=given,
        referred=sql.Identifier(key.referred_schema, key.referred),
        matches=matches,
        limit=_COUNTED,
    )


def _row(connection: psycopg.Connection[Any], statement: LiteralString | sql.Composed) -> Any:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row
