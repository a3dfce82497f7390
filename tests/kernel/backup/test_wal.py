"""Arithmetic of WAL, and the archive on a target."""

import random
import struct
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from app.kernel.backup import Backup, BackupInvalid
from app.kernel.backup.catalogue import Catalogue
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from app.kernel.backup.timelines import (
    Fork,
    Stretch,
    history_name,
    history_of,
    lsn_number,
    lsn_text,
    segment_name,
    timeline_at,
    wal_file,
    way,
)
from app.kernel.backup.wal import StoredWal, WalArchive
from app.kernel.errors import Conflict
from tests.conftest import TestDatabase

MIB = 1024 * 1024
CLUSTER = "7712970943962918758"


def test_names_of_segments_are_those_of_the_server(database: TestDatabase) -> None:
    rng, size = random.Random(1), 16 * MIB
    numbers = [0, size, 2**32 - 2, 2**32, *(rng.randrange(2**50) for _ in range(200))]
    sql = "SELECT pg_walfile_name(lsn::pg_lsn + 1), lsn::pg_lsn - '0/0' FROM unnest(%s::text[]) lsn"
    with psycopg.connect(database.conninfo) as connection:
        told = connection.execute(sql, ([lsn_text(number) for number in numbers],)).fetchall()
    assert [int(number) for _, number in told] == numbers
    assert [segment_name(1, number, size) for number in numbers] == [name for name, _ in told]
    for name, number in told:
        file = wal_file(name, size)
        assert file is not None
        assert file.start(size) <= number < file.start(size) + size


