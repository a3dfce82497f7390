"""The engine `managed`, with a provider that keeps plain copies, and with commands that misbehave."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from app.kernel.backup import BackupInvalid, TargetUnavailable
from app.kernel.backup.engine import Progress, Restore, Stopped
from app.kernel.backup.managed import Address, Managed
from app.kernel.backup.observing import observe
from app.kernel.config import BackupSettings, Misconfigured, load
from app.kernel.errors import Denied, NotFound, Refusal
from app.processes import sections
from tests.conftest import TestDatabase, required
from tests.kernel.backup import provider
from tests.support.debian import DebianServer, debian_server, installed
from tests.support.project import ROOT, Project

SILENT = Progress(lambda _name, _size: lambda _done: None)
NOW = datetime.now(UTC)


def settings(**changes: str) -> BackupSettings:
    return replace(load(ROOT, sections(), {"APP_ENV": "test"})[BackupSettings], engine="managed", **changes)


def printing(value: object) -> Managed:
    """Return the engine whose provider prints a value, as JSON unless it is a text."""
    text = value if isinstance(value, str) else json.dumps(value)
    return Managed(settings(managed_status=shlex.join([sys.executable, "-c", f"print({text!r})"])))


def running(code: str, **changes: str) -> Managed:
    command = shlex.join([sys.executable, "-c", code])
    return Managed(settings(managed_status=command, managed_restore=command, **changes), ("POSTGRES_", "BACKUP_"))


def taken(name: str, at: datetime = NOW, **more: object) -> dict[str, object]:
    return {"id": name, "started_at": at.isoformat(), "finished_at": at.isoformat(), **more}


@dataclass
class Provider:
    """A server, and the settings that name its provider."""

    server: DebianServer
    env: dict[str, str]

    @property
    def engine(self) -> Managed:
        found = {name.removeprefix("BACKUP_").lower(): value for name, value in self.env.items()}
        return Managed(settings(managed_status=found["managed_status"], managed_restore=found["managed_restore"]))

    def copy(self, name: str) -> None:
        folder = self.server.folder / "copies"
        where = ("-h", str(self.server.folder), "-p", str(self.server.port), "-U", "admin", "-c", "fast")
        self.server._tool("pg_basebackup", *where, "-D", str(folder / name), "--no-sync")


@pytest.fixture(scope="module")
def provided() -> Iterator[Provider]:
    binaries = installed(15)
    if binaries is None:
        required("PostgreSQL 15")
    with debian_server(Path(str(binaries)), fsync="off") as server:
        server.folder.chmod(0o755)
        access = server.data / "pg_hba.conf"
        access.write_text(f"local replication admin trust\n{access.read_text()}")
        server.run("SELECT pg_reload_conf()")
        server.run("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS number")
        server.run("ALTER TABLE rows OWNER TO app")
        words = ("python3", provider.__file__)
        where = (str(server.folder / "copies"), str(binaries))
        env = {
            "BACKUP_ENGINE": "managed",
            "BACKUP_MANAGED_STATUS": shlex.join([*words, "status", *where]),
            "BACKUP_MANAGED_RESTORE": shlex.join([*words, "restore", *where]),
        }
        found = Provider(server, env)
        found.copy("monday")
        yield found


def test_a_backup_of_the_provider_is_restored_to_a_scratch_server_that_goes_away(provided: Provider) -> None:
    engine = provided.engine
    [backup] = engine.list()
    provided.server.run("INSERT INTO rows VALUES (1001)")
    with engine.restored("drill", Restore(Path(), "mon"), SILENT) as address:
        where = f"host={address.host} port={address.port} user=app password={provided.server.password} dbname=app"
        with psycopg.connect(where, user="app") as copy:
            assert copy.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        with (
            pytest.raises(ValueError, match="enough"),
            engine.restored("drill", Restore(Path()), SILENT),  # what was left by a killed one is removed
        ):
            raise ValueError("enough")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(where)
    assert not list(provided.server.folder.glob("scratch-*"))
    late = backup.finished_at - timedelta(seconds=1)
    with (
        pytest.raises(NotFound, match="the provider has everything from"),
        engine.restored("drill", Restore(Path(), to=late), SILENT),
    ):
        pass


def test_the_newest_backup_of_the_provider_is_recorded_with_its_own_time(
    provided: Provider, project: Project, database: TestDatabase
) -> None:
    project.env |= provided.env
    for _ in range(2):
        done = project.app("backup", "record", "--json", "--no-input")
        assert done.returncode == 0, done.stderr
    backup = provided.engine.list()[-1]
    runs = database.all("SELECT backup_id, finished_at, state, engine FROM kernel.backup_runs WHERE kind = 'backup'")
    assert runs == [("monday", backup.finished_at, "succeeded", "managed")]
    [(lag, problem)] = database.all("SELECT now() - waiting_since, problem FROM kernel.backup_wal")
    assert lag < timedelta(minutes=1)
    assert problem is None
    listed = json.loads(project.app("backup", "list", "--json").stdout)
    assert [item["id"] for item in listed["items"]] == ["monday"]
    for command in (("create",), ("verify", "monday"), ("prune", "--yes")):
        refused = project.app("backup", *command)
        assert (refused.returncode, refused.stderr.count("\n")) == (77, 2), refused.stderr
        assert "backup.engine is managed: the provider of the database" in refused.stderr
    assert database.all("SELECT count(*) FROM kernel.backup_runs WHERE state = 'failed'") == [(0,)]


def test_a_restore_to_another_time_or_to_no_server_is_refused(provided: Provider) -> None:
    asked = datetime.now(UTC) - timedelta(minutes=5)
    status = {
        "backups": [taken("a", asked - timedelta(days=1))],
        "restorable_until": datetime.now(UTC).isoformat(),
    }
    known = replace(settings(), managed_status=shlex.join([sys.executable, "-c", f"print({json.dumps(status)!r})"]))

    def restore(restored_to: datetime | None, port: int = provided.server.port, to: datetime | None = asked) -> Address:
        address = {"host": "127.0.0.1", "port": port, "restored_to": restored_to and restored_to.isoformat()}
        printing = shlex.join([sys.executable, "-c", f"print({json.dumps(address)!r})"])
        return Managed(replace(known, managed_restore=printing)).restore("apart", Restore(Path(), to=to), SILENT)

    for at in (None, asked, asked - timedelta(hours=1)):
        assert restore(at).restored_to == at
    assert restore(datetime.now(UTC), to=None).port == provided.server.port
    wrong = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2136, 1, 1, tzinfo=UTC))
    for at in (*wrong, asked + timedelta(minutes=2)):
        with pytest.raises(BackupInvalid, match=r"restored_to is .* was asked for$"):
            restore(at)
    for at in wrong:
        with pytest.raises(BackupInvalid, match="restored_to is"):
            restore(at, to=None)
    told = r"the server apart does not accept connections at 127\.0\.0\.1:1,"
    with pytest.raises(TargetUnavailable, match=told):
        restore(asked, port=1)


def test_a_drill_restores_through_the_provider_and_refuses_a_server_that_it_did_not_start(
    provided: Provider, cli: Project, tmp_path: Path
) -> None:
    cli.env |= {**provided.env, **provided.server.env, "BACKUP_SCRATCH": str(tmp_path)}
    migrated = cli.app("migrate", "up")
    assert migrated.returncode == 0, migrated.stderr
    provided.copy("tuesday")
    done = cli.app("backup", "drill", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {check["name"] for check in result["checks"] if check["state"] == "ok"} >= {"restore", "migrations", "login"}
    assert (result["backup_id"], result["rto_s"] > 0, result["rpo_s"] < 60) == ("tuesday", True, True)
    assert provided.server.all("SELECT state, backup_id FROM kernel.backup_runs") == [("succeeded", "tuesday")]
    assert not list(provided.server.folder.glob("scratch-*"))
    production = json.dumps({"host": "127.0.0.1", "port": provided.server.port})
    cli.env["BACKUP_MANAGED_RESTORE"] = shlex.join([sys.executable, "-c", f"print({production!r})"])
    refused = cli.app("backup", "drill")
    assert refused.returncode == 1
    assert "ran before this drill: it is no scratch server" in refused.stderr
    assert provided.server.all("SELECT count(*) FROM auth.actors") == [(0,)]


def test_a_backup_of_a_clock_that_is_ahead_is_not_of_a_negative_age(project: Project) -> None:
    ahead = {"backups": [taken("ahead", datetime.now(UTC) + timedelta(minutes=4))]}
    printing = shlex.join([sys.executable, "-c", f"print({json.dumps(ahead)!r})"])
    project.env |= {"BACKUP_ENGINE": "managed", "BACKUP_MANAGED_STATUS": printing}
    project.app("backup", "record")
    project.env["BACKUP_MANAGED_STATUS"] = "false"
    newest = json.loads(project.app("backup", "status", "--json").stdout)["newest"]
    assert (newest["id"], newest["age_s"]) == ("ahead", 0)


def test_an_old_backup_and_missing_wal_are_recorded_as_they_are(database: TestDatabase) -> None:
    old = datetime.now(UTC) - timedelta(days=3)
    found = observe(database.conninfo, printing({"backups": [taken("old", old)]}))
    assert found.problem == "no WAL is stored"
    assert database.all("SELECT finished_at FROM kernel.backup_runs") == [(old,)]
    assert database.all("SELECT * FROM kernel.backup_wal") == []
    observe(database.conninfo, printing({"backups": [], "restorable_until": old.isoformat()}))
    [(lag,)] = database.all("SELECT now() - waiting_since FROM kernel.backup_wal")
    assert timedelta(days=3) <= lag < timedelta(days=3, minutes=1)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ([], "must be an object"),
        ({}, "backups"),
        ({"backups": None}, "backups"),
        ({"backups": [], "more": 1}, "more"),
        ({"backups": [{"id": "a"}]}, "started_at"),
        ({"backups": [taken("a", color="red")]}, "color"),
        ({"backups": [taken("a b")]}, "id"),
        ({"backups": [taken("")]}, "id"),
        ({"backups": [taken("a" * 201)]}, "id"),
        ({"backups": [taken("a\u001b[2J")]}, "id"),
        ({"backups": [taken("a", size_bytes=-1)]}, "size_bytes"),
        ({"backups": [taken("a", size_bytes="1")]}, "size_bytes"),
        ({"backups": [taken("a", size_bytes=2**63)]}, "size_bytes"),
        ({"backups": [taken("a", size_bytes=10**30)]}, "size_bytes"),
        ({"backups": [{**taken("a"), "finished_at": "2026-11-27T10:00:00"}]}, "finished_at"),
        ({"backups": [{**taken("a"), "finished_at": 1795814844}]}, "finished_at"),
        ({"backups": [taken("a"), taken("a")]}, "the same id"),
        ({"backups": [taken("a", NOW + timedelta(hours=1))]}, "in the future"),
        (
            {"backups": [{**taken("a"), "started_at": (NOW + timedelta(seconds=1)).isoformat()}]},
            "before it was started",
        ),
        ({"backups": [], "restorable_until": (NOW + timedelta(hours=1)).isoformat()}, "in the future"),
    ],
)
def test_what_a_provider_prints_is_validated_strictly(value: object, told: str) -> None:
    with pytest.raises(BackupInvalid, match=r"^what backup\.managed_status prints cannot be used: ") as refused:
        printing(value).list()
    assert told in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_provider_that_prints_what_is_described_is_believed() -> None:
    engine = printing(
        {"backups": [taken("b"), taken("a", NOW - timedelta(days=1), size_bytes=7, server_version=150004)]}
    )
    assert [(backup.id, backup.size_bytes) for backup in engine.list()] == [("a", 7), ("b", 0)]
    assert engine.wal("") is None


@pytest.mark.parametrize(
    ("engine", "kind", "told"),
    [
        (Managed(settings()), Misconfigured, "backup.managed_status is not set"),
        (Managed(settings(managed_status="a 'b")), Misconfigured, "is not a command"),
        (Managed(settings(managed_status="/nowhere/at-all")), Misconfigured, "/nowhere/at-all cannot be run"),
        (running("import sys; sys.exit('no\\x1b[31mthing here')"), TargetUnavailable, "status 1: no?[31mthing here"),
        (running("print('x' * 5_000_000)"), BackupInvalid, "it prints more than"),
        (running("raise SystemExit(3)"), TargetUnavailable, "status 3: it said nothing on stderr"),
    ],
)
def test_a_command_that_does_not_work_is_one_line(engine: Managed, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as refused:
        engine.list()
    assert told in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_command_gets_words_and_no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "a secret")
    monkeypatch.setenv("BACKUP_KEY_FILE", "/a/file")
    monkeypatch.setenv("APP_ENV", "test")
    monkeypatch.setenv("AWS_PROFILE", "backups")
    monkeypatch.setenv("RESTORE_NOTHING", "")
    ours = "('POST', 'BACK', 'APP_', 'REST', 'AWS_P')"
    told = f"import os, sys; sys.exit(' '.join(sorted(n for n in os.environ if n.startswith({ours}))))"
    with pytest.raises(TargetUnavailable, match=r"status 1: AWS_PROFILE RESTORE_NOTHING$"):
        running(told).list()
    with pytest.raises(
        TargetUnavailable, match=r"RESTORE_ACTION RESTORE_BACKUP RESTORE_NOTHING RESTORE_SCRATCH RESTORE_TO$"
    ):
        running(told).remove("drill", SILENT)
    with pytest.raises(TargetUnavailable, match=r"status 1: \$HOME;ls$"):
        Managed(settings(managed_status=f"{sys.executable} -c 'import sys; sys.exit(sys.argv[1])' $HOME;ls")).list()


def test_a_command_ends_when_the_run_is_asked_to_stop_and_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(_done: int) -> None:
        raise Stopped

    sleeping = "import time; time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(Stopped):
        running(sleeping).remove("drill", Progress(lambda _name, _size: advance))
    monkeypatch.setattr("app.kernel.backup.managed._STATUS_S", 0.5)
    with pytest.raises(TargetUnavailable, match=r"did not end within 0\.5 s"):
        running(sleeping).list()
    assert time.monotonic() - began < 20


def test_a_provider_restores_to_a_time_only() -> None:
    engine = printing({"backups": [taken("a")]})
    for wanted in (Restore(Path(), lsn="0/1"), Restore(Path(), timeline=2)):
        with pytest.raises(Denied, match="not to a position or a timeline"), engine.restored("x", wanted, SILENT):
            pass
    with pytest.raises(Refusal, match="restores to servers"):
        engine.prepare(Restore(Path()), SILENT)
