"""Faults of a PostgreSQL server as operators run one, and the command as they call it."""

import asyncio
import contextlib
import json
import re
import shlex
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.composition import checks
from tests.commands.outcome import refused
from tests.commands.terminal import terminal
from tests.conftest import required
from tests.kernel.doctor.planted import Planted
from tests.kernel.doctor.test_machine import GOOD, PRODUCTION
from tests.support.backups import GOOD as GOOD_BACKUPS
from tests.support.backups import record
from tests.support.debian import Authority, DebianServer, debian_server, free_port, installed
from tests.support.project import Project, eventually


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianServer]:
    """A server with TLS, and our schema in it."""
    binaries = installed(15)
    if binaries is None:
        required("PostgreSQL 15")
    with debian_server(binaries, max_prepared_transactions="5", wal_level="replica") as found:
        found.certify(authority, "localhost", "127.0.0.1", days=60)
        done = Project(Path.cwd(), tmp_path_factory.mktemp("up"), dict(found.env)).app("migrate", "up")
        assert done.returncode == 0, done.stderr
        with found.connect("app") as connection:
            record(connection, *GOOD_BACKUPS)
        found.run("ALTER ROLE app REPLICATION")
        set_again(found, "max_slot_wal_keep_size", "'5GB'")
        yield found


@pytest.fixture
async def planted(server: DebianServer, authority: Authority, tmp_path: Path) -> AsyncIterator[Planted]:
    """A deployment for production that is healthy before, and after its fault is gone."""
    env = {**PRODUCTION, **server.env, "POSTGRES_SSL": "verify-full", "POSTGRES_SSL_ROOT_CERT": str(authority.file)}
    found = Planted(tmp_path / "data", env)
    silent = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    found.env["SENTINEL_NOTIFY_URLS"] = f"json://127.0.0.1:{silent.sockets[0].getsockname()[1]}/"
    async with silent:
        assert await found.examine() == {}
        yield found
        assert await found.examine() == {}


pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


async def test_a_healthy_production_has_no_findings(planted: Planted) -> None:
    assert await planted.examine() == {}
    here = {"backup-target", "backup-machine"}  # no target
    assert planted.skipped == {"tls", "embedded", "collector", "nats", "redis", "replicas"} | here


# Reachable


@pytest.mark.parametrize(
    ("env", "reason", "fix"),
    [
        ({"POSTGRES_PORT": "CLOSED"}, "Connection refused", "pg_isready -h 127.0.0.1"),
        ({"POSTGRES_DIRECT_HOST": "127.0.0.2"}, "Connection refused", "pg_isready -h 127.0.0.2"),
        ({"POSTGRES_PASSWORD": GOOD}, "password authentication failed", "psql -h 127.0.0.1"),
        ({"POSTGRES_DB": "gone"}, 'database "gone" does not exist', "createdb -h 127.0.0.1"),
        ({"POSTGRES_SSL_ROOT_CERT": "OTHER"}, "certificate verify failed", "openssl s_client -starttls postgres"),
    ],
)
async def test_a_server_that_refuses_is_found(
    planted: Planted, tmp_path: Path, env: dict[str, str], reason: str, fix: str
) -> None:
    healthy = dict(planted.env)
    real = {"CLOSED": str(free_port()), "OTHER": str(Authority(tmp_path, "other").file)}
    planted.env |= {name: real.get(value, value) for name, value in env.items()}
    found = await planted.examine()
    assert found.keys() == {"postgresql"}
    assert found["postgresql"][0] == "fail"
    assert reason in found["postgresql"][1]
    assert planted.findings[0].fix.startswith(fix)
    assert {"migrations", "queues", "clock"} <= planted.skipped
    planted.env = healthy


async def test_a_server_without_tls_is_found(planted: Planted, server: DebianServer) -> None:
    server.set_ssl("off")
    found = await planted.examine()
    assert found.keys() == {"postgresql"}
    assert "does not support SSL" in found["postgresql"][1]
    server.set_ssl("on")


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(content)) + content


