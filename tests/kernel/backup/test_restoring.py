import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.commands.backup.listing import listing_of
from app.commands.backup.status import _Recorded, _summary, _Target
from app.kernel.backup import Backup, BackupInvalid, TargetUnavailable, fetching
from app.kernel.backup.builtin import Builtin
from app.kernel.backup.catalogue import Catalogue, base_name, record_name, wal_names
from app.kernel.backup.engine import Progress, Restore
from app.kernel.backup.recovery import Restored, restore
from app.kernel.backup.replay import Until, replaying
from app.kernel.backup.restoring import planned
from app.kernel.backup.scratch import scratch_server
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from app.kernel.backup.timelines import history_name, lsn_number, lsn_text, segment_name, wal_file
from app.kernel.backup.wal import SEGMENT_BYTES, WalArchive
from app.kernel.cli import moment
from app.kernel.db.devserver.embedded import embedded_binaries
from app.kernel.errors import Conflict, Invalid, NotFound, Refusal, Unavailable
from app.kernel.text import exact
from tests.conftest import program, required, start_server, stop_server
from tests.kernel.backup.conftest import settings_of
from tests.support.debian import installed, no_server

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
PROGRESS = Progress(lambda _name, _size: lambda _done: None)
KEYS = Keys("a key of forty characters that nobody uses")


def wal_name(cluster: str, file: str) -> str:
    return wal_names(KEYS, cluster, file)[0]


def programs() -> Path:
    return embedded_binaries() or Path(program("postgres")).parent


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def backup(id_: str, minutes: float, segment: int, timeline: int = 1, cluster: str = "1") -> Backup:
    """A backup that began in a segment and ended in the next one."""
    return Backup(
        id_, cluster, "builtin", at(minutes - 1), at(minutes), timeline, lsn_text(segment * SEGMENT_BYTES + 40),
        lsn_text((segment + 1) * SEGMENT_BYTES + 512), 180004, "1", "", "app", 1000, 100,
    )  # fmt: skip


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Folder]:
    """Return a target with backups and WAL segments, each stored in the minute of its number."""

    def make(backups: list[Backup], segments: dict[int, list[int]], histories: dict[int, str] | None = None) -> Folder:
        root = tmp_path / "target"
        root.mkdir()
        target = Folder(root)
        for each in backups:
            Catalogue(target, KEYS).add(each)
        cluster = backups[0].cluster
        for timeline, numbers in segments.items():
            for number in numbers:
                name = wal_name(cluster, segment_name(timeline, number * SEGMENT_BYTES, SEGMENT_BYTES))
                target.put(name, [b"not read"])
                os.utime(root / name, (at(number).timestamp(),) * 2)
        for timeline, text in (histories or {}).items():
            name = wal_name(cluster, history_name(timeline))
            target.put(name, KEYS.pack(name, [text.encode()]))
        return target

    return make


def chosen(target: Folder, **wanted: object) -> str:
    return planned(Restore(Path(), **wanted), target, KEYS).backup.id  # type: ignore[arg-type]


def test_the_newest_backup_before_the_moment_is_chosen(listed: Callable[..., Folder]) -> None:
    target = listed([backup("a", 2, 1), backup("b", 6, 5)], {1: list(range(1, 11))})
    assert chosen(target) == "b"
    assert chosen(target, to=at(6)) == "b"
    assert chosen(target, to=at(6) - timedelta(microseconds=1)) == "a"
    assert chosen(target, to=at(10), backup="a") == "a"
    assert chosen(target, lsn=backup("b", 6, 5).stop_lsn) == "b"
    assert chosen(target, lsn=lsn_text(lsn_number(backup("b", 6, 5).stop_lsn) - 1)) == "a"
    assert chosen(target, lsn=lsn_text(11 * SEGMENT_BYTES)) == "b"