@pytest.mark.parametrize("segment_mb", [1, 64, 1024])
def test_a_segment_of_any_size_is_found_again_by_its_name(segment_mb: int) -> None:
    rng, size = random.Random(segment_mb), segment_mb * MIB
    for _ in range(200):
        number = rng.randrange(2**45)
        file = wal_file(segment_name(7, number, size), size)
        assert file is not None
        assert (file.timeline, file.number) == (7, number // size)


def test_a_name_that_the_server_would_not_write_is_not_that_of_another_segment() -> None:
    assert wal_file("0000000100000001000000FF", 16 * MIB) is not None
    assert wal_file("0000000100000000000001FF", 16 * MIB) is None  # would have the same position


@pytest.mark.parametrize(
    "content", [b"", b"garbage\n", b"\xff\n", b"2\t0/100\tof itself\n", b"9\t0/100\tof a later one\n"]
)
def test_a_history_that_is_none_is_not_stored(archive: WalArchive, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / history_name(2)
    path.write_bytes(content)
    with pytest.raises(BackupInvalid):
        archive.put(path)
    path.write_bytes(b"1\t0/100\t\xff\n")
    assert archive.put(path)


def test_a_history_that_nothing_is_stored_of_gives_way_to_that_of_the_server_that_streams(
    archive: WalArchive, tmp_path: Path
) -> None:
    history = tmp_path / history_name(2)
    history.write_text("1\t0/100\tof a restored server\n")
    assert archive.put(history)
    history.write_text("1\t0/300000\tof the standby that took over\n")
    with pytest.raises(Conflict, match="stored already with other content"):
        archive.put(history)  # of a further restore
    assert archive.put(history, is_live=True)
    assert archive.history(2) == (Fork(1, 0x300000),)
    assert not archive.put(history)
    archive.put(segment(tmp_path, segment_name(2, 3 * MIB, MIB)))
    history.write_text("1\t0/100\tof a restored server\n")
    with pytest.raises(Conflict, match="stored already with other content"):
        archive.put(history, is_live=True)
    assert archive.history(2) == (Fork(1, 0x300000),)


def test_a_history_on_which_a_backup_was_taken_is_kept(archive: WalArchive, tmp_path: Path) -> None:
    history = tmp_path / history_name(2)
    history.write_text("1\t0/100\tbefore the backup\n")
    archive.put(history)
    now = datetime.now(UTC)
    taken = Backup("one", CLUSTER, "builtin", now, now, 2, "0/100", "0/200", 180000, "0", "", "app", 0, 0)
    Catalogue(Folder(tmp_path / "target"), Keys("k" * 40)).add(taken)
    history.write_text("1\t0/300000\tof another server\n")
    with pytest.raises(Conflict, match="stored already with other content"):
        archive.put(history, is_live=True)


def test_positions_and_histories_are_read_as_the_server_writes_them() -> None:
    assert lsn_number("16/B374D848") == 0x16B374D848
    text = "1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t0/5A00000\tbefore 2026-11-27 10:00:00+00\n"
    assert history_of(text) == (Fork(1, 0x3000148), Fork(2, 0x5A00000))
    for wrong in ("1", "1\tnowhere", "2\t0/1\n1\t0/2", "1\t0/5\n2\t0/4"):
        with pytest.raises(BackupInvalid):
            history_of(wrong)
    with pytest.raises(ValueError, match="no position"):
        lsn_number("0/1 or so")


def segment(folder: Path, name: str, content: bytes = b"", cluster: str = CLUSTER, size: int = MIB) -> Path:
    """Write a segment as the server does: a header, some content, zeros."""
    file = wal_file(name, size)
    assert file is not None
    header = struct.pack("=HHIQI4xQII", 0xD110, 2, file.timeline, file.start(size), 0, int(cluster), size, 8192)
    path = folder / name
    path.write_bytes((header + content).ljust(size, b"\0"))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> WalArchive:
    (tmp_path / "target").mkdir()
    return WalArchive(Folder(tmp_path / "target"), Keys("k" * 40), CLUSTER, MIB)


def stored(archive: WalArchive) -> list[str]:
    return [wal.file.name for wal in archive.files()]


def test_a_full_segment_is_stored_once_and_supersedes_its_part(archive: WalArchive, tmp_path: Path) -> None:
    name = segment_name(1, 5 * MIB, MIB)
    part = segment(tmp_path, f"{name}.partial", b"a" * 100)
    assert archive.put(part)
    assert archive.reached == (1, 5 * MIB + 40 + 100)
    full = segment(tmp_path, name, b"a" * 5000)
    assert archive.put(full)
    assert not archive.put(full)
    assert stored(archive) == [name]
    with pytest.raises(Conflict, match="other content"):
        archive.put(segment(tmp_path, name, b"b" * 5000))
    again = WalArchive(archive._target, Keys("k" * 40), CLUSTER, MIB)
    assert not again.put(part)  # as after a restart
    assert stored(archive) == [name]
    into = tmp_path / "into"
    assert archive.get(name, into)
    assert into.read_bytes()[40:].rstrip(b"\0") == b"a" * 5000


def test_a_part_replaces_a_shorter_one_only_also_after_a_restart(archive: WalArchive, tmp_path: Path) -> None:
    name = f"{segment_name(1, 0, MIB)}.partial"
    for length, is_stored in ((9000, True), (9000, False), (200, False), (20000, True)):
        assert archive.put(segment(tmp_path, name, b"a" * length)) is is_stored
    again = WalArchive(archive._target, Keys("k" * 40), CLUSTER, MIB)
    assert not again.put(segment(tmp_path, name, b"a" * 10000))
    position = again.position()
    assert position is not None
    assert (position.timeline, position.lsn) == (1, 40 + 20000)
    assert archive.get(name.removesuffix(".partial"), tmp_path / "into")
    assert (tmp_path / "into").stat().st_size == MIB
    assert not archive.get(segment_name(1, 9 * MIB, MIB), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("former", [(), ("k" * 40,)], ids=["lost", "known"])
def test_what_another_key_sealed_does_not_keep_wal_from_being_stored(
    archive: WalArchive, tmp_path: Path, former: tuple[str, ...]
) -> None:
    part, history = segment(tmp_path, f"{segment_name(2, 0, MIB)}.partial", b"a" * 9000), tmp_path / "00000002.history"
    history.write_text("1\t0/100\tbefore\n")
    full = segment(tmp_path, segment_name(2, 9 * MIB, MIB), b"a")
    paths = [part, history, full]
    for path in paths:
        assert archive.put(path)
    later = WalArchive(archive._target, Keys("l" * 40, *former), CLUSTER, MIB)
    for path in paths:
        assert later.put(path) is not bool(former), "the same content is stored once"
        assert later.get(path.name, tmp_path / "into")
    assert later.history(2) == ((1, 0x100),)
    assert sorted(stored(later)) == sorted(path.name for path in paths)
    whole = segment(tmp_path, segment_name(2, 0, MIB), b"a" * 9000)
    assert later.put(whole)
    assert part.name not in stored(later)
    if former:
        with pytest.raises(Conflict, match="other content"):
            later.put(segment(tmp_path, full.name, b"b"))


def test_a_stored_segment_that_is_damaged_is_replaced_by_what_the_server_has(
    archive: WalArchive, tmp_path: Path
) -> None:
    path = segment(tmp_path, segment_name(1, 5 * MIB, MIB), b"a" * 5000)
    archive.put(path)
    [(_, object_)] = archive.files()
    damaged = tmp_path / "target" / object_.name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert archive.put(path)
    assert archive.get(path.name, tmp_path / "into")
    assert (tmp_path / "into").read_bytes() == path.read_bytes()


def test_what_is_not_the_wal_that_its_name_says_is_refused(archive: WalArchive, tmp_path: Path) -> None:
    name, other = segment_name(1, 5 * MIB, MIB), segment_name(1, 6 * MIB, MIB)
    with pytest.raises(Conflict, match="of the cluster 1, not"):
        archive.put(segment(tmp_path, name, cluster="1"))
    with pytest.raises(BackupInvalid, match="other WAL than its name says"):
        archive.put(segment(tmp_path, name).rename(tmp_path / other))
    path = segment(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BackupInvalid, match="bytes"):
        archive.put(path)
    path.write_bytes(b"\1" * MIB)
    with pytest.raises(BackupInvalid, match="header"):
        archive.put(path)
    for wrong in ("backup_label", "0000000100000000000000", f"{name}.gz"):
        (tmp_path / wrong).write_bytes(b"")
        with pytest.raises(BackupInvalid, match="not the name"):
            archive.put(tmp_path / wrong)
    assert stored(archive) == []


def test_gaps_are_what_a_slow_oracle_finds(archive: WalArchive) -> None:
    rng = random.Random(15)
    size = MIB
    seen = 0
    for _ in range(400):
        forks, lsn = [], 0
        for timeline in range(1, rng.randrange(1, 5)):
            lsn += rng.randrange(1, 4 * size)
            forks.append(Fork(timeline, lsn))
        stretches = way(len(forks) + 1, forks)
        end = lsn // size + rng.randrange(1, 5)
        names = {segment_name(timeline_at(stretches, n, size), n * size, size) for n in range(end)}
        kept = {name for name in names if rng.random() < 0.8}
        # what an old primary wrote after it was left
        strays = {segment_name(s.timeline, s.end + size, size) for s in stretches if s.end is not None}
        files = [
            StoredWal(file, None)  # type: ignore[arg-type]
            for name in sorted(kept | strays)
            if (file := wal_file(name, size)) is not None
        ]
        begin = rng.randrange(end * size)
        timeline = next(s.timeline for s in reversed(stretches) if s.begin <= begin)
        found = archive.gaps(begin, timeline, stretches=stretches, files=files)
        present = {int(name[8:16], 16) * 4096 + int(name[16:], 16) for name in kept | (strays & names)}
        missing = [n for n in range(begin // size, max(present, default=-1) + 1) if n not in present]
        assert {n for gap in found for n in range(gap.begin // size, -(-gap.end // size))} == set(missing)
        assert all(gap.begin >= begin for gap in found)
        seen += bool(found)
    assert 50 < seen < 400


def test_a_position_of_another_branch_is_a_gap_until_the_timeline_began(archive: WalArchive) -> None:
    stretches = (Stretch(1, 0, 2 * MIB), Stretch(3, 2 * MIB, None))
    [gap] = archive.gaps(5 * MIB // 2, 2, stretches=stretches, files=[])
    assert (gap.timeline, gap.begin) == (2, 5 * MIB // 2)
    assert archive.gaps(2 * MIB, 1, stretches=stretches, files=[]) == []
    assert [g.begin for g in archive.gaps(3 * MIB, 1, stretches=stretches, files=[])] == [3 * MIB]
