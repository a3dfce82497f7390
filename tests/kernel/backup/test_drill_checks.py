import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import TimeoutExpired

import psycopg
import pytest
from psycopg import Connection

from app.kernel.backup.drill import Drill, Found
from app.kernel.backup.drill import database as checks
from app.kernel.backup.drill.database import content, foreign_keys, indexes, session, tables
from app.kernel.backup.drill.manifest import manifest
from app.kernel.backup.drill.migrated import migrations
from app.kernel.backup.drill.queue import INVARIANTS, queue
from app.kernel.db.devserver.embedded import embedded_binaries
from app.kernel.errors import Unavailable
from tests.conftest import TestDatabase, postgres_binaries, program
from tests.support.debian import debian_server
from tests.support.project import ROOT

MIGRATIONS = ROOT / "migrations"

KEYS = """
    CREATE SCHEMA shop;
    CREATE TABLE shop.parents (a int, b text, PRIMARY KEY (a, b));
    CREATE TABLE shop.days (day date, a int, b text, note text) PARTITION BY RANGE (day);
    CREATE TABLE shop.days_1 PARTITION OF shop.days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE shop.days_2 PARTITION OF shop.days DEFAULT;
    ALTER TABLE shop.days ADD CONSTRAINT days_parent FOREIGN KEY (a, b) REFERENCES shop.parents;
    CREATE TABLE shop.whole (a int, b text);
    ALTER TABLE shop.whole ADD CONSTRAINT whole_parent FOREIGN KEY (a, b) REFERENCES shop.parents MATCH FULL;
    CREATE TABLE shop.old (a int, b text);
    INSERT INTO shop.old VALUES (404, 'gone');
    ALTER TABLE shop.old ADD CONSTRAINT old_parent FOREIGN KEY (a, b) REFERENCES shop.parents NOT VALID;
    INSERT INTO shop.parents VALUES (1, 'x');
    INSERT INTO shop.days VALUES ('2026-01-02', 1, 'x'), ('2026-05-02', NULL, 'y'), ('2026-01-03', 2, NULL);
    INSERT INTO shop.whole VALUES (1, 'x'), (NULL, NULL);
"""
ORPHANS = {
    "INSERT INTO shop.days VALUES ('2026-01-09', 7, 'x')": ["shop.days (days_parent)"],
    "INSERT INTO shop.days VALUES ('2026-07-01', 1, 'z')": ["shop.days (days_parent)"],
    "INSERT INTO shop.whole VALUES (1, NULL)": ["shop.whole (whole_parent)"],
    "DELETE FROM shop.parents": ["shop.days (days_parent)", "shop.whole (whole_parent)"],
}
JOB = (
    "INSERT INTO kernel.jobs (id, queue, task, state, rank, max_attempts, timeout_s, unique_key, turn_key, turn_limit, "
)
BROKEN = {
    "jobs are leased without a whole lease, or have one without being leased": JOB
    + "lease_token) VALUES (kernel.uuid7(), 'q', 't', 'ready', 0, 1, 1, NULL, NULL, 1, kernel.uuid7())",
    "jobs that have ended are still unfinished": """
        WITH id AS (SELECT kernel.uuid7() AS id), made AS (
            INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at)
            SELECT id, 'q', 't', 'done', 1, now() FROM id
        )
        INSERT INTO kernel.jobs (id, queue, task, rank, max_attempts, timeout_s) SELECT id, 'q', 't', 0, 1, 1 FROM id
    """,
    "dead letters are finished jobs": """
        WITH id AS (SELECT kernel.uuid7() AS id), made AS (
            INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at)
            SELECT id, 'q', 't', 'done', 1, now() FROM id
        )
        INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at)
        SELECT id, 'q', 't', 'r', 1, 1, 1, now() FROM id
    """,
    "unique keys have more than one unfinished job": "DROP INDEX kernel.jobs_unique_key;"
    f"{JOB} in_order) SELECT kernel.uuid7(), 'q', 't', 'ready', 0, 1, 1, 'k', NULL, 1, false"
    " FROM generate_series(1, 2)",
    "ticks of schedules have more than one job": """
        INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at, schedule, unique_key)
        SELECT kernel.uuid7(), 'q', 't', 'done', 1, now(), 's', 's@2026-01-01' FROM generate_series(1, 2)
    """,
    "turns have more leased jobs than are allowed at once": JOB
    + "lease_token, leased_until, leased_by) SELECT kernel.uuid7(), 'q', 't', 'leased', 0, 1, 1, NULL, 'k', 1,"
    " kernel.uuid7(), now(), 'w' FROM generate_series(1, 2)",
    "jobs wait for a turn without having one": JOB
    + "in_order) VALUES (kernel.uuid7(), 'q', 't', 'waiting', 0, 1, 1, NULL, NULL, 1, false)",
    "schedules have fired at or after their next tick": """
        INSERT INTO kernel.schedules (name, spec, misfire, next_fire_at, last_fire_at, task)
        VALUES ('s', '* * * * *', 'one', now(), now(), 't')
    """,
}
LAWFUL = f"""
    {JOB} lease_token, leased_until, leased_by)
        SELECT kernel.uuid7(), 'q', 't', 'leased', 0, 1, 1, n::text, 'k', 2, kernel.uuid7(), now(), 'w'
        FROM generate_series(1, 2) n;
    INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at, schedule, unique_key, origin_id)
        SELECT kernel.uuid7(), 'q', 't', 'done', 1, now(), 's', 's@2026-01-01', CASE WHEN n > 1 THEN kernel.uuid7() END
        FROM generate_series(1, 2) n;
"""


