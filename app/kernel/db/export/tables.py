"""The tables of a module: columns, order by foreign keys, sequences; and the query of each in a scrubbed export."""

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from app.kernel.db.export import Constant, Personal, Pseudonym, Rule
from app.kernel.errors import Conflict, NotFound
from app.kernel.queue import InvalidDeclaration

# the server makes the key of pseudonyms, and forgets it with the transaction
NEW_KEY: LiteralString = "SELECT FROM set_config('export.key', concat(gen_random_uuid(), gen_random_uuid()), true)"
_DIGEST: LiteralString = """
    {} || left(encode(sha256(convert_to(current_setting('export.key') || {}, 'UTF8')), 'hex'), 24)
"""
_EMPTY_TEXTS = ("text", "character varying", "bytea", "hstore")
_EMPTY_OBJECTS = ("json", "jsonb")
_TEXTS = ("text", "character varying")
_NO_RULES: Mapping[str, Rule] = {}
# a type that is none of these may hold anything about a person
_COLUMNS: LiteralString = """
    SELECT c.relname, c.relkind = 'p', a.attname, format_type(a.atttypid, -1), format_type(a.atttypid, a.atttypmod),
        a.attnotnull, (
            SELECT NOT (t.typcategory IN ('B', 'N', 'D', 'T', 'E') OR t.typname IN ('uuid', 'pg_lsn', 'xid8'))
            FROM pg_type t WHERE t.oid = coalesce(CASE b.typcategory WHEN 'A' THEN nullif(b.typelem, 0) END, b.oid)
        )
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a
        ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    LEFT JOIN pg_type b
        ON b.oid = coalesce(nullif((SELECT typbasetype FROM pg_type WHERE oid = a.atttypid), 0), a.atttypid)
    WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    ORDER BY c.relname, a.attnum
"""
_REFERENCES: LiteralString = """
    SELECT c.relname, f.relname, array_agg(a.attname::text), k.condeferrable FROM pg_constraint k
    JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class f ON f.oid = k.confrelid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (k.conkey)
    WHERE k.contype = 'f' AND n.nspname = %s AND f.relnamespace = n.oid AND k.conrelid <> k.confrelid
        AND NOT c.relispartition AND NOT f.relispartition
    GROUP BY k.oid, c.relname, f.relname
"""
# with partitions; what is being detached is neither in its parent nor a table of its own until that has ended
_UNLOCKED: LiteralString = """
    WITH RECURSIVE found AS (
        SELECT c.oid, false AS is_pending FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relkind IN ('r', 'p')
        UNION SELECT i.inhrelid, i.inhdetachpending FROM pg_inherits i JOIN found ON i.inhparent = found.oid
    )
    SELECT oid::regclass::text FROM found WHERE is_pending OR NOT EXISTS (
        SELECT FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation = found.oid
    ) ORDER BY 1
"""
_SEQUENCES: LiteralString = "SELECT sequencename FROM pg_sequences WHERE schemaname = %s ORDER BY 1"
_MIGRATIONS: LiteralString = """
    SELECT migration_id FROM public._migrations WHERE split_part(migration_id, '_', 2) = %s ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `declared` is its type with length or precision. `is_free`: it can hold anything about a person."""

    name: str
    type: str
    declared: str
    is_required: bool
    is_free: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table, its columns without generated ones, and the tables that it refers to with the columns for it."""

    schema: str
    name: str
    is_partitioned: bool
    columns: tuple[Column, ...]
    refers: Mapping[str, frozenset[str]]

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in SQL."""
        return sql.Identifier(self.schema, self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(column.name for column in self.columns)

    @property
    def types(self) -> tuple[str, ...]:
        """The declared types of its columns."""
        return tuple(column.declared for column in self.columns)

    @property
    def source(self) -> sql.Composed:
        """Its rows as an item of FROM: without those of tables that inherit from it, which have copies of their own."""
        return sql.SQL("{}{}").format(sql.SQL("" if self.is_partitioned else "ONLY "), self.identifier)


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence: its last value, and whether that was taken."""

    name: str
    last_value: int
    is_called: bool


def tables_of(connection: psycopg.Connection[Any], module: str) -> list[Table]:
    """Return the tables of a module, those that others refer to first. Raises NotFound, Conflict for a cycle."""
    columns: dict[str, list[Column]] = {}
    partitioned: dict[str, bool] = {}
    for table, is_partitioned, *column in connection.execute(_COLUMNS, (module,)):
        partitioned[table] = is_partitioned
        columns.setdefault(table, []).extend([Column(*column)] if column[0] is not None else ())
    if not columns:
        raise NotFound(f"the module {module} has no tables in this database")
    refers: dict[str, dict[str, frozenset[str]]] = {name: {} for name in columns}
    before: dict[str, set[str]] = {name: set() for name in columns}
    for table, referred, by, is_deferrable in connection.execute(_REFERENCES, (module,)):
        refers[table][referred] = frozenset(by) | refers[table].get(referred, frozenset())
        if not is_deferrable:
            before[table].add(referred)
    try:
        order = tuple(TopologicalSorter(before).static_order())
    except CycleError as error:
        names = " and ".join(sorted(set(error.args[1])))
        raise Conflict(
            f"the tables {names} refer to each other, so that none can be imported first: make a foreign key DEFERRABLE"
        ) from None
    return [Table(module, name, partitioned[name], tuple(columns[name]), refers[name]) for name in order]


def unlocked_of(connection: psycopg.Connection[Any], module: str) -> list[str]:
    """Return the tables and partitions of a module that this session has not locked, or that are being detached."""
    return [row[0] for row in connection.execute(_UNLOCKED, (module,))]


def sequences_of(connection: psycopg.Connection[Any], module: str) -> list[Sequence]:
    """Return the sequences of a module."""
    found: list[Sequence] = []
    for (name,) in connection.execute(_SEQUENCES, (module,)).fetchall():
        state = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(module, name))
        found += [Sequence(name, *row) for row in connection.execute(state)]
    return found


def migrations_of(connection: psycopg.Connection[Any], module: str) -> list[str]:
    """Return the ids of the applied migrations of a module."""
    return [row[0] for row in connection.execute(_MIGRATIONS, (module,))]


def undeclared(tables: list[Table], personal: Personal) -> list[str]:
    """Return what is wrong with the rules of a module, in one line each."""
    known = {table.name for table in tables}
    found = [f"{name}: there is no such table" for name in personal if name not in known]
    for table in tables:
        rules = personal.get(table.name, _NO_RULES)
        if isinstance(rules, str):
            continue
        found += [f"{table.name}.{name}: there is no such column" for name in rules if name not in table.names]
        for column in table.columns:
            if why := _misfit(table, column, rules.get(column.name)):
                found.append(f"{table.name}.{column.name}: {why}")
        for referred, by in table.refers.items():
            if personal.get(referred) == "dropped" and any(rules.get(name) != "null" for name in by):
                found.append(f"{table.name} refers to {referred}, which is dropped")
    return found


def _misfit(table: Table, column: Column, rule: Rule | None) -> str:
    match rule:
        case None if column.is_free:
            return f"{column.type}, and not declared"
        case "null" if column.is_required:
            return "null is not allowed"
        case "empty" if not (column.type in (*_EMPTY_TEXTS, *_EMPTY_OBJECTS) or column.type.endswith("[]")):
            return f"{column.type} has no empty value"
        case Pseudonym(of=of) if of and of not in table.names:
            return f"there is no column {of}"
        case Pseudonym() if column.type not in _TEXTS:
            return "a pseudonym is a text"
        case _:
            return ""


def selected(table: Table, personal: Personal | None) -> sql.Composed:
    """Return the query of the rows of a table in an export. Raises InvalidDeclaration for an unknown rule."""
    rules = _NO_RULES if personal is None else personal.get(table.name, _NO_RULES)
    is_dropped, rules = isinstance(rules, str), _NO_RULES if isinstance(rules, str) else rules
    values = sql.SQL(", ").join(_value(column, rules.get(column.name, "kept")) for column in table.columns)
    return sql.SQL("SELECT {} FROM {} WHERE {}").format(values, table.source, not is_dropped)


def _value(column: Column, rule: Rule) -> sql.Composable:
    name, kind = sql.Identifier(column.name), sql.SQL(column.type)  # pyright: ignore[reportArgumentType] - of the catalogue
    match rule:
        case "kept":
            return name
        case "null":
            return sql.SQL("NULL::{}").format(kind)
        case "empty":
            return _unless_null(name, sql.SQL("{}::{}").format("" if column.type in _EMPTY_TEXTS else "{}", kind))
        case Constant(value):
            return _unless_null(name, sql.SQL("{}::{}").format(value, kind))
        case Pseudonym(prefix, of):
            return _unless_null(name, sql.SQL(_DIGEST).format(prefix, sql.Identifier(of or column.name)))
    raise InvalidDeclaration(f"{column.name}: there is no rule {rule!r}")


def _unless_null(name: sql.Identifier, value: sql.Composed) -> sql.Composed:
    return sql.SQL("CASE WHEN {} IS NULL THEN NULL ELSE {} END").format(name, value)
