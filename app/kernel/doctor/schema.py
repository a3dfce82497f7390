"""Checks of our schema and of what keeps PostgreSQL from tidying it up."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, LiteralString, cast

from psycopg import sql

from app.kernel.config import Misconfigured, PostgresSettings, SentinelSettings
from app.kernel.db import Row
from app.kernel.db.migrations.files import BadMigration, read
from app.kernel.db.migrations.migrator import LOCK_KEY
from app.kernel.db.migrations.plan import Status, compare
from app.kernel.db.migrations.steps import load
from app.kernel.db.partitions import keep_partitions
from app.kernel.db.retention import PARTITIONED
from app.kernel.doctor import Check, Finding, fail, in_shell, in_thread, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME

_UP = f"{NAME} migrate up"
_DEAD_ROWS = 10_000
_WRAPAROUND_WARN, _WRAPAROUND_FAIL = 1_000_000_000, 1_600_000_000
"""PostgreSQL refuses changes at about 2.1 billion; autovacuum acts at autovacuum_freeze_max_age (200 million)."""
_MIGRATING_S, _IDLE_S = 600, 10


def _terminate(pid: int) -> str:
    return in_shell(f"SELECT pg_terminate_backend({pid})")


async def migrations(d: Deployment) -> AsyncIterator[Finding]:
    """Report pending, edited and unknown migrations, and what killed migrators left."""
    try:
        found = await _status(d)
    except (Misconfigured, BadMigration) as error:
        yield fail(str(error), error.hint)
        return
    if edited := [s.id for s in found if s.state == "edited"]:
        yield fail(
            f"edited after they were applied: {', '.join(edited)}", f"git checkout -- migrations/{edited[0]}.sql"
        )
    holders = await d.all(_HOLDERS, (LOCK_KEY,))
    if pending := [s for s in found if s.state == "pending"]:
        async for finding in _pending(d, pending, holders):
            yield finding
    if unknown := [s.id for s in found if s.state == "unknown"]:
        problem = f"{len(unknown)} applied by a newer release, the last is {unknown[-1]}: this release is older"
        yield warn(problem, f"{NAME} migrate status  # then deploy the newer release")
    async for finding in _indexes(d, bool(pending)):
        yield finding
    async for finding in _locks(d, holders):
        yield finding


async def _pending(d: Deployment, pending: list[Status], holders: list[Row]) -> AsyncIterator[Finding]:
    """Report pending migrations, and those that cannot be applied."""
    text = f"{len(pending)} pending, the first is {pending[0].id}"
    if unusable := await in_thread(partial(_unusable, pending)):
        for error in unusable:
            yield fail(f"pending, and cannot be applied: {error}", f"{error.hint}  # then correct the file")
    elif holders:
        yield warn(f"{text}: {_who(*holders[0][:2])} is migrating", f"{NAME} migrate status  # again, later")
    elif PostgresSettings in d.settings.sections and d[PostgresSettings].migrate:
        yield warn(f"{text}: the next process applies them", _UP)
    else:
        yield fail(f"{text}: no process starts", _UP)


def _unusable(pending: list[Status]) -> list[BadMigration]:
    """Return why pending files cannot be applied."""
    errors: list[BadMigration] = []
    for file in (each.file for each in pending if each.file):
        try:
            file.require_statement()
            load(file)
        except BadMigration as error:
            errors.append(error)
    return errors


async def _status(d: Deployment) -> list[Status]:
    files = await in_thread(partial(read, d.root / "migrations"))
    exist = await d.one(
        "SELECT to_regclass('_migrations') IS NOT NULL, to_regclass('_migration_checksums') IS NOT NULL"
    )
    applied = await d.all("SELECT migration_id, applied_at_utc FROM _migrations") if exist[0] else []
    checksums = await d.all("SELECT migration_id, sha256 FROM _migration_checksums") if exist[1] else []
    return compare(files, {row[0]: row[1] for row in applied}, {row[0]: row[1] for row in checksums})


async def _indexes(d: Deployment, pending: bool) -> AsyncIterator[Finding]:
    """Report invalid indexes, which a killed CREATE INDEX CONCURRENTLY leaves: they cost writes and serve no query."""
    invalid = """
        SELECT n.nspname, c.relname FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname = ANY(%s)
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = i.indrelid)
        ORDER BY 1, 2
    """
    for schema, name in await d.all(invalid, (d.schemas,)):
        index = sql.Identifier(schema, name)
        is_copy = "_ccnew" in name or "_ccold" in name  # of an interrupted REINDEX CONCURRENTLY
        work = sql.SQL("DROP INDEX CONCURRENTLY {}" if is_copy else "REINDEX INDEX CONCURRENTLY {}").format(index)

        async def repair(work: sql.Composed = work) -> None:
            async with d.repairing(statement_ms=0) as connection:
                await connection.execute(work)

        problem = f"the index {schema}.{name} is invalid: its build was interrupted"
        if pending and not is_copy:
            yield fail(f"{problem}; the pending migration builds it again", _UP)
        else:
            yield fail(problem, in_shell(work.as_string()), repair)


_HOLDERS = """
    SELECT a.pid, a.application_name, extract(epoch FROM now() - a.state_change)::float8, a.state
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32 | l.objid::bigint) = %s
"""


def _who(pid: int, name: str) -> str:
    return f"{name or 'a client'} (pid {pid})"


async def _locks(d: Deployment, holders: Sequence[tuple[Any, ...]]) -> AsyncIterator[Finding]:
    """Report the row of yoyo's lock without its migrator, and a migrator that holds the real lock for long."""
    for pid, name, since_s, state in holders:
        if since_s > (_IDLE_S if state.startswith("idle") else _MIGRATING_S):
            problem = f"{_who(pid, name)} holds the lock of migrations, and has been {state} for {since_s:.0f} s"
            yield warn(problem, _terminate(pid))
    if holders or await d.one("SELECT to_regclass('yoyo_lock') IS NULL") == (True,):
        return
    for (pid,) in await d.all("SELECT pid FROM yoyo_lock"):

        async def repair() -> None:
            async with d.repairing() as connection:
                await connection.execute(
                    "DELETE FROM yoyo_lock WHERE NOT EXISTS (SELECT FROM pg_locks l"
                    " WHERE l.locktype = 'advisory' AND (l.classid::bigint << 32 | l.objid::bigint) = %s)",
                    (LOCK_KEY,),
                )

        problem = f"a killed migrator (process {pid}) left its lock"
        yield warn(problem, in_shell("DELETE FROM yoyo_lock"), repair)