@pytest.fixture
def asked(database: TestDatabase) -> Iterator[Connection]:
    with session(database.conninfo) as connection:
        yield connection


def test_each_foreign_key_is_checked_and_those_that_are_not_valid_are_not(asked: Connection) -> None:
    asked.execute(KEYS)
    found = foreign_keys(asked)
    assert (found.problems, found.notes) == ((), ())
    for orphan, where in ORPHANS.items():
        with asked.transaction(force_rollback=True):
            asked.execute("SET LOCAL session_replication_role = replica")
            asked.execute(orphan)
            assert [problem.partition(":")[0] for problem in foreign_keys(asked).problems] == where, orphan


def test_each_invariant_of_the_queue_can_be_seen_to_be_broken(asked: Connection) -> None:
    assert BROKEN.keys() == INVARIANTS.keys()
    asked.execute(LAWFUL)
    assert queue(asked).problems == ()
    for invariant, statement in BROKEN.items():
        with asked.transaction(force_rollback=True):
            asked.execute(statement)
            [problem] = queue(asked).problems
            assert invariant in problem


def test_a_database_without_rows_or_tables_or_migrations_is_found(
    database: TestDatabase, empty_database: TestDatabase, asked: Connection
) -> None:
    assert content(asked).problems == ()
    with session(empty_database.conninfo) as empty:
        assert content(empty).problems == ("the database has no tables",)
        empty.execute("CREATE TABLE public.nothing ()")
        assert content(empty).problems == ("all 1 tables are empty",)
        assert queue(empty).problems == ("the tables of the queue do not exist",)
    [problem] = migrations(empty_database.conninfo, MIGRATIONS, "").problems
    assert "no migration has been applied" in problem


def test_migrations_that_are_edited_unknown_or_missing_are_found_and_pending_ones_are_applied(
    database: TestDatabase, tmp_path: Path
) -> None:
    files = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, files)
    newest = max(path.stem for path in files.glob("*.sql"))
    later = "20991231000000_kernel_add_nothing"
    (files / f"{later}.sql").write_text("CREATE TABLE kernel.nothing ();\n")
    (files / f"{later}.rollback.sql").write_text("DROP TABLE kernel.nothing;\n")
    found = migrations(database.conninfo, files, newest.removesuffix(".rollback"))
    assert found.problems == ()
    assert "1 pending" in found.summary
    assert database.all("SELECT to_regclass('kernel.nothing')::text") == [("kernel.nothing",)]
    [unknown] = migrations(database.conninfo, MIGRATIONS, "").problems
    assert unknown == f"{later} is unknown to this release"
    (files / f"{later}.sql").write_text("CREATE TABLE kernel.another ();\n")
    [edited] = migrations(database.conninfo, files, "").problems
    assert edited == f"{later} was applied in another form"
    [missing] = migrations(database.conninfo, MIGRATIONS, "20260101000000_kernel_gone").problems[1:]
    assert missing == "20260101000000_kernel_gone had been applied when the backup was taken, and is missing"