def test_a_backup_of_a_clock_that_was_ahead_is_not_the_newest(listed: Callable[..., Folder]) -> None:
    ahead = replace(backup("ahead", 2, 1), finished_at=at(24 * 60))
    target = listed([ahead, backup("b", 6, 5)], {1: list(range(1, 11))})
    assert (chosen(target), chosen(target, to=at(7))) == ("b", "b")
    assert Catalogue(target, KEYS).get("latest").id == "b"
    found = tuple(listing_of(each, at(9)) for each in Catalogue(target, KEYS).backups())
    assert _summary(_Target(backups=found), _Recorded())["newest"]["id"] == "b"


def test_the_earliest_moment_that_a_refusal_names_can_be_restored(listed: Callable[..., Folder]) -> None:
    early = replace(backup("a", 2, 1), finished_at=at(2) + timedelta(seconds=7.3))
    target = listed([early], {1: list(range(1, 11))})
    with pytest.raises(NotFound, match="has everything from 2026-11-22 12:02:08Z "):
        chosen(target, to=at(2) + timedelta(seconds=7))
    assert chosen(target, to=at(2) + timedelta(seconds=8)) == "a"


@pytest.mark.parametrize(
    "wanted",
    [
        {"to": at(2) - timedelta(microseconds=1)},
        {"to": at(10) + timedelta(microseconds=1)},
        {"lsn": lsn_text(11 * SEGMENT_BYTES + 1)},
        {"lsn": "0/1000"},
        {"to": at(5), "backup": "b"},
    ],
)
def test_another_moment_is_refused_with_those_that_can_be_restored(
    listed: Callable[..., Folder], wanted: dict[str, object]
) -> None:
    target = listed([backup("a", 2, 1), backup("b", 6, 5)], {1: list(range(1, 11))})
    (Path(target.label) / record_name("1", "c")).parent.mkdir()
    (Path(target.label) / record_name("1", "c")).write_text("{}")
    with pytest.raises(
        NotFound, match=rf"has everything from .*to 2026-11-22 12:10:00Z \({lsn_text(11 * SEGMENT_BYTES)}\)"
    ) as refused:
        chosen(target, **wanted)
    assert str(refused.value).endswith("; 1 backup cannot be read")
    assert ("within backup.wal_interval" in str(refused.value)) == (wanted.get("to", NOON) > at(10))


def test_missing_wal_is_refused_unless_it_is_after_the_moment(listed: Callable[..., Folder]) -> None:
    target = listed([backup("a", 2, 1)], {1: [1, 2, 3, 5, 6]})
    for wanted in ({}, {"to": at(6)}, {"lsn": lsn_text(4 * SEGMENT_BYTES + 8)}):
        with pytest.raises(BackupInvalid, match=f"{lsn_text(4 * SEGMENT_BYTES)} to {lsn_text(5 * SEGMENT_BYTES)}"):
            chosen(target, **wanted)
    assert chosen(target, to=at(3)) == "a"
    plan = planned(Restore(Path(), lsn=lsn_text(4 * SEGMENT_BYTES)), target, KEYS)
    assert (plan.backup.id, plan.end) == ("a", 4 * SEGMENT_BYTES)


def test_a_backup_whose_wal_is_not_kept_is_restored_alone_if_it_is_named(listed: Callable[..., Folder]) -> None:
    target = listed([backup("old", 2, 1)], {1: [8, 9]})
    with pytest.raises(BackupInvalid, match="app backup restore old --into"):
        chosen(target)
    plan = planned(Restore(Path(), backup="old"), target, KEYS)
    assert (plan.end, plan.segments) == (3 * SEGMENT_BYTES, 0)
    with pytest.raises(BackupInvalid, match="app backup restore old --into"):
        chosen(target, backup="old", to=at(9))