async def partitions(d: Deployment) -> AsyncIterator[Finding]:
    """Report missing partitions, a detachment that was interrupted, and rows before and after all partitions."""
    fix = f"{NAME} doctor --fix --yes --only partitions"
    bounds = """
        SELECT name, lower_at <= now() AND upper_at > now() AND upper_at < 'infinity',
            lower_at <= now() + interval '1 day' AND upper_at > now() + interval '1 day' AND upper_at < 'infinity',
            lead(lower_at) OVER (ORDER BY lower_at) > upper_at, is_pending
        FROM kernel.partitions_of(%s)
    """
    for parent in PARTITIONED:
        found = await d.all(bounds, (parent,))
        missing = [word for at, word in ((1, "today"), (2, "tomorrow")) if not any(row[at] for row in found)]
        level = fail if "today" in missing else warn
        repair = partial(_keep_partitions, d, parent)
        if missing:
            problem = f"kernel.{parent} has no partition of {' and '.join(missing)}"
            yield level(f"{problem}: do consumers run the maintenance jobs?", fix, repair)
        elif before := [row[0] for row in found if row[3]]:
            yield fail(f"kernel.{parent} has no partition after {before[0]}, and refuses later rows", fix, repair)
        if pending := [row[0] for row in found if row[4]]:
            yield warn(
                f"the partition {pending[0]} is not completely detached, because a transaction was reading it",
                fix,
                repair,
            )
        elif await d.one("SELECT kernel.index_step(%s) IS NOT NULL", (parent,)) == (True,):
            yield warn(f"an index of kernel.{parent} is not built for all partitions yet", fix, repair)
        key = {"events": "published_at", "finished_jobs": "finished_at"}[parent]
        other = sql.Identifier("kernel", f"{parent}_other")
        filled = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {} > now() + interval '2 days')").format(
            other, sql.Identifier(key)
        )
        if await d.one(cast("LiteralString", filled.as_string())) == (True,):
            problem = f"kernel.{parent}_other has rows of the future, which stay until then: a clock was wrong"
            remove = sql.SQL("DELETE FROM {} WHERE {} > now() + interval '2 days'").format(other, sql.Identifier(key))
            yield warn(problem, in_shell(remove.as_string()))


