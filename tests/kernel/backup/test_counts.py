import os
import shutil
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

import app.kernel.backup.counts as counting
from app.kernel.backup import Backup, Count, Counts
from app.kernel.backup.counts import compare, take_counts
from app.kernel.backup.engine import Prepared
from app.kernel.backup.replay import Until, replaying
from app.kernel.db.devserver.embedded import embedded_binaries
from tests.conftest import PostgresServer, TestDatabase, create_database, program

TABLES = """
    CREATE SCHEMA s;
    CREATE TABLE s.hot (id bigserial PRIMARY KEY, n int);
    CREATE TABLE s.large (id bigserial PRIMARY KEY, t text);
    INSERT INTO s.large (t) SELECT repeat('x', 100) FROM generate_series(1, 40000);
    CREATE TABLE s.parts (day int, note text) PARTITION BY LIST (day);
    CREATE TABLE s.parts_1 PARTITION OF s.parts FOR VALUES IN (1);
    INSERT INTO s.parts SELECT 1 FROM generate_series(1, 7);
    CREATE UNLOGGED TABLE s.unlogged (n int);
    INSERT INTO s.unlogged VALUES (1);
    CREATE TABLE s."Odd ""name" (n int);
    INSERT INTO s."Odd ""name" VALUES (1), (2);
    CREATE TABLE s.inserted (n int);
    CREATE TABLE s.deleted (n int);
    INSERT INTO s.deleted SELECT generate_series(1, 5);
    CREATE FUNCTION public.spy(oid, regclass) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'run by the superuser of a drill'; END $$;
    CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = public.spy);
"""


def programs() -> Path:
    return embedded_binaries() or Path(program("postgres")).parent


@pytest.fixture
def database(own_postgres: PostgresServer) -> TestDatabase:
    made = create_database(own_postgres)
    made.run(TABLES)
    return made


@contextmanager
def writing(database: TestDatabase) -> Generator[None]:
    """Write, delete and vacuum all the time, in four sessions."""
    stopping = threading.Event()

    def write() -> None:
        with psycopg.connect(database.conninfo, autocommit=True) as connection:
            while not stopping.is_set():
                for _ in range(20):
                    connection.execute("INSERT INTO s.hot (n) VALUES (1)")
                connection.execute("DELETE FROM s.hot WHERE id % 7 = 0 AND id < (SELECT max(id) FROM s.hot) - 50")
                connection.execute("INSERT INTO s.large (t) SELECT 'y' FROM generate_series(1, 10)")
                connection.execute("DELETE FROM s.large WHERE id IN (SELECT id FROM s.large LIMIT 5)")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


@contextmanager
def paused(database: TestDatabase, copy: Path, lsn: str) -> Iterator[str]:
    """Run a copy that has replayed WAL from the folder of its server up to a position; yield how to connect."""

    @contextmanager
    def wal() -> Generator[str]:
        archive = copy.parent / "archive"
        shutil.copytree(next(database.server.folder.rglob("pg_wal")), archive, dirs_exist_ok=True)
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"--reference={copy}", archive], check=True)
        yield f"cp {archive}/%f %p 2>/dev/null"

    now = datetime.now(UTC)
    backup = Backup("b", "c", "test", now, now, 1, "0/0", "0/0", 180000, "0", "", database.name, 0, 0)
    with replaying(Prepared(backup, copy, programs(), wal), Until(lsn=lsn), action="pause") as (server, replayed):
        assert replayed.is_reached
        yield server.conninfo(database.name)