@pytest.mark.parametrize(("numbers", "missing"), [((5, 6, 7, 8), None), ((5, 6, 8), "b"), ((6, 7, 8), "a")])
def test_missing_wal_after_a_named_backup_is_a_gap_unless_a_newer_one_begins_after_it(
    listed: Callable[..., Folder], numbers: tuple[int, ...], missing: str | None
) -> None:
    target = listed([backup("a", 2, 1), backup("b", 6, 5)], {1: list(numbers)})
    found = [name for name in "ab" if planned(Restore(Path(), backup=name), target, KEYS).gap]
    assert found == ([missing] if missing else [])


def test_wal_that_the_backup_itself_has_need_not_be_stored(listed: Callable[..., Folder]) -> None:
    assert chosen(listed([backup("a", 2, 1)], {1: [3, 4]}), to=at(4)) == "a"


def test_a_timeline_is_followed_from_the_backups_that_lead_to_it(listed: Callable[..., Folder]) -> None:
    fork = f"1\t{lsn_text(5 * SEGMENT_BYTES + 8)}\tno recovery target specified\n"
    backups = [backup("a", 2, 1), backup("left", 8, 7), backup("b", 9, 8, timeline=2)]
    target = listed(backups, {1: list(range(1, 12)), 2: list(range(5, 14))}, {2: fork, 3: fork})
    assert chosen(target) == "b"
    assert chosen(target, to=at(8)) == "a"  # `left` was taken after the fork
    assert chosen(target, to=at(8), timeline=1) == "left"
    with pytest.raises(NotFound, match=r"timeline 4 is not stored.*stored are 1, 2"):
        chosen(target, timeline=4)
    with pytest.raises(NotFound, match="no backup leads to timeline 2; there are left"):
        chosen(target, timeline=2, backup="left")


def test_wal_that_is_missing_where_a_timeline_begins_leaves_the_moments_of_the_former(
    listed: Callable[..., Folder],
) -> None:
    fork = lsn_text(4 * SEGMENT_BYTES + 8)
    target = listed([backup("a", 2, 1)], {1: [3, 4], 2: [6]}, {2: f"1\t{fork}\tno recovery target specified\n"})
    with pytest.raises(BackupInvalid, match=f"for moments before {fork}, add --timeline 1"):
        chosen(target, to=at(5))
    assert chosen(target, to=at(4), timeline=1) == "a"


def test_one_of_several_clusters_must_be_named(listed: Callable[..., Folder]) -> None:
    target = listed([backup("a", 2, 1), backup("b", 3, 1, cluster="2")], {})
    with pytest.raises(Invalid, match=r"--cluster: a \(cluster 1, .*\), b \(cluster 2, "):
        chosen(target)
    assert chosen(target, cluster="2") == "b"
    assert chosen(target, backup="a") == "a"
    with pytest.raises(NotFound, match="cluster 3"):
        chosen(target, cluster="3")


SEGMENTS = 4


class Failing(Folder):
    """A target that fails so many times when the WAL segment of a name is read."""

    name, times = "", 0
    error: Exception = TargetUnavailable("503 Slow Down")

    def get(self, name: str) -> Iterator[bytes]:
        if self.name and self.name in name and self.times:
            self.times -= 1
            raise self.error
        return super().get(name)


@dataclass
class Stored:
    """A target with a backup, and WAL in which each segment has one more row, 1 to SEGMENTS."""

    folder: Path
    segments: list[str] = field(default_factory=list)
    cluster: str = ""
    backup: str = ""

    def target(self, to: Path) -> Failing:
        shutil.copytree(self.folder, to / "target", symlinks=True)
        return Failing(to / "target")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("stored")
    (folder / "target").mkdir()
    holder, server = start_server(folder / "pg")
    target = Folder(folder / "target")
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("CREATE TABLE counted (n int)")
        taken = Builtin(settings_of(), target, KEYS, programs()).create(server.conninfo(), PROGRESS)
        made = Stored(folder / "target", cluster=taken.cluster, backup=taken.id)
        archive = WalArchive(target, KEYS, taken.cluster)
        for n in range(1, SEGMENTS + 1):
            connection.execute("INSERT INTO counted VALUES (%s)", (n,))
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal() - 1)").fetchone()
            assert row is not None
            made.segments.append(row[0])
            archive.put(next((folder / "pg").rglob(row[0])))
    stop_server(holder)
    return made