async def _keep_partitions(d: Deployment, parent: str) -> None:
    async with d.repairing() as connection:
        await keep_partitions(connection, parent, None)


async def bloat(d: Deployment) -> AsyncIterator[Finding]:
    """Report our tables with many dead rows, and the age of transaction ids."""
    dead = """
        SELECT schemaname || '.' || relname, n_dead_tup, n_live_tup FROM pg_stat_user_tables
        WHERE schemaname = ANY(%s) AND n_dead_tup > %s AND n_dead_tup > n_live_tup / 2 ORDER BY n_dead_tup DESC LIMIT 5
    """
    for table, dead_rows, rows in await d.all(dead, (d.schemas, _DEAD_ROWS)):
        problem = f"{table} has {dead_rows} dead rows beside {rows}: vacuum does not keep up, or a snapshot is held"
        yield warn(problem, in_shell(f"VACUUM {table}"))
    (age,) = await d.one("SELECT age(datfrozenxid)::bigint FROM pg_database WHERE datname = current_database()")
    if age > _WRAPAROUND_WARN:
        problem = (
            f"the oldest transaction id is {age / 1e9:.1f} billion back; at 2.1 billion PostgreSQL stops all changes"
        )
        yield (fail if age > _WRAPAROUND_FAIL else warn)(problem, "vacuumdb --all --freeze --jobs 2 -U postgres")


async def snapshots(d: Deployment) -> AsyncIterator[Finding]:
    """Report transactions that lock our tables, and those that keep VACUUM from removing dead rows."""
    locked = """
        SELECT pid, coalesce(nullif(application_name, ''), usename, 'a client'),
            count(*) - 1, min(relation::regclass::text),
            extract(epoch FROM now() - min(xact_start))::float8
        FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_class c ON c.oid = l.relation
        WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND relkind IN ('r', 'p')
          AND relnamespace::regnamespace::text = ANY(%s) AND xact_start < now() - interval '1 second'
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 20
    """
    for pid, name, more, table, since_s in await d.all(locked, (d.schemas,)):
        tables = f"{table} and {more} more" if more else table
        problem = f"{name} (pid {pid}) has locked {tables} for {since_s:.0f} s: whoever reads that waits"
        yield fail(problem, f"{_terminate(pid)}  # unless it is a migration that ends soon")
    limit_s = d[SentinelSettings].held_snapshot
    held = """
        SELECT pid, coalesce(nullif(application_name, ''), usename, 'a client'), state,
            extract(epoch FROM now() - xact_start)::float8
        FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
          AND xact_start < now() - %s * interval '1 second'
        ORDER BY xact_start LIMIT 20
    """
    for pid, name, state, since_s in await d.all(held, (limit_s,)):
        yield warn(f"{name} (pid {pid}, {state}) has had a transaction open for {since_s:.0f} s", _terminate(pid))
    prepared = """
        SELECT gid, extract(epoch FROM now() - prepared)::float8 FROM pg_prepared_xacts
        WHERE prepared < now() - %s * interval '1 second' ORDER BY prepared LIMIT 20
    """
    for gid, since_s in await d.all(prepared, (limit_s,)):
        problem = f"the prepared transaction {gid} has been open for {since_s:.0f} s; we prepare none"
        yield warn(problem, in_shell(f"ROLLBACK PREPARED '{gid}'"))


CHECKS = (
    Check("migrations", "schema", "All migrations are applied, as they are here.", migrations, quick=True),
    Check("partitions", "schema", "The partitions of the next days exist.", partitions, quick=True),
    Check("bloat", "schema", "Vacuum keeps up.", bloat, quick=True),
    Check(
        "snapshots",
        "schema",
        "No transaction is open for long, or locks our tables.",
        snapshots,
        quick=True,
        runbook="OutageCaptured",
    ),
)
