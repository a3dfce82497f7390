"""Pruning a target: only what is not kept goes, and an interruption at any moment leaves nothing half."""

import os
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from app.kernel.backup import Backup, Target
from app.kernel.backup.catalogue import Catalogue, base_name, record_name, wal_names
from app.kernel.backup.engine import Stopped
from app.kernel.backup.pruning import needing_wal, prune
from app.kernel.backup.retention import Policy
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from app.kernel.backup.timelines import Fork, history_name, segment_name
from app.kernel.backup.wal import WalArchive
from tests.kernel.backup.test_retention import SEGMENT, backup

KEYS = Keys("k" * 32)
DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)
POLICY = Policy(keep=5 * DAY, weekly=0, monthly=0)


class Killed(BaseException):
    """Stands for the end of the process."""


class Mortal(Folder):
    """A folder whose process dies after some deletions."""

    def __init__(self, root: Path, lives: int) -> None:
        super().__init__(root)
        self.lives = lives

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            if self.lives == 0:
                raise Killed
            self.lives -= 1
            super().delete([name])


def wal_name(cluster: str, file: str, keys: Keys = KEYS) -> str:
    return wal_names(keys, cluster, file)[0]


def filled(target: Target, days: int = 12, cluster: str = "7", size: int = 1) -> list[Backup]:
    """Store a backup, and a segment of WAL, of each of the days before now."""
    backups = [backup(NOW - (days - number) * DAY, number, cluster=cluster) for number in range(1, days + 1)]
    for number, one in enumerate(backups, 1):
        target.put(base_name(cluster, one.id), [bytes(size)])
        Catalogue(target, KEYS).add(one)
        target.put(wal_name(cluster, segment_name(1, number * SEGMENT, SEGMENT)), [bytes(size)])
    return backups


def snapshot(target: Target) -> set[str]:
    return {stored.name for stored in target.list()}


