"""Migrations: applied once however many start, whoever is killed; refused when they cannot be trusted."""

import asyncio
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from app.kernel.db.migrations.files import FILE_NAME, BadMigration, create, read
from app.kernel.db.migrations.migrator import Migrator, in_thread
from app.kernel.db.migrations.steps import MigrationFailed
from app.kernel.db.server import Server
from app.kernel.errors import Conflict, NotFound, Unavailable
from app.modules import MODULES
from app.processes import PROCESSES
from tests.conftest import TestDatabase
from tests.kernel.db.test_postgres import frozen
from tests.support.project import ROOT, Project, Running, eventually

LOCK_KEY = 0x6D69_6772_6174_6521
HOLDER = (
    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
    " AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
BOOKKEEPING = ("_migrations", "_migration_checksums", "_yoyo_log", "_yoyo_version", "yoyo_lock")
BOOKKEEPING += tuple(f"_{name}" for name in BOOKKEEPING)  # PostgreSQL names the type of an array so
# sleeps for as long as there is a row in the table `slow`, which a test puts there and takes away
SLOW = """
CREATE TABLE slow (n int);
CREATE FUNCTION wait_while_slow(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM pg_sleep(CASE WHEN EXISTS (SELECT FROM public.slow) THEN 60 ELSE 0 END);
    RETURN n;
END $$;
INSERT INTO slow VALUES (1);
CREATE TABLE big AS SELECT 1 AS n;
"""


def write(folder: Path, name: str, sql: str, rollback: str = "") -> Path:
    path = folder / f"{name}.sql"
    path.write_text(sql)
    path.with_suffix(".rollback.sql").write_text(rollback)
    return path


@dataclass
class Schema:
    """A folder of migrations and the database they are for."""

    folder: Path
    database: TestDatabase

    def migrator(self, name: str = "test@here:1") -> Migrator:
        server = self.database.server
        where = {"host": server.host, "port": server.port, "user": server.user, "dbname": self.database.name}
        return Migrator(Server("test", {**where, "application_name": name, "connect_timeout": 2}), self.folder)

    def write(self, name: str, sql: str, rollback: str = "") -> Path:
        return write(self.folder, name, sql, rollback)

    def up(self) -> list[str]:
        return self.migrator().up(lambda _: None)

    def states(self) -> dict[str, str]:
        return {status.id: status.state for status in self.migrator().status()}

    def recorded(self) -> dict[str, list[str]]:
        """Return the ids that each table of the bookkeeping holds; of the log, what was applied."""
        return {
            table: [name for (name,) in self.database.all(f"SELECT migration_id FROM {table} {where} ORDER BY 1")]
            for table, where in (
                ("_migrations", ""),
                ("_migration_checksums", ""),
                ("_yoyo_log", "WHERE operation = 'apply'"),
            )
        }


@pytest.fixture
def schema(tmp_path: Path, empty_database: TestDatabase) -> Schema:
    folder = tmp_path / "migrations"
    folder.mkdir()
    return Schema(folder, empty_database)


def applied_once(database: TestDatabase, ids: list[str]) -> None:
    log = Counter(database.all("SELECT migration_id, operation FROM _yoyo_log"))
    assert log == Counter((name, "apply") for name in ids)
    assert database.all("SELECT migration_id FROM _migrations ORDER BY 1") == [(name,) for name in sorted(ids)]
    assert database.all("SELECT migration_id FROM _migration_checksums ORDER BY 1") == [(n,) for n in sorted(ids)]
    assert database.all("SELECT * FROM yoyo_lock") == []


def objects(database: TestDatabase) -> set[tuple]:
    return set(
        database.all(
            "SELECT 'relation', n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname !~ '^pg_'"
            " UNION ALL SELECT 'schema', '', nspname FROM pg_namespace WHERE nspname !~ '^pg_'"
            " UNION ALL SELECT 'function', n.nspname, p.proname FROM pg_proc p JOIN pg_namespace n"
            " ON n.oid = p.pronamespace WHERE n.nspname !~ '^pg_'"
            " UNION ALL SELECT 'type', n.nspname, t.typname FROM pg_type t JOIN pg_namespace n"
            " ON n.oid = t.typnamespace WHERE n.nspname !~ '^pg_'"
            " UNION ALL SELECT 'extension', '', extname FROM pg_extension"
        )
    )


# The repository's own migrations


def test_the_migrations_of_this_repository_keep_to_the_rules() -> None:
    folder = ROOT / "migrations"
    files = {path.name for path in folder.iterdir()}
    ups = sorted(name for name in files if not name.endswith(".rollback.sql"))
    assert ups
    matches = [FILE_NAME.fullmatch(name.removesuffix(".sql")) for name in ups]
    assert [name for name, match in zip(ups, matches, strict=True) if match is None] == []
    assert {match["module"] for match in matches if match} <= {"kernel", *MODULES}
    assert files == {*ups, *(name.replace(".sql", ".rollback.sql") for name in ups)}
    timestamps = [name[:14] for name in ups]
    assert len(set(timestamps)) == len(timestamps)
    rollbacks = [path for path in folder.glob("*.rollback.sql") if re.search(r"DROP [^;]*CASCADE", path.read_text())]
    assert rollbacks == [], "a rollback must fail while another module's schema depends on what it drops"


UNDOCUMENTED = """
    WITH owned AS (SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$')
    SELECT nspname FROM owned WHERE obj_description(oid, 'pg_namespace') IS NULL
    UNION ALL
    SELECT nspname || '.' || relname FROM owned JOIN pg_class c ON relnamespace = owned.oid
    WHERE relkind IN ('r', 'p', 'v', 'm') AND c.relname !~ '_[0-9]{8}$' AND obj_description(c.oid, 'pg_class') IS NULL
    UNION ALL
    SELECT nspname || '.' || relname || '.' || attname FROM owned JOIN pg_class c ON relnamespace = owned.oid
    JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
    WHERE relkind IN ('r', 'p', 'v', 'm') AND NOT relispartition AND col_description(c.oid, attnum) IS NULL
    UNION ALL
    SELECT p.oid::regprocedure::text FROM owned JOIN pg_proc p ON pronamespace = owned.oid
    WHERE obj_description(p.oid, 'pg_proc') IS NULL
    UNION ALL
    SELECT nspname || '.' || typname FROM owned JOIN pg_type t ON typnamespace = owned.oid
    WHERE typtype IN ('e', 'd') AND obj_description(t.oid, 'pg_type') IS NULL
"""


def test_every_schema_table_column_function_and_type_has_a_comment(database: TestDatabase) -> None:
    Schema(ROOT / "migrations", database).up()
    without = [name for (name,) in database.all(UNDOCUMENTED)]
    assert not without, f"write COMMENT ON for {', '.join(without)}"
    database.run("CREATE TABLE kernel.bare (n int); CREATE TYPE kernel.kind AS ENUM ('a')")
    assert {name for (name,) in database.all(UNDOCUMENTED)} == {"kernel.bare", "kernel.bare.n", "kernel.kind"}


def test_rolling_back_all_of_the_migrations_of_this_repository_leaves_nothing_behind(
    empty_database: TestDatabase,
) -> None:
    schema = Schema(ROOT / "migrations", empty_database)
    before = objects(empty_database)
    ids = schema.up()
    assert ids == [migration.id for migration in read(schema.folder)]
    full = objects(empty_database)
    told: list[str] = []
    undone = [name for _ in ids for name in schema.migrator().down(told.append)]
    assert undone == ids[::-1]
    assert told == [f"rolled back {name}" for name in undone]
    assert schema.migrator().down(told.append) == []
    left = {row for row in objects(empty_database) - before if not row[2].startswith(BOOKKEEPING)}
    assert left == set()
    assert set(schema.states().values()) == {"pending"}
    assert schema.up() == ids
    assert objects(empty_database) == full


# Files


@pytest.mark.parametrize(
    "name",
    [
        "2026010100000_auth_short_timestamp",
        "20260101000000_auth",
        "20260101000000_Auth_upper",
        "20260101000000_auth_two__underscores",
        "20260101000000-auth-dashes",
        "add_users",
    ],
)
def test_a_file_with_a_bad_name_is_refused_and_named(schema: Schema, name: str) -> None:
    schema.write(name, "SELECT 1")
    with pytest.raises(BadMigration, match=re.escape(f"{name}.sql")):
        schema.up()


def test_a_file_without_its_rollback_is_refused_and_named(schema: Schema) -> None:
    path = schema.write("20260101000000_auth_one", "CREATE TABLE one (n int)")
    path.with_suffix(".rollback.sql").unlink()
    with pytest.raises(BadMigration, match=r"20260101000000_auth_one\.rollback\.sql is missing"):
        schema.up()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"-- transactional: maybe\nSELECT 1", "transactional is true or false"),
        (b"-- depends: 20250101000000_auth_zero\nSELECT 1", "depends"),
        (b"SELECT '\xe9'", "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_and_named(schema: Schema, content: bytes, reason: str) -> None:
    schema.write("20260101000000_auth_one", "").write_bytes(content)
    with pytest.raises(BadMigration, match=rf"20260101000000_auth_one\.sql.*{reason}"):
        schema.up()
    assert schema.states() == {"20260101000000_auth_one": "pending"}


def test_an_edited_file_is_refused_and_named_until_it_is_restored(schema: Schema) -> None:
    path = schema.write("20260101000000_auth_one", "CREATE TABLE one (n int);\n")
    schema.up()
    original = path.read_bytes()
    path.write_bytes(original + b"\n")
    assert schema.states() == {"20260101000000_auth_one": "edited"}
    with pytest.raises(BadMigration, match="20260101000000_auth_one"):
        schema.up()
    schema.write("20260102000000_auth_two", "CREATE TABLE two (n int)")
    with pytest.raises(BadMigration, match="20260101000000_auth_one"):
        schema.up()
    path.write_bytes(original)
    assert schema.up() == ["20260102000000_auth_two"]


def test_other_line_endings_are_no_edit(schema: Schema) -> None:
    path = schema.write("20260101000000_auth_one", "CREATE TABLE one (n int);\n-- end\n")
    schema.up()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert schema.states() == {"20260101000000_auth_one": "applied"}
    assert schema.up() == []


def test_a_migration_of_a_newer_release_is_unknown_blocks_nothing_and_is_not_rolled_back_here(schema: Schema) -> None:
    schema.write("20260101000000_auth_one", "SELECT 1")
    newer = schema.write("20260103000000_auth_three", "CREATE TABLE three (n int)", "DROP TABLE three")
    schema.up()
    newer.unlink()
    newer.with_suffix(".rollback.sql").unlink()
    schema.write("20260102000000_auth_two", "SELECT 1")
    assert schema.up() == ["20260102000000_auth_two"]
    assert schema.states()["20260103000000_auth_three"] == "unknown"
    with pytest.raises(BadMigration, match="20260103000000_auth_three has no file here"):
        schema.migrator().down(lambda _: None)
    assert schema.database.all("SELECT count(*) FROM three") == [(0,)]


def test_what_is_in_a_file_runs_as_psql_would_run_it(schema: Schema) -> None:
    schema.write(
        "20260101000000_auth_one",
        "-- 100% plain; a comment\nCREATE TABLE one (n int, t text DEFAULT '%s ;');\n"
        "CREATE FUNCTION twice(n int) RETURNS int LANGUAGE plpgsql AS $$\n"
        "DECLARE m int;\nBEGIN\n"
        "  IF n > 0 THEN\n    m := n * 2;\n  ELSE\n    m := 0;\n  END IF;\n  RETURN m;\nEND;\n$$;\n"
        "DO $body$ BEGIN INSERT INTO one (n) VALUES (twice(21)); END $body$;\nSELECT n FROM one;\n",
    )
    schema.up()
    assert schema.database.all("SELECT n, t FROM one") == [(42, "%s ;")]


def test_creating_makes_ascending_names_even_within_one_second_and_when_another_clock_is_ahead(tmp_path: Path) -> None:
    made = [create(tmp_path, "auth", "Add user roles!", ("auth",))[0].name for _ in range(3)]
    assert made == sorted(set(made))
    assert all(name.endswith("_auth_add_user_roles.sql") for name in made)
    write(tmp_path, "20991231235959_auth_from_the_future", "SELECT 1")
    up, down = create(tmp_path, "auth", "after", ("auth",))
    assert up.name > "20991231235959_auth_from_the_future.sql"
    assert down.name == up.name.replace(".sql", ".rollback.sql")
    assert len(read(tmp_path)) == 5


# Modules


def shop(schema: Schema) -> list[str]:
    """Apply migrations of two modules, one of them in between; return the ids of orders."""
    schema.write(
        "20260101000000_orders_one",
        "CREATE SCHEMA orders; CREATE TABLE orders.orders (id int PRIMARY KEY)",
        "DROP TABLE orders.orders; DROP SCHEMA orders",
    )
    schema.write("20260102000000_billing_one", "CREATE SCHEMA billing", "DROP SCHEMA billing")
    schema.write("20260103000000_orders_two", "CREATE TABLE orders.lines (n int)", "DROP TABLE orders.lines")
    schema.up()
    return ["20260101000000_orders_one", "20260103000000_orders_two"]


def test_a_module_is_rolled_back_alone_and_as_a_whole(schema: Schema) -> None:
    one, two = shop(schema)
    told: list[str] = []
    assert [migration.id for migration in schema.migrator().last("orders")] == [two, one]
    assert schema.migrator().down(told.append, "orders") == [two, one]
    assert told == [f"rolled back {two}", f"rolled back {one}"]
    assert schema.states() == {one: "pending", "20260102000000_billing_one": "applied", two: "pending"}
    assert schema.database.all("SELECT to_regnamespace('orders'), to_regnamespace('billing')") == [(None, "billing")]
    assert schema.migrator().down(told.append, "orders") == []
    with pytest.raises(NotFound, match="no migrations of 'ordes'; modules with migrations: billing, orders"):
        schema.migrator().down(told.append, "ordes")


def test_a_module_that_another_schema_depends_on_is_not_rolled_back_not_even_in_part(schema: Schema) -> None:
    ids = shop(schema)
    schema.database.run("CREATE TABLE billing.invoices (order_id int REFERENCES orders.orders)")
    told: list[str] = []
    with pytest.raises(
        Conflict, match=r"orders is still used; .* on table billing\.invoices depends on table orders\.orders"
    ):
        schema.migrator().down(told.append, "orders")
    assert told == []
    assert {schema.states()[name] for name in ids} == {"applied"}
    assert schema.database.all("SELECT count(*) FROM orders.lines") == [(0,)]
    schema.database.run("DROP TABLE billing.invoices")
    assert schema.migrator().down(told.append, "orders") == ids[::-1]


def test_a_module_with_an_index_that_was_built_concurrently_is_rolled_back(schema: Schema) -> None:
    ids = shop(schema)
    schema.write(
        "20260104000000_orders_index",
        "-- transactional: false\nCREATE INDEX CONCURRENTLY IF NOT EXISTS lines_n ON orders.lines (n);\n",
        "-- transactional: false\nDROP INDEX CONCURRENTLY IF EXISTS orders.lines_n;\n",
    )
    schema.up()
    assert schema.migrator().down(lambda _: None, "orders") == ["20260104000000_orders_index", *ids[::-1]]


def test_the_kernel_is_rolled_back_after_all_modules(schema: Schema) -> None:
    schema.write("20260101000000_kernel_one", "CREATE TABLE one (n int)", "DROP TABLE one")
    shop(schema)
    with pytest.raises(Conflict, match="roll back billing, orders first"):
        schema.migrator().down(lambda _: None, "kernel")
    for module in ("orders", "billing", "kernel"):
        assert schema.migrator().down(lambda _: None, module) != []


# Failures


def test_a_failing_migration_leaves_nothing_half_and_applies_once_corrected(schema: Schema) -> None:
    schema.write("20260101000000_auth_one", "CREATE TABLE one (n int)")
    broken = schema.write("20260102000000_auth_two", "CREATE TABLE two (n int); INSERT INTO two VALUES ('x');")
    schema.write("20260103000000_auth_three", "CREATE TABLE three (n int)")
    with pytest.raises(MigrationFailed, match=r"20260102000000_auth_two\.sql: apply failed: invalid input syntax"):
        schema.up()
    assert set(map(tuple, schema.recorded().values())) == {("20260101000000_auth_one",)}
    tables = "SELECT to_regclass('one') IS NULL, to_regclass('two') IS NULL, to_regclass('three') IS NULL"
    assert schema.database.all(tables) == [(False, True, True)]
    broken.write_text("CREATE TABLE two (n int)")
    assert schema.up() == ["20260102000000_auth_two", "20260103000000_auth_three"]
    assert schema.database.all(tables) == [(False, False, False)]


def test_a_failing_rollback_leaves_the_migration_applied(schema: Schema) -> None:
    schema.write("20260101000000_auth_one", "CREATE TABLE one (n int)", "DROP TABLE one; DROP TABLE not_there;")
    schema.up()
    with pytest.raises(MigrationFailed, match=r"20260101000000_auth_one\.sql: rollback failed"):
        schema.migrator().down(lambda _: None)
    assert schema.states() == {"20260101000000_auth_one": "applied"}
    assert schema.database.all("SELECT count(*) FROM one") == [(0,)]


def test_a_row_that_a_killed_yoyo_left_in_its_lock_blocks_nobody(schema: Schema) -> None:
    schema.database.run("CREATE TABLE yoyo_lock (locked int DEFAULT 1 PRIMARY KEY, ctime timestamp, pid int NOT NULL)")
    for name in ("20260101000000_auth_one", "20260102000000_auth_two"):
        schema.database.run("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 12345)")
        schema.write(name, "SELECT 1")
        started = time.monotonic()
        assert schema.up() == [name]
        assert time.monotonic() - started < 5


def test_an_index_that_was_built_by_half_is_built_again_although_it_says_if_not_exists(schema: Schema) -> None:
    schema.database.run("CREATE SCHEMA s; CREATE TABLE s.t AS SELECT 1 AS n FROM generate_series(1, 2)")
    path = schema.write(
        "20260101000000_auth_index",
        "-- transactional: false\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS T_n ON s.t (n);\n",
    )
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('s.t_n')"
    with pytest.raises(MigrationFailed, match="could not create unique index"):
        schema.up()
    assert schema.database.all(valid) == [(False,)]
    assert schema.recorded()["_migrations"] == []
    schema.database.run("DELETE FROM s.t WHERE ctid = '(0,1)'")
    assert schema.up() == [path.stem]
    assert schema.database.all(valid) == [(True,)]


def test_an_index_is_built_concurrently_while_others_wait_to_migrate(schema: Schema) -> None:
    schema.database.run("CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n")
    schema.write("20260101000000_auth_index", "-- transactional: false\nCREATE INDEX CONCURRENTLY t_n ON t (n);\n")
    with holding_lock(schema.database) as holder:
        found: list[list[str]] = []
        threads = [threading.Thread(target=lambda: found.append(schema.up())) for _ in range(4)]
        for thread in threads:
            thread.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_try_advisory_lock%%'"
        mine = " AND datname = current_database()"
        eventually(lambda: schema.database.all(waiting + mine) == [(4,)])
        holder.close()
        for thread in threads:
            thread.join(30)
    assert sorted(found) == [[], [], [], ["20260101000000_auth_index"]]


# Stopping


@contextmanager
def holding_lock(database: TestDatabase) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.conninfo, autocommit=True, application_name="somebody@else:7") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        yield connection


