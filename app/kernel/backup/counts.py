"""Rows of all tables as one snapshot saw them, and their comparison with a copy that was replayed to that position."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from app.kernel.backup import Count, Counts

_LARGE_BYTES, _READ_BYTES = 2**30, 2**27
_SEED = 1
_TABLE_S, _ALL_S, _COMPARE_S = 60.0, 300.0, 600.0
_LOCK_S = 1.0

# one statement: whatever the snapshot sees has been written to WAL before the position
_WHERE: LiteralString = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text"
# afterwards: with an id of its own, which is later than those before the position, age() counts back from there
_RANGES: LiteralString = """
    SELECT pg_current_xact_id()::text::bigint - %s, pg_current_xact_id()::text::bigint
        - pg_snapshot_xmin(pg_current_snapshot())::text::bigint, next_multixact_id::text FROM pg_control_checkpoint()
"""
TABLES: LiteralString = """
    SELECT format('%I.%I', n.nspname, c.relname), c.oid, n.nspname, c.relname, c.relfilenode
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    ORDER BY c.relpages, 1
"""
"""All tables as `Table`, but for those that the role may not read, and unlogged ones, which a restore empties."""
_FILE: LiteralString = "SELECT pg_relation_filenode(%s)"
_SIZE: LiteralString = "SELECT coalesce(pg_relation_size(%s), 0)"  # waits for who has locked the table
_NAME: LiteralString = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(%s) AND c.relkind = 'r'
"""
# top-level transactions only: a snapshot does not name the others
_UNSEEN: LiteralString = """
    WITH taken AS (SELECT %s::pg_snapshot AS snapshot)
    SELECT id FROM (
        SELECT pg_snapshot_xip(snapshot)::text::bigint AS id FROM taken
        UNION ALL
        SELECT generate_series(
            pg_snapshot_xmax(snapshot)::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1
        ) FROM taken
    ) ids
    WHERE id < pg_snapshot_xmax(pg_current_snapshot())::text::bigint AND pg_xact_status(id::text::xid8) = 'committed'
    LIMIT 10000
"""
_MISSING: LiteralString = """
    WITH taken AS (SELECT %s::pg_snapshot AS snapshot), here AS (SELECT pg_current_snapshot() AS snapshot)
    SELECT greatest(0, pg_snapshot_xmax(taken.snapshot)::text::bigint - pg_snapshot_xmax(here.snapshot)::text::bigint)
        + (SELECT count(*) FROM pg_snapshot_xip(here.snapshot) id WHERE pg_visible_in_snapshot(id, taken.snapshot))
    FROM taken, here
"""