def run(target: Target, *, is_dry: bool = False, keys: Keys = KEYS, now: datetime = NOW) -> Any:
    return prune(target, keys, POLICY, is_dry=is_dry, now=now)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_pruning_that_is_stopped_deletes_no_further_backup_and_the_next_one_goes_on(target: Target) -> None:
    backups = filled(target, 12)
    calls = 0

    def advance(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stopped

    with pytest.raises(Stopped):
        prune(target, KEYS, POLICY, is_dry=False, now=NOW, advance=advance)
    assert Catalogue(target, KEYS).backups() == backups[1:]
    assert run(target).backups == tuple(one.id for one in backups[1:3])


def test_what_is_not_kept_goes_and_a_dry_run_says_the_same_and_changes_nothing(target: Target) -> None:
    backups = filled(target, 12, size=1000)
    before = snapshot(target)
    said = run(target, is_dry=True)
    assert snapshot(target) == before
    pruned = run(target)
    assert pruned == said
    kept = backups[3:]  # five days before the third newest, and the one before
    assert pruned.kept == tuple(one.id for one in kept)
    assert pruned.backups == tuple(one.id for one in backups[:3])
    assert pruned.wal_segments == 3
    assert Catalogue(target, KEYS).backups() == kept
    assert pruned.freed_bytes > 6000
    wanted = {base_name("7", one.id) for one in kept} | {record_name("7", one.id) for one in kept}
    assert snapshot(target) == wanted | {wal_name("7", segment_name(1, n * SEGMENT, SEGMENT)) for n in range(4, 13)}
    again = run(target)
    assert (again.backups, again.wal_segments, again.freed_bytes) == ((), 0, 0)
    assert needing_wal(Catalogue(target, KEYS), POLICY, "7", NOW) == tuple(kept)


def test_backups_that_are_kept_for_longer_are_kept_without_their_wal(folder: Folder) -> None:
    backups, policy = filled(folder, 20), Policy(keep=5 * DAY, weekly=2, monthly=0)
    pruned = prune(folder, KEYS, policy, is_dry=False, now=NOW)
    needing = needing_wal(Catalogue(folder, KEYS), policy, "7", NOW)
    assert needing == tuple(backups[11:])
    assert set(pruned.kept) - {one.id for one in needing}
    assert Catalogue(folder, KEYS).get("latest") == backups[-1]
    assert min(name for name in snapshot(folder) if name.startswith("wal/")) == wal_name(
        "7", segment_name(1, 12 * SEGMENT, SEGMENT)
    )


@pytest.mark.parametrize("steps", range(9))
def test_a_pruning_that_is_killed_leaves_only_whole_backups_and_the_next_one_ends_it(
    folder: Folder, tmp_path: Path, steps: int
) -> None:
    backups = filled(folder, 12)
    every = sorted(name for name in snapshot(folder) if name.startswith("wal/"))
    with pytest.raises(Killed):
        run(Mortal(tmp_path, steps))
    names = snapshot(folder)
    listed = Catalogue(folder, KEYS).backups()
    assert {base_name("7", one.id) for one in listed} <= names
    assert set(backups[3:]) <= set(listed)
    left = sorted(name for name in names if name.startswith("wal/"))
    assert left == every[-len(left) :]  # no hole
    run(folder)
    assert Catalogue(folder, KEYS).backups() == backups[3:]
    assert sorted(name for name in snapshot(folder) if name.startswith("wal/")) == every[3:]


def test_two_prunings_at_once_keep_the_same(folder: Folder) -> None:
    backups = filled(folder, 14)
    errors: list[Exception] = []

    def one() -> None:
        try:
            run(folder)
        except Exception as error:  # noqa: BLE001 - the test says which
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert Catalogue(folder, KEYS).backups() == backups[5:]


def test_every_cluster_keeps_its_newest_and_other_clusters_lose_nothing_for_it(folder: Folder) -> None:
    old = backup(NOW - 400 * DAY, 5, cluster="3")
    folder.put(base_name("3", old.id), [b"x"])
    Catalogue(folder, KEYS).add(old)
    folder.put(wal_name("3", segment_name(1, 4 * SEGMENT, SEGMENT)), [b"x"])
    folder.put(wal_name("3", segment_name(1, 5 * SEGMENT, SEGMENT)), [b"x"])
    new = filled(folder, 12)
    pruned = run(folder)
    assert pruned.kept == (old.id, *(one.id for one in new[3:]))
    assert wal_name("3", segment_name(1, 5 * SEGMENT, SEGMENT)) in snapshot(folder)
    assert wal_name("3", segment_name(1, 4 * SEGMENT, SEGMENT)) not in snapshot(folder)


def test_nothing_goes_of_a_cluster_whose_timelines_cannot_be_understood(folder: Folder) -> None:
    filled(folder, 12)
    others = filled(folder, 12, cluster="8")
    # timeline 2, of which nobody can tell where it left timeline 1
    folder.put(wal_name("7", segment_name(2, 9 * SEGMENT, SEGMENT)), [b"x"])
    before = {name for name in snapshot(folder) if "/7/" in name}
    pruned = run(folder)
    assert {name for name in snapshot(folder) if "/7/" in name} == before
    assert pruned.backups == tuple(one.id for one in others[:4])


@pytest.mark.parametrize("damage", ["half", "another key"])
def test_a_record_that_cannot_be_read_keeps_its_backup_and_the_wal_of_the_window(
    folder: Folder, tmp_path: Path, damage: str
) -> None:
    backups = filled(folder, 12)
    for one in (backups[1], backups[6]):
        whole = b"".join(folder.get(record_name("7", one.id)))
        folder.delete([record_name("7", one.id)])
        if damage == "half":
            folder.put(record_name("7", one.id), [whole[:-9]])
        else:
            Catalogue(folder, Keys("o" * 32)).add(one)
    for number in (1, 3):  # the others were stored now
        old = (NOW - (10 - number) * DAY).timestamp()  # the window began 7 days ago
        os.utime(tmp_path / wal_name("7", segment_name(1, number * SEGMENT, SEGMENT)), (old, old))
    before = snapshot(folder)
    assert run(folder).backups == (backups[0].id, backups[2].id)
    gone = {wal_name("7", segment_name(1, SEGMENT, SEGMENT))}
    for one in (backups[0], backups[2]):
        gone |= {base_name("7", one.id), record_name("7", one.id)}
    assert before - snapshot(folder) == gone


def test_with_another_key_nothing_goes_and_the_log_says_why(folder: Folder) -> None:
    filled(folder, 12)
    before, lines = snapshot(folder), list[str]()
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    try:
        assert run(folder, keys=Keys("o" * 32)).backups == ()
    finally:
        logger.remove(sink)
    [line] = lines
    assert line.startswith("of the cluster 7, nothing is deleted: ")
    assert "is sealed with the key" in line
    assert snapshot(folder) == before


def test_the_history_of_a_timeline_is_kept_and_shows_what_it_comes_from(folder: Folder) -> None:
    backups = filled(folder, 12)
    name = wal_name("7", history_name(2))
    text = b"1\t0/2800000\tbefore a mistake\n"  # within segment 2
    folder.put(name, KEYS.pack(name, [text]))
    folder.put(wal_name("7", segment_name(2, 2 * SEGMENT, SEGMENT)), [b"x"])
    pruned = run(folder)
    assert backups[1].id in pruned.kept  # from which timeline 2, which is written now, is reached
    assert backups[0].id in pruned.backups
    assert {name, wal_name("7", segment_name(1, 2 * SEGMENT, SEGMENT))} <= snapshot(folder)


def test_pruning_seals_histories_anew_so_that_the_former_key_can_go(folder: Folder) -> None:
    filled(folder, 3)
    name, text, new = wal_name("7", history_name(2)), b"1\t0/2800000\tbefore a mistake\n", Keys("n" * 32)
    folder.put(name, KEYS.pack(name, [text]))
    run(folder, is_dry=True, keys=Keys("n" * 32, "k" * 32))
    assert WalArchive(folder, KEYS, "7").history(2) == (Fork(1, 0x2800000),)
    for _ in range(2):
        run(folder, keys=Keys("n" * 32, "k" * 32))
        assert WalArchive(folder, new, "7").history(2) == (Fork(1, 0x2800000),)
        assert name not in snapshot(folder)


def test_a_clock_a_year_ahead_prunes_no_more_than_the_right_one(tmp_path: Path) -> None:
    outcomes: list[set[str]] = []
    for name, now in (("right", NOW), ("wrong", NOW + 365 * DAY)):
        (tmp_path / name).mkdir()
        filled(Folder(tmp_path / name), 12)
        run(Folder(tmp_path / name), now=now)
        outcomes.append(snapshot(Folder(tmp_path / name)))
    assert outcomes[0] == outcomes[1]


def test_what_an_upload_or_a_removal_left_goes_after_a_day_and_a_later_backup(folder: Folder, tmp_path: Path) -> None:
    left = base_name("7", "20260101T000000Z-0000")
    folder.put(left, [b"left"])
    filled(folder, 3)
    run(folder)
    assert left in snapshot(folder)  # it may be a backup that runs
    old = (NOW - 2 * DAY).timestamp()
    os.utime(tmp_path / left, (old, old))
    for probe in ("probe/of-a-killed-doctor", "probe/of-another"):
        folder.put(probe, [b""])
    os.utime(tmp_path / "probe/of-a-killed-doctor", (old, old))
    os.utime(tmp_path / "probe/of-another", (NOW.timestamp(),) * 2)
    upload = tmp_path / "backups/7/.upload-0123456789abcdef"
    upload.write_bytes(b"half")
    os.utime(upload, (old, old))
    assert run(folder, is_dry=True).freed_bytes == 4
    assert left in snapshot(folder)
    assert run(folder).freed_bytes == 4
    assert left not in snapshot(folder)
    assert not upload.exists()
    assert [stored.name for stored in folder.list("probe/")] == ["probe/of-another"]