def restored(target: Folder, into: Path, keys: Keys = KEYS, *, replaces: bool = False, **wanted: object) -> Restored:
    engine = Builtin(settings_of(), target, keys, programs())
    return restore(engine, Restore(into, **wanted), PROGRESS, replaces=replaces)  # type: ignore[arg-type]


def rows(folder: Path) -> list[int]:
    with scratch_server(folder, programs()) as server, psycopg.connect(server.conninfo("app")) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM counted ORDER BY n")]


def test_a_target_that_fails_for_a_while_is_waited_for(stored: Stored, tmp_path: Path) -> None:
    target = stored.target(tmp_path)
    target.name, target.times = stored.segments[1], 3
    done = restored(target, tmp_path / "into")
    assert target.times == 0
    assert rows(tmp_path / "into") == list(range(1, SEGMENTS + 1))
    assert (done.replayed.timeline, done.former, done.warning) == (2, None, "")
    names = {path.name for path in (tmp_path / "into").iterdir()}
    assert not names & {"recovery.signal", "backup_label", "backup_label.old", "run", fetching.SPOOL}
    assert {path.name for path in tmp_path.iterdir()} == {"into", "target"}
    with pytest.raises(Conflict, match="is not empty"):
        restored(target, tmp_path / "into")
    newest = Path(target.label) / wal_name(stored.cluster, stored.segments[-1])
    stored_at = datetime.fromtimestamp(newest.stat().st_mtime, UTC)
    again = restored(target, tmp_path / "again", to=stored_at)
    assert (again.replayed.timeline, again.replayed.is_reached) == (3, False)
    assert again.replayed.last_transaction_at == done.replayed.last_transaction_at
    assert rows(tmp_path / "again") == list(range(1, SEGMENTS + 1))


def test_wal_is_replayed_until_some_is_missing(stored: Stored, tmp_path: Path) -> None:
    target, into = stored.target(tmp_path), tmp_path / "into"
    remove(target, stored)
    end = lsn_text(WalArchive(target, KEYS, stored.cluster).gaps(3 * SEGMENT_BYTES, 1)[-1].begin)
    restored(target, into, lsn=end)
    assert rows(into) == [1, 2]
    for number in (0, 1):
        remove(target, stored, number)
    with pytest.raises(Conflict, match="--replace"):
        restored(target, into, backup=stored.backup)
    with scratch_server(into, programs()), pytest.raises(Conflict, match="a PostgreSQL server runs on"):
        restored(target, into, replaces=True, backup=stored.backup)
    done = restored(target, into, replaces=True, backup=stored.backup)
    assert rows(into) == []
    assert done.former is not None
    assert rows(done.former) == [1, 2]
    missing = f"gap: WAL from 0/3000000 to {lsn_text(6 * SEGMENT_BYTES)} of timeline 1 is not stored"
    assert done.lost == f"everything after {done.replayed.lsn}; {missing}"