async def old_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak the protocol of PostgreSQL 14.9, and answer every query with one row."""
    ready, identity = message(b"Z", b"I"), (b"1", b"1700000000", b"5")
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            size, code = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(size - 8)
            if code != 80877103:  # SSLRequest
                break
            writer.write(b"N")
        version = message(b"S", b"server_version\x0014.9\x00")
        writer.write(message(b"R", bytes(4)) + version + message(b"K", struct.pack("!II", 1, 1)) + ready)
        columns = b"".join(b"c\x00" + struct.pack("!IHIhiH", 0, 0, 23, 4, -1, 0) for _ in identity)
        row = b"".join(struct.pack("!I", len(value)) + value for value in identity)
        while await reader.readexactly(1) == b"Q":
            await reader.readexactly(struct.unpack("!I", await reader.readexactly(4))[0] - 4)
            count = struct.pack("!H", len(identity))
            answer = message(b"T", count + columns) + message(b"D", count + row) + message(b"C", b"SELECT 1\x00")
            writer.write(answer + ready)
    writer.close()


async def test_postgresql_14_is_found_and_no_process_starts_on_it(tmp_path: Path, cli: Project) -> None:
    async with await asyncio.start_server(old_server, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        old = Planted(tmp_path / "data", {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(port)})
        found = await old.examine()
        assert found.keys() == {"postgresql"}
        assert found["postgresql"][1].endswith("is version 14; 15 or newer is needed")
        cli.env |= old.env
        done = await asyncio.to_thread(cli.app, "run-cron-manager", "--port", "0")
    assert done.returncode == 78
    assert f"PostgreSQL at 127.0.0.1:{port} is version 14; 15 or newer is needed" in done.stderr


# Settings


def set_again(server: DebianServer, name: str, value: str | None) -> None:
    server.run(f"ALTER SYSTEM RESET {name}" if value is None else f"ALTER SYSTEM SET {name} = {value}", "postgres")
    server.run("SELECT pg_reload_conf()", "postgres")
    expected = "on" if value is None else value
    eventually(lambda: server.all(f"SHOW {name}", "postgres") == [(expected.strip("'"),)])


def as_admin(server: DebianServer, fix: str) -> str:
    """Return a remedy as the administrator of this server would give it."""
    return fix.replace("-U postgres", f"-h {server.folder} -p {server.port} -U admin", 1).replace(
        "psql", "psql -q" + ("" if " -d " in fix else " -d postgres"), 1
    )


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("fsync", "fail"),
        ("full_page_writes", "fail"),
        ("autovacuum", "fail"),
        ("track_counts", "fail"),
        ("synchronous_commit", "warn"),
    ],
)
async def test_a_setting_of_the_server_that_hurts_is_found_and_the_remedy_sets_it_back(
    planted: Planted, server: DebianServer, name: str, level: str
) -> None:
    set_again(server, name, "off")
    found = await planted.examine()
    assert found.keys() == {"postgresql-settings"}
    assert found["postgresql-settings"][0] == level
    assert found["postgresql-settings"][1].startswith(f"{name} is off (configuration file)")
    planted.apply(as_admin(server, planted.findings[0].fix))
    eventually(lambda: server.all(f"SHOW {name}", "postgres") == [("on",)])


async def test_a_setting_of_the_role_that_hurts_is_found_and_the_remedy_resets_it(
    planted: Planted, server: DebianServer
) -> None:
    server.run("ALTER ROLE app SET default_transaction_read_only = on", "postgres")
    server.run("ALTER ROLE app SET synchronous_commit = off", "postgres")
    found = await planted.examine()
    assert found.keys() == {"postgresql-settings"}
    assert [(f.level, f.problem.split()[0]) for f in planted.findings] == [
        ("fail", "default_transaction_read_only"),
        ("warn", "synchronous_commit"),
    ]
    server.run("ALTER ROLE app RESET default_transaction_read_only", "postgres")
    planted.apply(planted.findings[1].fix)


async def test_a_database_that_is_not_in_utf_8_is_found(planted: Planted, server: DebianServer) -> None:
    server.run("CREATE DATABASE latin OWNER app ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", "postgres")
    planted.env["POSTGRES_DB"] = "latin"
    found = await planted.examine("postgresql-settings")
    assert found == {"postgresql-settings": ("fail", "the encoding of the database is LATIN1, not UTF8")}
    planted.env["POSTGRES_DB"] = "app"


async def test_a_server_without_data_checksums_is_found_and_the_remedy_enables_them(
    planted: Planted, server: DebianServer
) -> None:
    server.stop()
    server._tool("pg_checksums", "--disable", "-D", str(server.data))
    server.start()
    found = await planted.examine()
    assert found.keys() == {"postgresql-settings"}
    assert found["postgresql-settings"][0] == "warn"
    assert found["postgresql-settings"][1].startswith("data_checksums is off: pages that the disk has damaged are read")
    server.stop()
    server._tool(*shlex.split(planted.findings[0].fix.replace("$PGDATA", str(server.data)), comments=True))
    server.start()
    assert server.all("SHOW data_checksums") == [("on",)]


# Replication


async def test_a_replication_slot_that_nobody_reads_is_found(planted: Planted, server: DebianServer) -> None:
    server.run("SELECT pg_create_physical_replication_slot('backup', true)")
    found = await planted.examine()
    assert found.keys() == {"replication"}
    assert found["replication"][0] == "warn"
    assert "nobody reads the replication slot backup" in found["replication"][1]
    assert "pg_drop_replication_slot" in planted.findings[0].fix
    server.run("SELECT pg_drop_replication_slot('backup')")


async def test_a_server_without_what_backups_need_is_found_and_the_remedy_gives_it(
    planted: Planted, server: DebianServer
) -> None:
    server.run("ALTER ROLE app NOREPLICATION")
    found = await planted.examine()
    assert found == {"backup-server": ("fail", "the role app may take no backups: it lacks REPLICATION")}
    planted.apply(as_admin(server, planted.findings[0].fix))
    set_again(server, "max_slot_wal_keep_size", "-1")
    found = await planted.examine()
    assert found.keys() == {"backup-server"}
    assert found["backup-server"][0] == "warn"
    planted.apply(as_admin(server, planted.findings[0].fix))
    eventually(lambda: server.all("SHOW max_slot_wal_keep_size", "postgres") == [("20GB",)])
    planted.env["BACKUP_WAL"] = "archive"
    server.run("SELECT pg_create_physical_replication_slot('app_backup_app', true)")
    found = await planted.examine("backup-server")
    assert found["backup-server"][1].startswith("the replication slot app_backup_app is unused and keeps WAL")
    planted.apply(planted.findings[0].fix)
    found = await planted.examine("backup-server")
    assert found == {"backup-server": ("fail", "archive_mode is off, so no WAL is stored")}
    planted.apply(as_admin(server, planted.findings[0].fix))
    server.stop()
    server.start()
    assert await planted.examine("backup-server") == {
        "backup-server": ("warn", "archive_timeout is 0: WAL is not stored until a segment is full")
    }
    for name in ("archive_mode", "archive_command"):
        server.run(f"ALTER SYSTEM RESET {name}")
    server.stop()
    server.start()
    del planted.env["BACKUP_WAL"]


async def test_a_machine_that_takes_backups_and_may_not_replicate_is_given_the_line_that_allows_it(
    planted: Planted, server: DebianServer, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    planted.env |= {"BACKUP_TARGET": str(tmp_path / "target"), "BACKUP_KEY": "t7Qp2xWm9LzR4vBn8KcF3yHd6JsG1aTe"}
    found = await planted.examine("backup-server")
    assert found["backup-server"][0] == "fail"
    line = re.search(r"add to its pg_hba\.conf, and reload it: (host replication app .+)", found["backup-server"][1])
    assert line
    access = server.data / "pg_hba.conf"
    before = access.read_text()
    access.write_text(f"{before}{line[1]}\n")
    planted.apply(as_admin(server, planted.findings[0].fix))
    assert await planted.examine("backup-server") == {}
    access.write_text(before)
    del planted.env["BACKUP_TARGET"]


async def test_a_standby_is_found_and_the_slot_that_it_kept_as_a_primary(
    planted: Planted, server: DebianServer
) -> None:
    server.run("SELECT pg_create_physical_replication_slot('app_backup_app', true)")
    server.stop()
    (server.data / "standby.signal").touch()
    server.start()
    found = await planted.examine()
    assert found.keys() == {"replication"}
    assert found["replication"] == ("fail", "the server is a standby, which takes no changes")
    _, kept = planted.findings
    assert "of WAL for backups, which come from the primary: the replication slot app_backup_app" in kept.problem
    planted.apply(as_admin(server, kept.fix))
    await planted.examine()
    assert len(planted.findings) == 1
    server.stop()
    (server.data / "standby.signal").unlink()
    server.start()


# Privileges


async def test_a_superuser_is_found_in_production_and_the_remedy_makes_it_an_ordinary_role(
    planted: Planted, server: DebianServer
) -> None:
    server.run("ALTER ROLE app SUPERUSER", "postgres")
    found = await planted.examine()
    assert found.keys() == {"privileges"}
    assert found["privileges"][0] == "warn"
    planted.apply(planted.findings[0].fix)


async def test_a_role_that_cannot_migrate_is_found(planted: Planted, server: DebianServer) -> None:
    server.run("ALTER SCHEMA auth OWNER TO admin")
    server.run("GRANT ALL ON SCHEMA auth TO app")
    found = await planted.examine()
    assert found == {"privileges": ("fail", "the schema auth belongs to admin, so app cannot migrate it")}
    planted.apply(as_admin(server, planted.findings[0].fix))
    server.run("ALTER DATABASE app OWNER TO admin", "postgres")
    assert (await planted.examine()).keys() == {"privileges"}
    assert "lacks CREATE on schema public" in planted.findings[0].problem
    assert "lacks CREATE on database" in planted.findings[1].problem
    for finding in planted.findings:
        planted.apply(as_admin(server, finding.fix))
    assert await planted.examine() == {}
    server.run("ALTER DATABASE app OWNER TO app", "postgres")


async def test_a_role_with_few_connections_is_found(planted: Planted, server: DebianServer) -> None:
    server.run("ALTER ROLE app CONNECTION LIMIT 5", "postgres")
    found = await planted.examine()
    assert found.keys() == {"privileges", "connections"}
    server.run("ALTER ROLE app CONNECTION LIMIT -1", "postgres")


# Certificates


async def test_a_certificate_that_ends_soon_or_has_ended_is_found(
    planted: Planted, server: DebianServer, authority: Authority
) -> None:
    server.certify(authority, "localhost", "127.0.0.1", days=5)
    server.run("SELECT pg_reload_conf()", "postgres")
    found: dict[str, Any] = {}
    for _ in range(50):
        if found := await planted.examine():
            break
    assert found.keys() == {"certificates"}
    assert found["certificates"][0] == "warn"
    server.certify(authority, "localhost", "127.0.0.1", days=-1)
    server.run("SELECT pg_reload_conf()", "postgres")
    planted.env["POSTGRES_SSL"] = "require"
    for _ in range(50):
        if (found := await planted.examine())["certificates"][0] == "fail":
            break
    assert found.keys() == {"certificates"}
    assert "expired at" in found["certificates"][1]
    server.certify(authority, "localhost", "127.0.0.1", days=60)
    server.run("SELECT pg_reload_conf()", "postgres")
    planted.env["POSTGRES_SSL"] = "verify-full"
    for _ in range(50):
        if not await planted.examine():
            break


async def test_a_missing_certificate_of_the_authority_is_found(planted: Planted, tmp_path: Path) -> None:
    before = planted.env["POSTGRES_SSL_ROOT_CERT"]
    planted.env["POSTGRES_SSL_ROOT_CERT"] = str(tmp_path / "gone.crt")
    found = await planted.examine()
    assert found.keys() == {"postgresql", "certificates"}
    assert "No such file" in found["certificates"][1]
    planted.env["POSTGRES_SSL_ROOT_CERT"] = before


# Snapshots


async def test_a_forgotten_prepared_transaction_is_found_and_the_remedy_ends_it(
    planted: Planted, server: DebianServer
) -> None:
    where = {key.removeprefix("POSTGRES_").lower(): value for key, value in server.env.items()}
    with psycopg.connect(dbname=where.pop("db"), **where, autocommit=True) as connection:
        connection.execute("BEGIN; CREATE TABLE forgotten (id int); PREPARE TRANSACTION 'left-behind'")
    planted.env["SENTINEL_HELD_SNAPSHOT"] = "1s"
    await asyncio.sleep(1.1)
    found = await planted.examine()
    assert found.keys() == {"snapshots"}
    assert "the prepared transaction left-behind" in found["snapshots"][1]
    planted.apply(planted.findings[0].fix)


# The command


@pytest.fixture
def command(cli: Project, planted: Planted) -> Project:
    cli.env |= planted.env | {"HTTP_SERVER_PORT": "0", "OPERATIONS_PORT": "0"}
    return cli


def test_the_command_of_a_healthy_system_is_short_and_exits_0(command: Project) -> None:
    done = command.app("doctor", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "fail" not in done.stdout
    assert "warn" not in done.stdout
    counted = re.fullmatch(r"APP_ENV=production: (\d+) checks: (\d+) skipped, (\d+) ok", done.stdout.splitlines()[-1])
    assert counted is not None, done.stdout
    assert int(counted[1]) == int(counted[2]) + int(counted[3]) == len(checks())


def test_warnings_exit_0_failures_1_and_each_has_its_remedy_on_a_line(command: Project) -> None:
    done = command.app("doctor", "--json", env={"HTTP_SERVER_TRUSTED_PROXIES": "", "SENTINEL_NOTIFY_URLS": ""})
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert (found["environment"], found["status"]) == ("production", "warn")
    skipped = sum(check["status"] == "skip" for check in found["checks"])
    assert found["counts"] == {"ok": len(found["checks"]) - 2 - skipped, "warn": 2, "fail": 0, "skip": skipped}
    assert {c["name"] for c in found["checks"] if c["findings"]} == {"issuer", "notifications"}
    done = command.app(
        "doctor", env={"HTTP_SERVER_TRUSTED_PROXIES": "0.0.0.0/0", "POSTGRES_PASSWORD": "hunter2-hunter3"}
    )
    assert done.returncode == 1
    assert "hunter2" not in done.stdout
    lines = done.stdout.splitlines()
    marked = [number for number, line in enumerate(lines) if " fail " in line]
    assert len(marked) == 2
    assert all(lines[number + 1].startswith("         fix: ") for number in marked)


def test_a_wrong_name_of_a_check_is_refused_with_the_nearest(cli: Project) -> None:
    assert refused(cli.app("doctor", "--only", "partition"), 67) == (
        "app: there is no check partition; did you mean partitions?"
    )


def test_invalid_settings_fail_whatever_is_chosen(cli: Project) -> None:
    done = cli.app("doctor", "--only", "backup", env={"BACKUP_KEEP": "1m"})
    assert done.returncode == 1
    assert "settings: backup.keep (BACKUP_KEEP): expected 1d to 3650d" in done.stdout


def test_the_clock_is_compared_with_that_of_the_database(command: Project) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        required("faketime")
    ahead = {"LD_PRELOAD": str(library), "FAKETIME": "+65", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    done = command.app("doctor", "--only", "clock", env=ahead)
    assert done.returncode == 1
    assert "clock: the clock is 65 s ahead of that of the database" in done.stdout
    assert "fix: timedatectl set-ntp true" in done.stdout


def test_on_a_terminal_lines_fit_and_fix_asks(cli: Project, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(GOOD)
    secret.chmod(0o666)
    cli.env |= {"AUTH_MASTER_SECRET_FILE": str(secret), "HTTP_SERVER_PORT": "0", "OPERATIONS_PORT": "0"}
    arguments = ["doctor", "--only", "permissions", "--fix"]
    assert "confirm with --yes" in misused_at_end(cli.app(*arguments, "--no-input"))
    assert secret.stat().st_mode & 0o777 == 0o666
    for answer, said, mode in (("n", "not confirmed; nothing was changed", 0o666), ("y", "fixed: ", 0o600)):
        with terminal(cli, *arguments) as opened:
            opened.expect("Do this? [y/N]: ")
            opened.type(f"{answer}\n")
            opened.wait()
            assert said in opened.seen
        assert secret.stat().st_mode & 0o777 == mode
    with terminal(cli, "doctor", "--only", "proxies", env={"HTTP_SERVER_TRUSTED_PROXIES": "0.0.0.0/0"}) as opened:
        assert opened.wait() == 1
    shown = re.sub("\x1b\\[[0-9]*m", "", opened.seen).splitlines()
    assert len(shown) > 5
    assert max(len(line) for line in shown if "fix:" not in line) <= 80
    assert secret.stat().st_mode & 0o777 == 0o600
    again = cli.app(*arguments, "--yes")
    assert (again.returncode, again.stderr) == (0, "")


def misused_at_end(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2
    return done.stderr.splitlines()[-1]


def test_the_embedded_server_is_not_started(cli: Project, tmp_path: Path) -> None:
    copy = cli.copy(tmp_path / "copy")
    done = copy.app("doctor", env={"APP_ENV": "local", "HTTP_SERVER_PORT": "0", "OPERATIONS_PORT": "0"})
    assert done.returncode == 0, done.stdout
    assert "the embedded PostgreSQL does not run now" in done.stdout
    assert not (copy.root / ".local").exists()
