"""Checks of any database: that it has rows, that foreign keys hold, that pages are whole and indexes fit them."""

import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from app.kernel.backup.counts import TABLES, Table, row
from app.kernel.backup.drill import Found

_LARGE_BYTES, _READ_BYTES = 2**30, 2**27
_STATEMENT_S, _ALL_S = 120.0, 900.0
_COUNTED = 1000
_NO_AMCHECK = "the extension amcheck is not installed here"

# those that the role may read; without those of partitions, which are parts of the constraints of whole tables
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
      AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
      AND has_schema_privilege(fn.oid, 'USAGE') AND has_table_privilege(f.oid, 'SELECT')
    ORDER BY 2, 3, 1
"""
_INDEXES: LiteralString = """
    SELECT i.indexrelid::regclass::text, i.indexrelid::bigint, pg_relation_size(i.indrelid)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisvalid AND i.indisready
    ORDER BY 3, 1
"""
_HEAPS: LiteralString = """
    SELECT CASE WHEN o.oid IS NULL THEN c.oid::regclass::text ELSE format('TOAST of %s', o.oid::regclass) END,
        c.oid::bigint, pg_relation_size(c.oid) / current_setting('block_size')::bigint, pg_table_size(c.oid)
    FROM pg_class c JOIN pg_am a ON a.oid = c.relam
    LEFT JOIN pg_class o ON c.relkind = 't' AND o.reltoastrelid = c.oid
    WHERE a.amname = 'heap' AND c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p'
    ORDER BY 4, 1
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
    tables = [Table(*row) for row in connection.execute(TABLES)]
    if not tables:
        return Found(problems=("the database has no tables",))
    exists = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {})")
    filled = sum(row(connection, exists.format(sql.Identifier(table.schema, table.name)))[0] for table in tables)
    if not filled:
        return Found(problems=(f"all {len(tables)} tables are empty",))
    return Found(f"{filled} of {len(tables)} tables have rows")


def foreign_keys(connection: psycopg.Connection[Any]) -> Found:
    """Find rows that refer to missing ones, for each valid foreign key. Of tables over 1 GiB, 128 MiB are read."""

    def orphans(key: ForeignKey) -> str:
        count = row(connection, _orphans(key))[0]
        number = f"{count:,}" if count < _COUNTED else f"{_COUNTED:,} or more"
        return f"{number} rows refer to missing rows of {key.referred_schema}.{key.referred}" if count else ""

    keys = [ForeignKey(*found) for found in connection.execute(_FOREIGN_KEYS)]
    return _each("foreign keys", {f"{key.schema}.{key.table} ({key.name})": partial(orphans, key) for key in keys})


def tables(connection: psycopg.Connection[Any]) -> Found:
    """Find damaged pages of tables, and values that are not whole in TOAST. Of tables over 1 GiB, 128 MiB are read.

    It sees the structure of pages, not each damaged byte of a value. Needs the extension amcheck, as `indexes` does.
    """
    if (verify := _of_amcheck(connection, "verify_heapam")) is None:
        return Found(skipped=_NO_AMCHECK)
    check = sql.SQL(
        "SELECT format('block %%s, row %%s: %%s', blkno, offnum, msg)"
        " FROM {}(%s::oid::regclass, on_error_stop => true, check_toast => true, startblock => %s, endblock => %s)"
    ).format(verify)

    def damage(oid: int, blocks: int, size_bytes: int) -> str:
        begin, end = None, None
        if size_bytes > _LARGE_BYTES and blocks:
            read = max(1, blocks * _READ_BYTES // size_bytes)
            begin = random.randrange(blocks - read + 1)  # noqa: S311 - not a secret
            end = begin + read - 1
        found = connection.execute(check, (oid, begin, end)).fetchone()
        return found[0] if found else ""

    found = connection.execute(_HEAPS).fetchall()
    return _each("tables", {name: _damage(partial(damage, *sizes)) for name, *sizes in found})


def indexes(connection: psycopg.Connection[Any]) -> Found:
    """Compare B-tree indexes with their tables, if the extension amcheck is installed; it is created if need be."""
    if (bt_check := _of_amcheck(connection, "bt_index_check")) is None:
        return Found(skipped=_NO_AMCHECK)
    check = sql.SQL("SELECT {}(%s::oid::regclass, %s)").format(bt_check)

    def damage(oid: int, size_bytes: int) -> str:
        connection.execute(check, (oid, size_bytes <= _LARGE_BYTES))
        return ""

    found = connection.execute(_INDEXES).fetchall()
    return _each("indexes", {name: _damage(partial(damage, *sizes)) for name, *sizes in found})


def _of_amcheck(connection: psycopg.Connection[Any], function: str) -> sql.Identifier | None:
    """Return the name of a function of amcheck, which is created if need be; None if it is not installed."""
    if connection.execute("SELECT FROM pg_available_extensions WHERE name = 'amcheck'").fetchone() is None:
        return None
    connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    [schema] = row(
        connection,
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'amcheck'",
    )
    return sql.Identifier(schema, function)


def _damage(look: Callable[[], str]) -> Callable[[], str]:
    """Return a look for which an error about damage is a problem."""

    def careful() -> str:
        try:
            return look()
        except psycopg.Error as error:
            if error.sqlstate not in _CORRUPT:
                raise
            return error.diag.message_primary or "it is damaged"

    return careful


def _each(what: str, looks: Mapping[str, Callable[[], str]]) -> Found:
    """Look at things by their names. Each look returns a problem or an empty text; what takes too long is noted."""
    problems: list[str] = []
    notes: list[str] = []
    until = time.monotonic() + _ALL_S
    for name, look in looks.items():
        reason = f"the checks have taken {_ALL_S / 60:.0f} minutes"
        if time.monotonic() < until:
            try:
                if problem := look():
                    problems.append(f"{name}: {problem}")
                continue
            except psycopg.errors.QueryCanceled:
                reason = f"it takes over {_STATEMENT_S:.0f} s"
            except psycopg.errors.InsufficientPrivilege as error:  # by a policy for rows
                reason = str(error.diag.message_primary)
        notes.append(f"{name} was not checked: {reason}")
    return Found(f"{len(looks)} {what}", tuple(problems), tuple(notes))


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