def test_a_part_of_a_segment_before_a_gap_is_replayed(stored: Stored, tmp_path: Path) -> None:
    target = stored.target(tmp_path)
    archive = WalArchive(target, KEYS, stored.cluster)
    partial = tmp_path / f"{stored.segments[2]}.partial"
    archive.get(stored.segments[2], partial)
    written = -(-len(partial.read_bytes().rstrip(b"\0")) // 8) * 8 - 24  # without the record that ends the segment
    os.truncate(partial, written)
    whole = Path(target.label) / wal_name(stored.cluster, stored.segments[2])
    stored_at = whole.stat().st_mtime
    whole.unlink()
    archive.put(partial)
    partial.unlink()
    [path] = Path(target.label).rglob("*.partial.*")
    os.utime(path, (stored_at, stored_at))
    file = wal_file(stored.segments[2], SEGMENT_BYTES)
    assert file is not None
    [gap] = archive.gaps(file.start(SEGMENT_BYTES), 1)
    assert gap[1:] == (file.start(SEGMENT_BYTES) + written, file.start(SEGMENT_BYTES) + SEGMENT_BYTES)
    with pytest.raises(BackupInvalid, match=f"gap: WAL from {lsn_text(gap.begin)} ") as refused:
        restored(target, tmp_path / "none")
    assert f"--to-lsn {lsn_text(gap.begin)}" in str(refused.value)
    restored(target, tmp_path / "by-position", lsn=lsn_text(gap.begin))
    assert rows(tmp_path / "by-position") == [1, 2, 3]
    moment = datetime.fromtimestamp(stored_at, UTC)
    restored(target, tmp_path / "by-time", to=moment)
    assert rows(tmp_path / "by-time") == [1, 2, 3]
    os.utime(target.label / Path(wal_name(stored.cluster, stored.segments[3])), (stored_at + 9, stored_at + 9))
    with pytest.raises(BackupInvalid, match="gap"):
        restored(target, tmp_path / "none", to=moment + timedelta(seconds=1))
    path.write_bytes(path.read_bytes()[:-1])  # a damaged one is as none
    assert archive.gaps(file.start(SEGMENT_BYTES), 1)[0].begin == file.start(SEGMENT_BYTES)


def test_wal_that_is_stored_while_it_is_replayed_never_leads_past_the_target(stored: Stored, tmp_path: Path) -> None:
    target = stored.target(tmp_path)
    newest = tmp_path / "target" / wal_name(stored.cluster, stored.segments[-1])
    newest.rename(tmp_path / "later")
    prepared = Builtin(settings_of(), target, KEYS, programs()).prepare(Restore(tmp_path / "into"), PROGRESS)

    @contextmanager
    def first_without() -> Iterator[str]:
        with prepared.wal() as command:
            yield command
        if not newest.exists():
            (tmp_path / "later").rename(newest)

    position = lsn_text((SEGMENTS + lsn_number(prepared.backup.stop_lsn) // SEGMENT_BYTES) * SEGMENT_BYTES)
    until = Until(lsn=position)
    with (
        replaying(replace(prepared, wal=first_without), until, action="pause") as (server, replayed),
        psycopg.connect(server.conninfo("app")) as connection,
    ):
        found = [n for (n,) in connection.execute("SELECT n FROM counted ORDER BY n")]
    assert newest.exists()
    assert (found, replayed.is_reached) == ([1, 2, 3], False)


def fail(target: Failing, stored: Stored) -> None:
    target.name, target.times = stored.segments[2], 10**6


def fill(target: Failing, stored: Stored) -> None:
    fail(target, stored)
    target.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as writing what was fetched raises it


def flip(target: Failing, stored: Stored) -> None:
    path = Path(target.label) / wal_name(stored.cluster, stored.segments[2])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_base(target: Failing, stored: Stored) -> None:
    path = Path(target.label) / base_name(stored.cluster, stored.backup)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def remove_base(target: Failing, stored: Stored) -> None:
    (Path(target.label) / base_name(stored.cluster, stored.backup)).unlink()


def remove(target: Failing, stored: Stored, number: int = 2) -> None:
    (Path(target.label) / wal_name(stored.cluster, stored.segments[number])).unlink()


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (fail, TargetUnavailable, "503 Slow Down"),
        (flip, BackupInvalid, r"{segment}\.\w+\.zst\.sealed is damaged"),
        (flip_base, BackupInvalid, "base.tar.zst.sealed is damaged"),
        (remove_base, BackupInvalid, "base.tar.zst.sealed is not stored"),
        (remove, BackupInvalid, "is not stored"),
        (fill, Unavailable, "the disk of .*restoring is full: free some space"),
    ],
)
def test_what_cannot_be_fetched_ends_a_restore_and_leaves_nothing(
    stored: Stored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Failing, Stored], None],
    kind: type[Refusal],
    says: str,
) -> None:
    monkeypatch.setattr(fetching, "_PATIENCE_S", 0.5)
    target = stored.target(tmp_path)
    spoil(target, stored)
    with pytest.raises(kind, match=says.format(segment=stored.segments[2])):
        restored(target, tmp_path / "into")
    assert {path.name for path in tmp_path.iterdir()} == {"target"}