async def test_a_cancelled_migration_lets_go_of_a_frozen_server(tmp_path: Path, own_database: TestDatabase) -> None:
    schema = Schema(tmp_path, own_database)
    schema.write("20260101000000_auth_one", "SELECT pg_sleep(60)")
    migrator = schema.migrator()
    task = asyncio.create_task(in_thread(migrator, lambda: migrator.up(lambda _: None)))
    running = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%%' AND state = 'active'"
    await asyncio.to_thread(eventually, lambda: own_database.all(running))
    with frozen(own_database.server):
        task.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 10
    await asyncio.to_thread(eventually, lambda: own_database.all(HOLDER) == [])
    assert schema.recorded()["_migrations"] == []


async def test_a_database_that_goes_away_while_migrating_is_unavailable(schema: Schema) -> None:
    schema.write("20260101000000_auth_one", "SELECT pg_sleep(60)")
    migrator = schema.migrator()
    with holding_lock(schema.database):
        task = asyncio.create_task(in_thread(migrator, lambda: migrator.up(lambda _: None)))
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test@here:1'"
        mine = " AND datname = current_database() AND query LIKE 'SELECT pg_try%%'"
        await asyncio.to_thread(eventually, lambda: schema.database.all(kill + mine))
        with pytest.raises(Unavailable, match="lost while migrating"):
            await task