class Table(NamedTuple):
    """A table: its name in SQL, oid, schema, name, and file."""

    text: str
    oid: int
    schema: str
    name: str
    file: int


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of a comparison in lines: what is wrong, and what could not be compared and why."""

    tables: int
    rows: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def take_counts(conninfo: str, since: int) -> Counts:
    """Count the rows of all permanent tables of a database in one snapshot; blocks nobody who writes rows.

    `since` is the id of the oldest transaction that ran when the backup began. Of a table over 1 GiB about 128 MiB are
    read. It takes five minutes at most. A table is left out that is dropped, rewritten or locked meanwhile, takes over
    a minute, or whose turn does not come. Raises psycopg.Error.
    """
    until = time.monotonic() + _ALL_S
    found: list[Count] = []
    with psycopg.connect(conninfo, autocommit=True) as connection, connection.transaction():
        _prepare(connection)
        snapshot, lsn = row(connection, _WHERE)
        doubts = _doubts(*row(connection, _RANGES, since))
        for table in [Table(*found) for found in connection.execute(TABLES)]:
            left_s = min(_TABLE_S, until - time.monotonic())
            if left_s > 0 and (count := _counted(connection, table, doubts, left_s)) is not None:
                found.append(count)
    return Counts(lsn, snapshot, tuple(sorted(found, key=lambda count: count.table)))


def compare(conninfo: str, counts: Counts) -> Compared:
    """Compare a physical copy, paused at the position of the counts, with them. Raises psycopg.Error.

    Everything that the snapshot saw is committed at that position. So may be a transaction that it did not see: rows
    that such a one inserted are not counted, and as many rows may be missing as transactions of that time had touched.
    If the copy could not be replayed to the position, those may be missing, too, that were written since the backup
    began. Such differences are notes, all others are problems.
    """
    problems: list[str] = []
    notes: list[str] = []
    rows = 0
    with psycopg.connect(conninfo, autocommit=True) as connection, connection.transaction():
        _prepare(connection)
        _limit(connection, _COMPARE_S)
        unseen = [int(number) for (number,) in connection.execute(_UNSEEN, (counts.snapshot,))]
        [missing] = row(connection, _MISSING, counts.snapshot)
        for count in counts.tables:
            try:
                with connection.transaction(force_rollback=True):
                    more, unclear = _difference(connection, count, counts.snapshot, unseen)
            except psycopg.errors.UndefinedTable:
                is_explained = missing and count.rows <= count.recent
                (notes if is_explained else problems).append(f"{count.table} does not exist")
                continue
            except psycopg.Error as error:
                problems.append(f"{count.table} cannot be read: {' '.join(str(error).split())}")
                continue
            rows += count.rows
            if more == 0:
                continue
            line = f"{count.table} has {count.rows + more:,} rows in place of {count.rows:,}"
            if missing and more >= -count.touched - count.recent:
                notes.append(f"{line}: {missing:,} transactions that were counted are not in the stored WAL")
            elif unseen and -count.touched <= more <= unclear:
                notes.append(f"{line}: the snapshot did not see {len(unseen):,} transactions of that moment")
            else:
                problems.append(line)
    return Compared(len(counts.tables), rows, tuple(problems), tuple(notes))


def _prepare(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    for name in ("row_security", "enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"):
        connection.execute(sql.SQL("SET LOCAL {} = off").format(sql.Identifier(name)))
    connection.execute("SET LOCAL search_path = pg_catalog")  # without operators of others
    connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(int(_LOCK_S * 1000)))
    _limit(connection, _TABLE_S)


def _limit(connection: psycopg.Connection[Any], seconds: float) -> None:
    connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(max(1, int(seconds * 1000))))


def _doubts(recent: int, running: int, multixact: str) -> sql.Composed:
    """Return the columns of a count that say how many rows a copy may not have, by the ages of their transactions.

    The first are those written since the backup began; the others those that a transaction which the snapshot does not
    see has deleted, updated or locked: alone, or as one of a multixact.
    """
    return sql.SQL(
        ", count(*) FILTER (WHERE age(xmin) BETWEEN 0 AND {recent}), count(*) FILTER (WHERE"
        " age(xmax) BETWEEN 0 AND {running} OR mxid_age(xmax) BETWEEN 0 AND mxid_age({multixact}::xid))"
    ).format(recent=recent, running=running, multixact=multixact)


def _counted(connection: psycopg.Connection[Any], table: Table, doubts: sql.Composed, seconds: float) -> Count | None:
    """Count a table; None if it was dropped or rewritten after the snapshot, or cannot be counted in time."""
    percent = 100.0
    try:
        with connection.transaction(force_rollback=True):  # releases the lock of the table
            _limit(connection, seconds)
            [size_bytes] = row(connection, _SIZE, table.oid)
            if size_bytes > _LARGE_BYTES:
                percent = float(f"{100 * _READ_BYTES / size_bytes:.3g}")
            rows, recent, touched = _rows(connection, table.schema, table.name, percent, doubts)
            if row(connection, _FILE, table.oid)[0] != table.file:
                return None
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName):
        return None
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        return None
    return Count(table.text, rows, percent, recent, touched)


def _difference(
    connection: psycopg.Connection[Any], count: Count, snapshot: str, unseen: Sequence[int]
) -> tuple[int, int]:
    """Return how many rows a table has more than were counted, without those of unseen transactions.

    Then how many may be of their subtransactions, which a snapshot does not name.
    """
    found = connection.execute(_NAME, (count.table,)).fetchone()
    if found is None:
        raise psycopg.errors.UndefinedTable("it does not exist")
    schema, name = found
    if not unseen:
        return _rows(connection, schema, name, count.percent)[0] - count.rows, 0
    written = sql.SQL(
        ", count(*) FILTER (WHERE xmin = ANY ({unseen}::xid[])),"
        " count(*) FILTER (WHERE age(xmin) BETWEEN 0 AND age({oldest}::xid))"
    ).format(unseen=[str(number % 2**32) for number in unseen], oldest=str(int(snapshot.partition(":")[0]) % 2**32))
    rows, inserted, recent = _rows(connection, schema, name, count.percent, written)
    return rows - inserted - count.rows, recent - inserted


def _rows(
    connection: psycopg.Connection[Any],
    schema: str,
    name: str,
    percent: float,
    columns: sql.Composed | None = None,
) -> tuple[int, ...]:
    """Count the rows of a table; return that, and further columns."""
    statement = sql.SQL("SELECT count(*){} FROM ONLY {}").format(columns or sql.SQL(""), sql.Identifier(schema, name))
    if percent < 100:  # the blocks depend on their numbers alone, so a physical copy has the same
        sample = sql.SQL(" TABLESAMPLE SYSTEM ({}) REPEATABLE ({})").format(sql.Literal(percent), sql.Literal(_SEED))
        statement += sample
    return row(connection, statement)


def row(connection: psycopg.Connection[Any], statement: LiteralString | sql.Composed, *parameters: object) -> Any:
    """Return the only row of a statement that returns one."""
    found = connection.execute(statement, parameters or None).fetchone()
    assert found is not None
    return found