def test_what_is_missing_is_found_out_before_anything_is_fetched(stored: Stored, tmp_path: Path) -> None:
    target = stored.target(tmp_path)
    with pytest.raises(BackupInvalid, match="key"):
        restored(
            target, tmp_path / "into", Keys("another key of more than thirty-two characters"), backup=stored.backup
        )
    with pytest.raises(NotFound, match="create it"):
        restored(target, tmp_path / "nowhere" / "into")
    (tmp_path / "into.restoring").mkdir()
    (tmp_path / "into.restoring" / "mine").touch()
    with pytest.raises(Conflict, match="was not made by a restore"):
        restored(target, tmp_path / "into")


def test_a_server_of_debian_with_small_segments_and_an_unknown_superuser_is_restored(tmp_path: Path) -> None:
    binaries = installed(15)
    if binaries is None:
        required("PostgreSQL 15")
    assert binaries is not None
    (tmp_path / "target").mkdir()
    engine = Builtin(settings_of(programs=str(binaries)), Folder(tmp_path / "target"), KEYS)
    with no_server(binaries, fsync="off", max_connections="300") as server:
        server.segment_mb = 1
        server.create()
        access = server.data / "pg_hba.conf"
        access.write_text(f"local replication admin trust\n{access.read_text()}")
        with server.connect("app") as connection:
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE TABLE counted (n int)")
            taken = engine.create(f"host={server.folder} port={server.port} user=admin dbname=app", PROGRESS)
            archive = WalArchive(engine.target, KEYS, taken.cluster, taken.wal_segment_bytes)
            for n in range(1, 6):
                connection.execute("INSERT INTO counted VALUES (%s)", (n,))
                row = connection.execute("SELECT pg_walfile_name(pg_switch_wal() - 1)").fetchone()
                assert row is not None
                archive.put(server.data / "pg_wal" / row[0])
                assert (known := engine.wal(taken.cluster)) is not None
                assert lsn_number(known.lsn) == archive.reached.lsn  # whatever the size of segments
                if n == 3:
                    position = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert position is not None
    done = restore(engine, Restore(tmp_path / "into", lsn=position[0]), PROGRESS)
    assert done.replayed.is_reached
    with scratch_server(done.folder, binaries) as restored, psycopg.connect(restored.conninfo("app")) as connection:
        assert restored.user == "admin"
        assert [n for (n,) in connection.execute("SELECT n FROM counted ORDER BY n")] == [1, 2, 3]


def test_a_time_with_an_offset_is_told_in_utc() -> None:
    assert exact(moment("2026-11-28T11:03:32+05:00")) == exact(moment("2026-11-28T06:03:32")) == "2026-11-28 06:03:32Z"


@pytest.mark.parametrize(
    ("access", "is_private"),
    [
        ("local all all trust\n", True),
        ("# trust\nhost all app 10.0.0.0/8 scram-sha-256  # trust nobody\n", False),
        (None, False),
    ],
)
def test_data_that_ask_for_no_password_are_started_for_their_owner_alone(
    access: str | None, is_private: bool, tmp_path: Path
) -> None:
    if access is not None:
        (tmp_path / "pg_hba.conf").write_text(access)
    made: Any = None
    words = Restored(tmp_path, None, made, made, Path("/programs"), 1.0, "").start_command
    private = ["-o", "-c listen_addresses= -c unix_socket_permissions=0700"]
    assert [word for word in words if word in private] == (private if is_private else [])
    assert words[-1] == "start"