async def test_a_database_that_goes_away_within_a_migration_is_unavailable(schema: Schema) -> None:
    schema.write("20260101000000_auth_one", "SELECT pg_sleep(60)")
    migrator = schema.migrator()
    task = asyncio.create_task(in_thread(migrator, lambda: migrator.up(lambda _: None)))
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    within = " AND query LIKE 'SELECT pg_sleep%%' AND state = 'active'"
    await asyncio.to_thread(eventually, lambda: schema.database.all(kill + within))
    with pytest.raises(Unavailable, match=r"one\.sql: apply was interrupted"):
        await task


# Real processes


def long_migration(project: Project, database: TestDatabase) -> str:
    """Add a migration that sleeps until the test lets it go on; return its id."""
    database.run(SLOW)
    name = "20270101000000_auth_slow"
    write(project.root / "migrations", name, "CREATE TABLE half (n int); SELECT wait_while_slow(1);", "DROP TABLE half")
    return name


def ids(project: Project) -> list[str]:
    return [migration.id for migration in read(project.root / "migrations")]


def migrating(database: TestDatabase, processes: list[Running], statement: str) -> Running:
    """Return the process that is busy with a statement, holding the lock."""

    def busy() -> list[tuple]:
        return database.all(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
            " AND pid <> pg_backend_pid() AND strpos(query, %s) > 0",
            statement,
        )

    ((name,),) = eventually(busy)
    assert database.all(HOLDER) == [(name,)]
    (found,) = [process for process in processes if name.endswith(f":{process.pid}")]
    return found


