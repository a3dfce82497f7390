"""The engine `pgbackrest`, with Debian's pgBackRest and PostgreSQL 15."""

import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest

from app.kernel.backup import Backup, BackupInvalid, BackupRunning, TargetUnavailable
from app.kernel.backup.counts import compare
from app.kernel.backup.engine import Progress, Restore, Stopped
from app.kernel.backup.pgbackrest import PgBackRest
from app.kernel.backup.pgbackrest.expiring import expire
from app.kernel.backup.pgbackrest.program import Program
from app.kernel.backup.pgbackrest.repository import read, segments
from app.kernel.backup.recovery import restore
from app.kernel.backup.replay import Until, replaying
from app.kernel.backup.retention import Policy
from app.kernel.backup.scratch import Scratch, scratch_server
from app.kernel.backup.timelines import lsn_number, segment_name
from app.kernel.config import BackupSettings, Misconfigured, load
from app.kernel.errors import Conflict, NotFound, Refusal
from app.processes import sections
from tests.conftest import PostgresServer, program, required
from tests.support.debian import DebianServer, debian_server, installed
from tests.support.project import ROOT, Project, eventually

SILENT = Progress(lambda _name, _size: lambda _done: None)
PACKAGE = "repo1-bundle=y\ncompress-type=none\nprocess-max=2\nlog-level-file=off\n"