def test_files_that_are_changed_cut_missing_or_added_do_not_match_the_manifest(
    database: TestDatabase, tmp_path: Path
) -> None:
    folder, server = tmp_path / "copy", database.server
    where = ("-h", server.host, "-p", str(server.port), "-U", server.user)
    given = ("-X", "none", "--checkpoint=fast", "--no-sync")
    programs = embedded_binaries() or Path(program("postgres")).parent
    subprocess.run([programs / "pg_basebackup", *where, "-D", folder, *given], check=True, timeout=60)
    assert manifest(folder).problems == ()
    victims = sorted(path for path in (folder / "base").rglob("*") if path.is_file() and path.stat().st_size > 8192)
    changed, cut, missing = victims[:3]
    content = bytearray(changed.read_bytes())
    content[4000] ^= 1
    changed.write_bytes(content)
    with cut.open("r+b") as file:
        file.truncate(8192)
    missing.unlink()
    (folder / "base" / "added").touch()
    problems = manifest(folder).problems
    assert sorted(problem.partition(" ")[0] for problem in problems) == sorted(
        [*(str(path.relative_to(folder)) for path in (changed, cut, missing)), "base/added"]
    )
    text = (folder / "backup_manifest").read_bytes()
    (folder / "backup_manifest").write_bytes(text.replace(b'"Size": 8192', b'"Size": 8193', 1))
    assert manifest(folder).problems == ("the manifest is damaged",)


def test_an_index_without_rows_of_its_table_is_found() -> None:
    with debian_server(postgres_binaries()) as server:
        where = f"host={server.folder} port={server.port} user=admin dbname=app"
        with session(where) as connection:
            connection.execute("CREATE TABLE public.things (id int PRIMARY KEY)")
            connection.execute("INSERT INTO public.things SELECT generate_series(1, 10)")
            assert indexes(connection).problems == ()
            hide = "UPDATE pg_index SET indisready = {} WHERE indexrelid = 'public.things_pkey'::regclass"
            connection.execute(hide.format("false"))
            connection.execute("INSERT INTO public.things VALUES (11)")
            connection.execute(hide.format("true"))
            [problem] = indexes(connection).problems
            assert problem.startswith("public.things_pkey: ")
            assert tables(connection).problems == ()


def test_damaged_pages_of_a_table_and_of_its_toast_are_found_without_checksums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with debian_server(postgres_binaries()) as server:
        server.run("CREATE TABLE public.things (id int, note text)")
        server.run("ALTER TABLE public.things ALTER note SET STORAGE EXTERNAL")  # not compressed
        server.run("INSERT INTO public.things SELECT i, repeat('x', 5000) FROM generate_series(1, 300) i")
        server.run("CREATE TABLE public.others AS SELECT generate_series(1, 10000) AS id")
        toast = "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'public.things'::regclass"
        [(values,)], [(rows,)] = server.all(toast), server.all("SELECT pg_relation_filepath('public.others')")
        where = f"host={server.folder} port={server.port} user=admin dbname=app"
        with session(where) as connection:
            assert (tables(connection).problems, tables(connection).notes) == ((), ())
            monkeypatch.setattr(checks, "_LARGE_BYTES", 2**17)  # of larger tables, parts are read
            monkeypatch.setattr(checks, "_READ_BYTES", 2**16)
            assert tables(connection).problems == ()
            monkeypatch.undo()
        server.stop()
        server._tool("pg_checksums", "--disable", "-D", str(server.data))
        _overwrite(server.data / values, 8192 * 7, bytes(8192))
        _overwrite(server.data / rows, 8192 * 3 + 24, b"\xff\xff\xfe\xff")  # a pointer to beyond the page
        server.start()
        with session(where) as connection:
            assert [problem[: problem.index(",")] for problem in tables(connection).problems] == [
                "public.others: block 3",
                "public.things: block 0",
            ]


def _overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize(
    "error", [Unavailable("away"), psycopg.OperationalError("gone"), OSError("full"), TimeoutExpired("app", 60)]
)
def test_a_check_that_cannot_look_has_failed_and_names_why(error: Exception) -> None:
    now = datetime.now(UTC)
    drill = Drill("b", "c", "builtin", now, 180000, "1", "", 1, 1)

    def look() -> Found:
        raise error

    assert drill.check("good", lambda: Found("looked")).state == "ok"
    assert drill.check("none", lambda: Found(skipped="why")).state == "skipped"
    assert drill.problem is None
    assert drill.check("bad", look).state == "failed"
    assert drill.problem == f"bad: {error}"