def all_messages(processes: list[Running]) -> list[str]:
    return [message for process in processes for message in process.messages()]


def test_eight_processes_started_at_once_on_an_empty_database_apply_each_migration_once(
    unmigrated: Project, empty_database: TestDatabase
) -> None:
    kinds = [*PROCESSES, *list(PROCESSES)[1:]][:8]
    processes = [unmigrated.start(kind) for kind in kinds]
    for process in processes:
        process.ready(120)
    applied_once(empty_database, ids(unmigrated))
    for process in processes:
        process.signal(signal.SIGTERM)
    assert [process.wait() for process in processes] == [0] * 8


def test_a_killed_migrator_is_named_to_those_who_wait_and_replaced_by_one_of_them(
    project: Project, database: TestDatabase, tmp_path: Path
) -> None:
    copy = project.copy(tmp_path / "copy")
    long_migration(copy, database)
    processes = [copy.start(kind) for kind in ("run-auth-http", "run-cron-manager", "run-event-consumer")]
    victim = migrating(database, processes, "wait_while_slow")
    others = [process for process in processes if process is not victim]
    (name,) = database.all(HOLDER)[0]
    assert name == f"{victim.output.stem[2:]}@{os.uname().nodename}:{victim.pid}"[:63]
    for process in others:
        eventually(lambda process=process: f"waiting for {name} to finish migrating" in process.messages())
    database.run("DELETE FROM slow")
    victim.popen.kill()
    for process in others:
        process.ready()
    applied_once(database, ids(copy))
    assert database.all("SELECT count(*) FROM half") == [(0,)]
    assert len([m for m in all_messages(others) if m.startswith("applied 20270101000000_auth_slow in ")]) == 1
    for process in others:
        process.signal(signal.SIGTERM)
    assert [process.wait() for process in others] == [0, 0]