@dataclass
class Stanza:
    """A server whose WAL pgBackRest archives, and the engine."""

    server: DebianServer
    engine: PgBackRest

    @property
    def repository(self) -> Path:
        return self.server.folder / "repository"

    @property
    def program(self) -> Program:
        return Program("main", self.engine.settings.pgbackrest_config)

    @property
    def conninfo(self) -> str:
        return f"host={self.server.folder} port={self.server.port} user=admin dbname=app"

    def take(self) -> Backup:
        return self.engine.create(self.conninfo, SILENT)

    def take_by_others(self, kind: str) -> Backup:
        """Take a backup as pgBackRest does without us."""
        self.program.run("backup", f"--type={kind}", "--repo=1", "--start-fast", "--no-expire-auto")
        return self.engine.list()[-1]

    def newest(self) -> Backup:
        """Return the newest backup, or a new one."""
        return next(reversed(self.engine.list()), None) or self.take()

    def archived(self) -> None:
        """Fill a segment of WAL, and wait until it is stored."""
        self.server.run("SELECT pg_current_xact_id()")
        [(name,)] = self.server.all("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.server.run("SELECT pg_switch_wal()")
        eventually(lambda: any(self.repository.rglob(f"{name}-*")))

    @contextmanager
    def restored(self, folder: Path) -> Iterator[psycopg.Connection]:
        """Restore all that is stored; give a connection to it."""
        prepared = self.engine.prepare(Restore(folder), SILENT)
        until = Until(timeline=prepared.timeline)
        with (
            replaying(prepared, until, action="promote", users=("admin",)) as (server, _),
            psycopg.connect(server.conninfo("app")) as connection,
        ):
            yield connection


def is_ready(server: Scratch) -> bool:
    return server.state == "ready"


@contextmanager
def moved(path: Path, away: Path) -> Iterator[None]:
    """Have a file or a folder elsewhere."""
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@contextmanager
def configured(stanza: Stanza, line: str) -> Iterator[None]:
    """Have a line in the configuration of pgBackRest."""
    config = Path(stanza.engine.settings.pgbackrest_config)
    former = config.read_text()
    config.write_text(former.replace("[global]\n", f"[global]\n{line}\n"))
    try:
        yield
    finally:
        config.write_text(former)


def settings(**changes: str) -> BackupSettings:
    found = load(ROOT, sections(), {"APP_ENV": "test"})[BackupSettings]
    return replace(found, engine="pgbackrest", pgbackrest_stanza="main", **changes)


def configure(server: Path, data: Path, where: str, owner: int) -> Path:
    """Write the configuration of pgBackRest, of an account."""
    for name in ("repository", "lock"):
        (server / name).mkdir()
        os.chown(server / name, owner, owner)
    config = server / "pgbackrest.conf"
    paths = f"repo1-path={server / 'repository'}\nlock-path={server / 'lock'}\n"
    config.write_text(f"[global]\n{paths}{PACKAGE}[main]\npg1-path={data}\n{where}\n")
    os.chown(config, owner, owner)
    return config


@pytest.fixture(scope="module")
def stanza() -> Iterator[Stanza]:
    program("pgbackrest")
    binaries = installed(15)
    if binaries is None:
        required("PostgreSQL 15")
    with debian_server(Path(str(binaries)), fsync="off", wal_level="replica", archive_mode="on") as server:
        server.folder.chmod(0o711)  # the account of a restored server passes through
        where = f"pg1-port={server.port}\npg1-socket-path={server.folder}\npg1-user=admin"
        config = configure(server.folder, server.data, where, server.folder.stat().st_uid)
        made = Stanza(server, PgBackRest(settings(pgbackrest_config=str(config))))
        with pytest.raises(Misconfigured, match="has no stanza main") as refused:
            made.engine.list()
        assert refused.value.hint == f"pgbackrest --config={config} --stanza=main stanza-create"
        made.program.run("stanza-create")
        server.run(f"ALTER SYSTEM SET archive_command = 'pgbackrest --config={config} --stanza=main archive-push %p'")
        server.run("SELECT pg_reload_conf()")
        place = server.folder / "tablespace"
        place.mkdir()
        os.chown(place, server.folder.stat().st_uid, -1)
        server.run(f"CREATE TABLESPACE apart LOCATION '{place}'")
        server.run("CREATE TABLE rows TABLESPACE apart AS SELECT generate_series(1, 1000) AS number")
        yield made
        server.kill()  # a clean stop waits for the archive


def test_a_backup_has_what_a_drill_needs_in_the_repository_and_restores_to_the_last_stored_row(
    stanza: Stanza, tmp_path: Path
) -> None:
    before, done = list(stanza.engine.list()), list[int]()
    taken = stanza.engine.create(stanza.conninfo, Progress(lambda _name, _size: done.append))
    assert sum(done) > 20_000_000
    assert taken.counts is not None
    assert [(count.table, count.rows) for count in taken.counts.tables] == [("public.rows", 1000)]
    assert (taken.server_version // 10_000, taken.database, taken.app_version != "") == (15, "app", True)
    assert list(stanza.engine.list()) == [*before, taken]
    assert stanza.engine.get("latest") == stanza.engine.get(taken.id[:-1]) == taken
    assert stanza.engine.verify(taken, SILENT).problems == ()

    stanza.server.run("INSERT INTO rows VALUES (1001)")
    stanza.archived()
    wal = stanza.engine.wal(taken.cluster)
    assert wal is not None
    assert (wal.gap, wal.timeline) == ("", 1)
    folder = stanza.server.folder / "restored"
    with stanza.restored(folder) as copy:
        assert copy.execute("SELECT count(*) FROM rows").fetchone() == (1001,)
        assert compare(copy.info.dsn, taken.counts).problems == ()  # knows of the row that was inserted after them
    assert [path.name for path in (stanza.server.folder / "restored.tablespaces").iterdir()] == ["apart"]
    with pytest.raises(Conflict, match="is not empty"):
        stanza.engine.prepare(Restore(folder), SILENT)
    [oldest, *_] = stanza.engine.list()
    with pytest.raises(NotFound, match="what can be restored begins at"):
        stanza.engine.prepare(Restore(tmp_path / "early", to=oldest.finished_at - timedelta(seconds=1)), SILENT)


def test_a_restore_that_wrote_nothing_is_not_followed_by_later_ones(stanza: Stanza) -> None:
    timelines: list[int] = []
    for name in ("first", "second"):
        taken = stanza.take()
        wanted = Restore(stanza.server.folder / name)
        done = restore(stanza.engine, wanted, SILENT, users=("admin",))
        assert (done.backup.id, done.backup.timeline) == (taken.id, 1)
        timelines.append(done.replayed.timeline)
    assert timelines == [2, 3]


def test_a_backup_that_others_have_taken_is_restored_and_its_database_read(stanza: Stanza, cli: Project) -> None:
    taken = stanza.take_by_others("full")
    assert (taken.database, taken.counts) == ("", None)
    cli.env |= {
        "BACKUP_ENGINE": "pgbackrest",
        "BACKUP_PGBACKREST_CONFIG": stanza.engine.settings.pgbackrest_config,
        "BACKUP_PGBACKREST_STANZA": "main",
        **stanza.server.env,
        "POSTGRES_USER": "admin",
    }
    folder = stanza.server.folder / "others"
    done = cli.app("backup", "restore", taken.id, "--into", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"{folder}, from backup {taken.id}" in done.stdout


def test_a_missing_segment_is_reported_and_ends_no_recovery_early(stanza: Stanza) -> None:
    taken = stanza.newest()
    stanza.archived()
    stanza.archived()
    missing = sorted(stanza.repository.rglob("0000000100000000*-*"))[-2]
    name = missing.name.partition("-")[0]
    with moved(missing, stanza.server.folder / missing.name):
        wal = stanza.engine.wal(taken.cluster)
        assert wal is not None
        assert re.fullmatch(r"gap: WAL from \S+ to \S+ of timeline 1 is not stored", wal.gap)
        assert stanza.engine.verify(taken, SILENT).problems == (wal.gap,)
        told = f"the WAL segment {name} is not stored, although later ones are"
        with pytest.raises(BackupInvalid, match=told), stanza.restored(stanza.server.folder / "cut"):
            pass
        anew = stanza.take()
        wal = stanza.engine.wal(taken.cluster)
        assert wal is not None
        assert wal.gap == ""
        assert [stanza.engine.verify(one, SILENT).problems for one in (taken, anew)] == [(), ()]


def test_wal_that_is_not_kept_before_the_newest_backup_is_no_gap(stanza: Stanza) -> None:
    taken = stanza.newest()
    stanza.archived()
    newest = stanza.take()
    size = newest.wal_segment_bytes
    name = segment_name(1, lsn_number(newest.start_lsn) - size, size)
    [before] = stanza.repository.rglob(f"{name}-*")
    with moved(before, stanza.server.folder / before.name):
        wal = stanza.engine.wal(newest.cluster)
        assert wal is not None
        assert wal.gap == ""
        assert [stanza.engine.verify(one, SILENT).problems for one in (taken, newest)] == [(), ()]


def test_a_backup_that_is_kept_without_wal_is_restored_as_it_was_when_it_is_named(stanza: Stanza) -> None:
    taken = stanza.take()
    stanza.server.run("CREATE TABLE later AS SELECT 1 AS number")
    stanza.archived()
    newest, size = stanza.take(), taken.wal_segment_bytes
    stop, start = (lsn_number(lsn) // size for lsn in (taken.stop_lsn, newest.start_lsn))
    with ExitStack() as aside:
        for number in range(stop + 1, start):
            [path] = stanza.repository.rglob(f"{segment_name(1, number * size, size)}-*")
            aside.enter_context(moved(path, stanza.server.folder / path.name))
        done = restore(stanza.engine, Restore(stanza.server.folder / "alone", taken.id), SILENT, users=("admin",))
        assert lsn_number(done.replayed.lsn) // size <= stop + 1
        assert done.lost == f"everything after the backup ({taken.stop_lsn}): no WAL after it is stored"
    stanza.server.run("DROP TABLE later")


def test_wal_that_is_missing_right_after_the_newest_backup_is_its_gap_when_it_is_named(stanza: Stanza) -> None:
    taken = stanza.take()
    size = taken.wal_segment_bytes
    for _ in range(3):
        stanza.archived()
    name = segment_name(1, (lsn_number(taken.stop_lsn) // size + 1) * size, size)
    [path] = stanza.repository.rglob(f"{name}-*")
    with moved(path, stanza.server.folder / path.name):
        done = restore(stanza.engine, Restore(stanza.server.folder / "gap", taken.id), SILENT, users=("admin",))
    assert "gap: WAL from " in done.lost


def test_a_repository_that_cannot_be_read_ends_no_recovery_early(stanza: Stanza) -> None:
    stanza.newest()
    folder = stanza.server.folder / "unread"
    prepared = stanza.engine.prepare(Restore(folder), SILENT)
    (folder / "recovery.signal").touch()
    away = stanza.repository.with_name("away")

    def recover() -> None:
        with prepared.wal() as command:
            stanza.repository.rename(away)
            with scratch_server(folder, prepared.programs, {"restore_command": command}, until=is_ready):
                pass

    try:
        with pytest.raises(Misconfigured, match="has no stanza"):
            recover()
    finally:
        away.rename(stanza.repository)
    stanza.repository.chmod(0)
    if os.geteuid() != 0 or stanza.program.account():
        with pytest.raises(TargetUnavailable, match="Permission denied"):
            stanza.engine.list()
    stanza.repository.chmod(0o700)


def test_a_flipped_bit_in_a_backup_is_found(stanza: Stanza) -> None:
    taken = stanza.newest()
    largest = max(
        (stanza.repository / "backup/main" / taken.id).rglob("bundle/*"), key=lambda path: path.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    [problem] = stanza.engine.verify(taken, SILENT).problems
    assert problem.startswith(f"the backup {taken.id} is invalid: 1 of ")


@contextmanager
def damaged_page(server: DebianServer) -> Iterator[None]:
    """Have a page with a wrong checksum in the data folder."""
    server.run("CREATE TABLE damaged AS SELECT generate_series(1, 100) AS number")
    server.run("CHECKPOINT")
    [(path,)] = server.all("SELECT pg_relation_filepath('damaged')")
    file = server.data / path
    former = file.read_bytes()
    file.write_bytes(former[:4000] + bytes([former[4000] ^ 1]) + former[4001:])
    try:
        yield
    finally:
        file.write_bytes(former)
    server.run("DROP TABLE damaged")


def test_a_backup_with_damaged_pages_fails_and_is_not_used_nor_lets_good_ones_expire(
    stanza: Stanza, tmp_path: Path
) -> None:
    for _ in range(3):
        stanza.take()
    good = list(stanza.engine.list())
    with damaged_page(stanza.server):
        with pytest.raises(BackupInvalid, match="has pages with wrong checksums") as refused:
            stanza.take()
        assert stanza.engine.get("latest") == good[-1]
    dependent = stanza.take_by_others("incr")
    assert stanza.engine.list() == (*good, dependent)
    [failed] = stanza.engine.damaged()
    assert str(refused.value) == failed.problem == f"the backup {failed.backup} has pages with wrong checksums"
    assert failed.backup in dependent.depends_on
    with pytest.raises(BackupInvalid, match="has pages with wrong checksums"):
        stanza.engine.prepare(Restore(tmp_path / "damaged", failed.backup), SILENT)

    policy, later = Policy(timedelta(seconds=1), 0, 0), datetime.now(UTC) + timedelta(days=1)
    done = expire(stanza.program, policy, later, is_dry=False)  # the window has two good ones and the dependent one
    assert done.kept == (*(backup.id for backup in good[-3:]), failed.backup, dependent.id)
    good += [stanza.take() for _ in range(4)]
    done = expire(stanza.program, policy, later, is_dry=False)
    assert {failed.backup, dependent.id} <= {*done.backups}
    assert stanza.engine.damaged() == []
    assert done.kept == tuple(backup.id for backup in good[-4:])


def test_our_retention_expires_backups_and_their_wal(stanza: Stanza) -> None:
    while len(stanza.engine.list()) < 5:
        stanza.take()
    before = [backup.id for backup in stanza.engine.list()]
    first = min(path.name for path in stanza.repository.rglob("0000000100000000*-*"))
    assert stanza.engine.prune(SILENT, is_dry=False).backups == ()
    policy, later = Policy(timedelta(seconds=1), 0, 0), datetime.now(UTC) + timedelta(days=1)
    would = expire(stanza.program, policy, later, is_dry=True)
    assert [backup.id for backup in stanza.engine.list()] == before
    done = expire(stanza.program, policy, later, is_dry=False)
    assert would.backups == done.backups == tuple(before[:-4])  # three are the window, and one leads into it
    assert [backup.id for backup in stanza.engine.list()] == list(done.kept) == before[-4:]
    assert done.wal_segments > 0
    assert done.freed_bytes > 0
    assert min(path.name for path in stanza.repository.rglob("0000000100000000*-*")) > first
    assert stanza.engine.verify(stanza.engine.get("latest"), SILENT).problems == ()


def test_wal_since_a_differential_backup_that_leads_into_the_window_is_kept(stanza: Stanza) -> None:
    full = stanza.take()
    first, *_ = [stanza.take_by_others("diff") for _ in range(3)]
    newest = stanza.take()
    policy, later = Policy(timedelta(seconds=1), 0, 0), datetime.now(UTC) + timedelta(days=1)
    done = expire(stanza.program, policy, later, is_dry=False)
    assert (done.kept[0], done.kept[1], done.kept[-1]) == (full.id, first.id, newest.id)
    [(_, archive, _)] = read(stanza.program).archives
    size = full.wal_segment_bytes
    stored = [file.number for file in segments(stanza.program, archive, size)]
    begin = lsn_number(full.start_lsn) // size
    assert stored == list(range(begin, begin + len(stored)))
    assert begin + len(stored) > lsn_number(newest.start_lsn) // size


def test_a_backup_that_is_asked_to_stop_ends_and_is_not_listed(stanza: Stanza) -> None:
    def advance(_done: int) -> None:
        raise Stopped

    before = stanza.engine.list()
    with pytest.raises(Stopped):
        stanza.engine.create(stanza.conninfo, Progress(lambda _name, _size: advance))
    assert stanza.engine.list() == before


def _other_cluster(stanza: Stanza, postgres: PostgresServer) -> None:
    stanza.engine.create(postgres.conninfo(), SILENT)


def _locked(stanza: Stanza, _postgres: PostgresServer) -> None:
    with (stanza.server.folder / "lock/main-backup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(lock.name).chmod(0o666)
        stanza.take()


def _killed(stanza: Stanza, _postgres: PostgresServer) -> None:
    def kill(_done: int) -> None:
        for child in psutil.Process().children():
            if child.name() == "pgbackrest":
                child.kill()

    stanza.engine.create(stanza.conninfo, Progress(lambda _name, _size: kill))


def _no_program(stanza: Stanza, _postgres: PostgresServer) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        stanza.engine.list()


def _unknown_stanza(stanza: Stanza, _postgres: PostgresServer) -> None:
    PgBackRest(replace(stanza.engine.settings, pgbackrest_stanza="other")).list()


def _unreachable(stanza: Stanza, _postgres: PostgresServer) -> None:
    PgBackRest(replace(stanza.engine.settings, pgbackrest_config="/nowhere/pgbackrest.conf")).list()


def _too_new(stanza: Stanza, _postgres: PostgresServer) -> None:
    data = stanza.server.folder / "newer/global"
    data.mkdir(parents=True)
    control = struct.pack("=QII", 1, 9900, 299901010).ljust(8192, b"\0")  # of a PostgreSQL that nobody knows yet
    (data / "pg_control").write_bytes(control)
    into = str(stanza.server.folder / "segment")
    stanza.program.run(f"--pg1-path={data.parent}", "archive-get", "000000010000000000000001", into)


@pytest.mark.parametrize(
    ("case", "kind", "told"),
    [
        (_other_cluster, Misconfigured, "is of the cluster"),
        (_locked, BackupRunning, "unable to acquire lock"),
        (_killed, Refusal, r"^pgBackRest: it was ended by SIGKILL$"),
        (_no_program, Misconfigured, "there is no program pgbackrest here"),
        (_unknown_stanza, Misconfigured, "has no stanza other"),
        (_unreachable, Exception, "pgbackrest.conf|as root"),
        (_too_new, Misconfigured, r"pgBackRest 2\.\d+ is too old for this version of PostgreSQL"),
    ],
)
def test_what_pgbackrest_refuses_is_one_line(
    stanza: Stanza,
    postgres: PostgresServer,
    case: Callable[[Stanza, PostgresServer], None],
    kind: type[Exception],
    told: str,
) -> None:
    with pytest.raises(kind, match=told) as refused:
        case(stanza, postgres)
    assert "\n" not in str(refused.value)


def test_a_repository_with_another_cipher_is_one_line_about_the_configuration(stanza: Stanza) -> None:
    plain = Path(stanza.engine.settings.pgbackrest_config)
    owner, sealed = plain.stat().st_uid, stanza.server.folder / "sealed"
    sealed.mkdir()
    os.chown(sealed, owner, -1)

    def engine(repository: Path, passphrase: str) -> PgBackRest:
        path = plain.with_name(f"{repository.name}-{passphrase}.conf")
        cipher = f"repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={passphrase}\n" if passphrase else ""
        text = plain.read_text().replace(f"repo1-path={stanza.repository}\n", f"repo1-path={repository}\n{cipher}")
        path.write_text(text)
        os.chown(path, owner, -1)
        return PgBackRest(replace(stanza.engine.settings, pgbackrest_config=str(path)))

    Program("main", engine(sealed, "right").settings.pgbackrest_config).run("stanza-create")
    assert engine(sealed, "right").list() == ()
    for other in (engine(sealed, "wrong"), engine(sealed, ""), engine(stanza.repository, "right")):
        with pytest.raises(Misconfigured, match="unable to load info file") as refused:
            other.list()
        assert "repo1-cipher-pass" in str(refused.value)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("line", ["log-level-stderr=detail", "log-level-stderr=off", "log-level-console=debug"])
def test_levels_of_logs_in_the_configuration_change_nothing(
    stanza: Stanza, postgres: PostgresServer, line: str
) -> None:
    with configured(stanza, line):
        taken = stanza.take()
        assert stanza.engine.get("latest") == taken
        assert stanza.engine.verify(taken, SILENT).problems == ()
        with pytest.raises(BackupRunning, match="unable to acquire lock"):
            _locked(stanza, postgres)


def test_root_runs_pgbackrest_as_the_owner_of_its_configuration(stanza: Stanza) -> None:
    owner = Path(stanza.engine.settings.pgbackrest_config).stat().st_uid
    assert {path.stat().st_uid for path in stanza.repository.rglob("*")} == {owner}