def test_counts_are_those_of_a_copy_at_their_position_under_load(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_LARGE_BYTES", 2**21)
    monkeypatch.setattr(counting, "_READ_BYTES", 2**19)
    copy, server = tmp_path / "copy", database.server
    where = ("-h", server.host, "-p", str(server.port), "-U", server.user)
    oldest = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    with writing(database):
        [(since,)] = database.all(oldest)
        given = ("-X", "fetch", "--checkpoint=fast", "--no-sync")
        subprocess.run([programs() / "pg_basebackup", *where, "-D", copy, *given], check=True, timeout=60)
        counts = take_counts(database.conninfo, since)
    with ExitStack() as open_:
        inserting, deleting = (open_.enter_context(psycopg.connect(database.conninfo)) for _ in range(2))
        inserting.execute("INSERT INTO s.inserted SELECT generate_series(1, 9)")
        deleting.execute("SELECT FROM s.parts_1 WHERE ctid < '(0,3)' FOR KEY SHARE")
        inserting.execute("UPDATE s.parts_1 SET note = 'locked by the other, too' WHERE ctid < '(0,3)'")
        for writer in (inserting, deleting):  # a snapshot does not name subtransactions
            writer.execute("SAVEPOINT here")
        inserting.execute("INSERT INTO s.hot (n) VALUES (-1)")
        deleting.execute("DELETE FROM s.deleted WHERE n < 3")
        database.run("SELECT pg_current_xact_id()")  # so that they are among the older ones
        unseeing = take_counts(database.conninfo, since)
    later = take_counts(database.conninfo, since)
    database.run("INSERT INTO s.inserted VALUES (1)")
    latest = take_counts(database.conninfo, since)
    for _ in range(2):
        database.run("SELECT pg_logical_emit_message(false, 'test', 'something after the last position')")
    rows = {count.table: count for count in counts.tables}
    assert rows["s.parts_1"].rows == 7
    assert rows['s."Odd ""name"'].rows == 2
    assert rows["s.large"].percent < 100 == rows["s.hot"].percent
    assert not rows.keys() & {"s.parts", "s.unlogged"}

    with paused(database, copy, counts.lsn) as there:
        found = compare(there, counts)
        assert (found.problems, found.tables) == ((), len(counts.tables))
        assert all("hot" in note or "large" in note for note in found.notes)
        # rows that nobody deleted, and rows that nobody inserted
        errors = {"s.parts_1": -1, 's."Odd ""name"': 1_000_000}
        wrong = [replace(count, rows=count.rows + errors.get(count.table, 0)) for count in counts.tables]
        found = compare(there, replace(counts, tables=(*wrong, Count("s.gone", 1))))
        assert found.problems == (
            's."Odd ""name" has 2 rows in place of 1,000,002',
            "s.parts_1 has 7 rows in place of 6",
            "s.gone does not exist",
        )

    with paused(database, copy, later.lsn) as there:
        found = compare(there, unseeing)
        assert found.problems == ()
        hot = next(count.rows for count in unseeing.tables if count.table == "s.hot")
        assert found.notes == tuple(
            f"{table} has {here:,} rows in place of {rows:,}: the snapshot did not see 3 transactions of that moment"
            for table, here, rows in (("s.deleted", 3, 5), ("s.hot", hot + 1, hot), ("s.parts_1", 5, 7))
        )
        found = compare(there, latest)
        assert found.problems == ()
        [note] = found.notes
        assert note.startswith("s.inserted has 9 rows in place of 10: 2 transactions that were counted are not in")
        # they explain what those transactions have touched, and no other loss
        # of s.large a sample was counted, in which are rows of that time or not
        unchanged = {count.table for count in latest.tables if not count.recent} - {"s.large"}
        assert unchanged == {"s.deleted", 's."Odd ""name"'}
        for taken, tables in ((unseeing, rows.keys()), (latest, unchanged)):
            lost = {count.table: max(1, count.rows // 10) for count in taken.tables if count.table in tables}
            wrong = [replace(count, rows=count.rows + lost.get(count.table, 0)) for count in taken.tables]
            found = compare(there, replace(taken, tables=tuple(wrong)))
            assert {problem.partition(" has ")[0] for problem in found.problems} == lost.keys()


def test_tables_that_change_their_file_or_are_locked_or_go_away_are_left_out_and_nobody_waits(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_LOCK_S", 0.2)
    count_all, steps = counting._counted, iter(("TRUNCATE s.deleted", "DROP TABLE s.inserted", ""))

    def meanwhile(*given: object) -> Count | None:
        if step := next(steps, ""):
            started = time.monotonic()
            database.run(step)
            assert time.monotonic() - started < 5
        return count_all(*given)

    monkeypatch.setattr(counting, "_counted", meanwhile)
    with psycopg.connect(database.conninfo) as locking:
        locking.execute("LOCK TABLE s.parts_1 IN ACCESS EXCLUSIVE MODE")
        counts: Counts = take_counts(database.conninfo, 3)
    assert {count.table for count in counts.tables} == {"s.hot", "s.large", 's."Odd ""name"'}