def test_an_index_whose_builder_was_killed_is_built_by_another_process_and_valid(
    project: Project, database: TestDatabase, tmp_path: Path
) -> None:
    copy = project.copy(tmp_path / "copy")
    database.run(SLOW)
    write(
        copy.root / "migrations",
        "20270101000000_auth_index",
        "-- transactional: false\nCREATE INDEX CONCURRENTLY IF NOT EXISTS big_n ON big (wait_while_slow(n));\n",
        "-- transactional: false\nDROP INDEX CONCURRENTLY IF EXISTS big_n;\n",
    )
    processes = [copy.start(kind) for kind in ("run-auth-http", "run-cron-manager", "run-event-consumer")]
    victim = migrating(database, processes, "CREATE INDEX")
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('big_n')"
    eventually(lambda: database.all(valid) == [(False,)])  # the statement runs before the index is in the catalogue
    database.run("DELETE FROM slow")
    victim.popen.kill()
    for process in processes:
        if process is not victim:
            process.ready()
    assert database.all(valid) == [(True,)]
    applied_once(database, ids(copy))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user without a name")
def test_a_user_without_a_name_can_migrate(unmigrated: Project, empty_database: TestDatabase) -> None:
    become = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--securebits=+no_setuid_fixup"]
    reach = ["--bounding-set=-all,+dac_read_search", "--inh-caps=-all,+dac_read_search"]  # Python may be in a home
    done = subprocess.run(
        [*become, *reach, "--ambient-caps=-all,+dac_read_search", unmigrated.python, "-m", "app", "migrate", "up"],
        cwd=unmigrated.root,
        env=unmigrated.environment({"HOME": "/nowhere"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    applied_once(empty_database, ids(unmigrated))


def promptly(process: Running, number: signal.Signals = signal.SIGTERM) -> int:
    started = time.monotonic()
    process.signal(number)
    status = process.wait()
    assert time.monotonic() - started < 10
    return status


def test_a_process_told_to_stop_while_another_one_migrates_stops_at_once_and_leaves_no_trace(
    unmigrated: Project, empty_database: TestDatabase
) -> None:
    with holding_lock(empty_database):
        process = unmigrated.start("run-event-consumer")
        eventually(lambda: "waiting for somebody@else:7 to finish migrating" in process.messages())
        assert promptly(process) == 0
        assert empty_database.all("SELECT to_regclass('_migrations') IS NULL") == [(True,)]
        assert "Traceback" not in process.said()
        assert "never retrieved" not in process.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_told_to_stop_while_it_migrates_stops_at_once_records_nothing_and_unlocks(
    project: Project, database: TestDatabase, tmp_path: Path, number: signal.Signals
) -> None:
    copy = project.copy(tmp_path / "copy")
    name = long_migration(copy, database)
    process = copy.start("run-cron-manager")
    migrating(database, [process], "wait_while_slow")
    assert promptly(process, number) == 0
    eventually(lambda: database.all(HOLDER) == [], seconds=3)
    assert database.all("SELECT to_regclass('half') IS NULL") == [(True,)]
    applied_once(database, [other for other in ids(copy) if other != name])
    assert "Traceback" not in process.said()
    assert "never retrieved" not in process.said()


def test_a_command_interrupted_while_it_migrates_records_nothing(
    project: Project, database: TestDatabase, tmp_path: Path
) -> None:
    copy = project.copy(tmp_path / "copy")
    name = long_migration(copy, database)
    command = copy.start("migrate", "up")
    migrating(database, [command], "wait_while_slow")
    assert promptly(command, signal.SIGINT) == 130
    eventually(lambda: database.all(HOLDER) == [], seconds=3)
    applied_once(database, [other for other in ids(copy) if other != name])
    assert "Traceback" not in command.said()
