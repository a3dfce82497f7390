"""Taking backups by the command: what the server must allow, what stops it, and that only whole ones are listed."""

import json
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.kernel.product import NAME
from tests.commands.outcome import refused
from tests.conftest import TestDatabase, required
from tests.support.backups import add_of_another_cluster
from tests.support.debian import Authority, DebianServer, debian_server, installed
from tests.support.project import Project, eventually

UNDER_WAY = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000"
SLOTS = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '{NAME}_2%%'"
SLOW = "--max-rate=3000000"


@pytest.fixture
def backing_up(project: Project, tmp_path: Path) -> Project:
    (tmp_path / "target").mkdir()
    project.env["BACKUP_TARGET"] = str(tmp_path / "target")
    return project


def listed(project: Project) -> list[dict[str, object]]:
    done = project.app("backup", "list", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["items"]


def created(project: Project) -> dict[str, object]:
    done = project.app("backup", "create", "--json", "--no-input")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_backup_is_listed_shown_verified_and_recorded(backing_up: Project, database: TestDatabase) -> None:
    made = created(backing_up)
    assert [one["id"] for one in listed(backing_up)] == [made["id"]]
    assert (made["state"], made["database"], made["timeline"]) == ("whole", database.name, 1)
    [(cluster, schema)] = database.all(
        "SELECT system_identifier::text, (SELECT max(migration_id) FROM _migrations) FROM pg_control_system()"
    )
    assert (made["cluster"], made["schema"]) == (cluster, schema)
    shown = json.loads(backing_up.app("backup", "show", str(made["id"])[:12], "--json").stdout)
    assert shown["counts"]["tables"], "rows of tables were counted"
    verified = backing_up.app("backup", "verify", "--all", "--json")
    assert json.loads(verified.stdout)["items"][0]["problems"] == [], verified.stdout
    runs = "SELECT kind, state, backup_id, problem FROM kernel.backup_runs ORDER BY id"
    good = [("backup", "succeeded", made["id"], None), ("verify", "succeeded", None, None)]
    assert database.all(runs) == good
    add_of_another_cluster(Path(backing_up.env["BACKUP_TARGET"]))
    status = json.loads(backing_up.app("backup", "status", "--json").stdout)
    assert (status["newest"]["id"], status["cluster"], status["backups"]) == (made["id"], cluster, 1)
    assert status["backups_of_other_clusters"] == 1
    assert status["used_bytes"] >= made["stored_bytes"]
    base = Path(backing_up.env["BACKUP_TARGET"], "backups", cluster, str(made["id"]), "base.tar.zst.sealed")
    base.write_bytes(base.read_bytes()[:-1])
    assert backing_up.app("backup", "verify", "--all").returncode == 1
    [*before, last] = database.all(runs)
    assert (before, last[:2]) == (good, ("verify", "failed"))
    assert "are damaged" in last[3]


def test_status_reports_what_is_recorded_and_no_longer_on_the_target(
    backing_up: Project, database: TestDatabase
) -> None:
    def attention() -> list[str]:
        return json.loads(backing_up.app("backup", "status", "--json").stdout)["attention"]

    older, newest = created(backing_up), created(backing_up)
    database.run(
        "INSERT INTO kernel.backup_wal (cluster, timeline, lsn, stored_at, runner) VALUES (%s, 1, %s, now(), 'agent')",
        older["cluster"],
        older["start_lsn"],
    )
    target = Path(backing_up.env["BACKUP_TARGET"])
    [no_wal] = attention()
    assert no_wal.startswith(f"WAL is recorded as stored until {older['start_lsn']}, but not on {target}"), no_wal
    Path(target, "backups", str(newest["cluster"]), str(newest["id"]), "backup.json").unlink()
    assert attention() == [no_wal, f"the newest backup, {newest['id']}, is not on {target}"]
    real = {"POSTGRES_PASSWORD": secrets.token_hex(), "BACKUP_KEY": secrets.token_hex()}
    backing_up.env |= {"APP_ENV": "staging", **real}
    assert "no schedule takes backups: start app run-cron-manager" in attention()


def test_whatever_stops_a_backup_it_is_not_listed_and_the_next_one_works(
    backing_up: Project, database: TestDatabase, tmp_path: Path
) -> None:
    for number, status in ((signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        running = backing_up.start("backup", "create", SLOW)
        eventually(lambda: database.all(UNDER_WAY) == [(1,)])
        if number == signal.SIGTERM:
            line = refused(backing_up.app("backup", "create"), 75)
            assert f":{running.pid} since" in line, "it says who runs"
        running.signal(number)
        assert running.wait() == status, running.said()
        assert running.errors.read_text().endswith("interrupted\n") == (status == 130)
        eventually(lambda: database.all("SELECT count(*) FROM pg_stat_progress_basebackup") == [(0,)])
        eventually(lambda: database.all(SLOTS) == [(0,)])
        assert listed(backing_up) == []
    left = [path.name for path in (tmp_path / "target").rglob("*") if path.is_file()]
    assert len(left) <= 1, "only what was killed leaves an upload, which is no object"
    created(backing_up)
    assert len(listed(backing_up)) == 1
    problems = database.all("SELECT problem FROM kernel.backup_runs ORDER BY started_at")
    assert problems == [("it was stopped",), ("it was stopped",), ("its process ended",), (None,)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["list", "status"])
def test_a_second_signal_ends_a_command_that_waits_for_a_target_that_hangs(
    cli: Project, command: str, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        endpoint = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        cli.env |= {"BACKUP_TARGET": "s3://b", "BACKUP_S3_ENDPOINT": endpoint, "BACKUP_S3_REGION": "x"}
        cli.env |= {"BACKUP_S3_ACCESS_KEY": "a", "BACKUP_S3_SECRET_KEY": "b"}
        running = cli.start("backup", command)
        hanging.settimeout(30)
        connection, _ = hanging.accept()
        with connection:
            running.signal(number)
            running.signal(number)  # within a moment: not a second one
            eventually(lambda: "a second signal (Ctrl-C) stops at once" in running.errors.read_text())
            assert running.popen.poll() is None
            running.signal(number)
            assert running.wait() == 130, running.said()
    assert running.errors.read_text().endswith("interrupted at once, without cleaning up\n")


def test_a_backup_with_a_rate_has_no_threads_that_compress(backing_up: Project, database: TestDatabase) -> None:
    running = backing_up.start("backup", "create", SLOW)
    eventually(lambda: database.all(UNDER_WAY) == [(1,)])
    assert len(list(Path(f"/proc/{running.pid}/task").iterdir())) <= 3  # without a rate 6, on two processors
    running.signal(signal.SIGTERM)
    assert running.wait() == 130, running.said()


def test_what_is_no_file_is_not_waited_for_as_wal(cli: Project, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "000000010000000000000007")
    assert "is no file" in refused(cli.app("backup", "archive-wal", str(tmp_path / "000000010000000000000007")), 65)


@pytest.fixture
def debian(cli: Project, tmp_path: Path) -> Iterator[tuple[Project, DebianServer]]:
    """The project on Debian's server, as an operator finds it: over TCP, with a password, without rights."""
    binaries = installed(15)
    if binaries is None:
        required("PostgreSQL 15")
    assert binaries is not None
    (tmp_path / "target").mkdir()
    with debian_server(binaries, fsync="off", wal_level="replica", max_wal_senders="2") as server:
        cli.env |= server.env | {"BACKUP_TARGET": str(tmp_path / "target")}
        done = cli.app("migrate", "up")
        assert done.returncode == 0, done.stderr
        yield cli, server


def test_a_server_that_does_not_allow_it_is_refused_with_the_remedy(debian: tuple[Project, DebianServer]) -> None:
    project, server = debian

    def fails(status: int) -> str:
        done = project.app("backup", "create")
        assert server.password not in done.stderr
        return refused(done, status) + done.stderr

    assert "ALTER ROLE" in fails(77)
    server.run("ALTER ROLE app REPLICATION", "postgres")
    assert "host replication app" in fails(78)
    access = server.data / "pg_hba.conf"
    access.write_text("host replication app 127.0.0.1/32 scram-sha-256\n" + access.read_text())
    server.run("SELECT pg_reload_conf()", "postgres")
    with replicating(server), replicating(server):
        assert "max_wal_senders" in fails(69)
    authority = Authority(project.scratch, "authority")
    server.certify(authority, "localhost")
    project.env |= {"POSTGRES_SSL": "verify-full", "POSTGRES_SSL_ROOT_CERT": str(authority.file)}
    project.env["POSTGRES_HOST"] = f"localhost:1,localhost:{server.port}"
    made = created(project)
    assert str(made["server_version"]).startswith("15.")
    verified = project.app("backup", "verify", "--all")
    assert verified.returncode == 0, verified.stdout
    place = server.folder / "space"
    server._tool("initdb", "-D", str(place), "--no-sync")  # makes a folder of the right owner
    for path in sorted(place.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    server.run(f"CREATE TABLESPACE elsewhere LOCATION '{place}'", "postgres")
    assert "pgbackrest" in fails(78)
    assert len(listed(project)) == 1


def replicating(server: DebianServer) -> psycopg.Connection:
    """Take a WAL sender."""
    return psycopg.connect(
        host=str(server.folder),
        port=server.port,
        user="admin",
        dbname="postgres",
        replication="database",
        autocommit=True,
    )
