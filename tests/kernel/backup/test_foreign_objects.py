"""What others put on a target, who have no key, changes no decision: names are as hostile as content."""

import os
import random
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.kernel.backup import Backup, BackupInvalid
from app.kernel.backup.builtin import Builtin
from app.kernel.backup.catalogue import Catalogue, base_name, record_name, wal_names
from app.kernel.backup.engine import Progress, Restore
from app.kernel.backup.pruning import prune
from app.kernel.backup.restoring import planned
from app.kernel.backup.retention import Policy
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from app.kernel.backup.timelines import history_name, segment_name
from app.kernel.backup.verifying import Verification
from app.kernel.backup.wal import WalArchive
from app.kernel.errors import NotFound
from tests.conftest import required
from tests.kernel.backup.conftest import settings_of
from tests.kernel.backup.test_retention import SEGMENT, backup

KEYS, FOREIGN = Keys("k" * 32), Keys("o" * 32)
DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0) + 30 * DAY  # so that what is stored now is older than the window
POLICY = Policy(keep=5 * DAY, weekly=0, monthly=0)
QUIET = Progress(lambda _, __: lambda _: None)
FORK = b"1\t0/9800000\tbefore a mistake\n"  # within segment 9


def filled(target: Folder) -> list[Backup]:
    """Store a backup and a segment of each of 12 days; then timeline 2, and 3 that nothing was written on."""
    backups = [backup(NOW - (12 - number) * DAY, number, timeline=1 + (number > 9)) for number in range(1, 13)]
    for number, one in enumerate(backups, 1):
        target.put(base_name("7", one.id), [b"x"])
        Catalogue(target, KEYS).add(one)
        put(target, segment_name(one.timeline, number * SEGMENT, SEGMENT))
    put(target, segment_name(2, 9 * SEGMENT, SEGMENT))
    put(target, history_name(2), FORK)
    put(target, history_name(3), FORK)
    return backups


def put(target: Folder, file: str, content: bytes = b"x") -> None:
    [name] = wal_names(KEYS, "7", file)
    target.put(name, KEYS.pack(name, [content]))


def junk(rng: random.Random, target: Folder, backups: list[Backup]) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents that one can make who reads everything and has another key."""
    stored = [one.name for one in target.list()]
    for _ in range(300):
        timeline, number = rng.choice((1, 2, 3, 4, 0xFFFFFFFF)), rng.choice((0, 3, 9, 13, 14, 2**20, 2**40 - 1))
        file = rng.choice((
            segment_name(timeline, number * SEGMENT, SEGMENT), history_name(timeline),
            segment_name(timeline, number * SEGMENT, SEGMENT) + ".partial",
        ))  # fmt: skip
        mark = rng.choice(stored).removesuffix(".zst.sealed").rpartition(".")[2]
        [sealed] = wal_names(FOREIGN, "7", file)
        name = rng.choice((sealed, f"wal/7/{file}.zst.sealed", f"wal/7/{file}.{mark}.zst.sealed", f"wal/7/{file}"))
        yield name, b"".join(FOREIGN.pack(name, [FORK])) if rng.random() < 0.5 else rng.randbytes(99)
    for one in backups:
        record = b"".join(target.get(record_name("7", one.id)))
        yield record_name("8", one.id), record
        yield record_name("7", f"{one.id}0"), record
        yield record_name("7", f"2030{one.id[4:]}"), record.replace(b'"timeline": 1', b'"timeline": 9')
        yield f"backups/7/{one.id}/more/backup.json", record
        yield f"backups/{one.id}", b""
        yield f"other/{one.id}/backup.json", record


def decisions(target: Folder, backups: list[Backup]) -> dict[str, object]:
    """Return everything that is decided from what is stored."""
    archive, catalogue = WalArchive(target, KEYS, "7", SEGMENT), Catalogue(target, KEYS)
    begin = int(backups[8].stop_lsn.partition("/")[2], 16)
    pruned = prune(target, KEYS, POLICY, is_dry=True, now=NOW)
    plans = [planned(Restore(Path(), **wanted), target, KEYS) for wanted in (
        {}, {"timeline": 1, "backup": backups[8].id}, {"lsn": backups[10].stop_lsn},
    )]  # fmt: skip
    engine = Builtin(settings_of(), target, KEYS)
    return {
        "latest": [catalogue.get("latest"), catalogue.backups(), *(catalogue.get(one.id) for one in backups)],
        "stored": [(wal.file, wal.stored.name) for wal in archive.files()],
        "gaps": [archive.gaps(begin, 1), archive.gaps(begin, 1, stretches=archive.stretches(1))],
        "position": [archive.position(), archive.position(1), engine.wal("7")],
        "timelines": [archive.history(timeline) for timeline in (1, 2, 3, 4, 0xFFFFFFFF)],
        "restored": [(plan.backup, plan.timeline, plan.lsn, plan.stretches, plan.segments) for plan in plans],
        "verified": [Verification(target, KEYS).verify(one, QUIET).problems for one in backups[8:]],
        "pruned": [pruned.backups, pruned.kept, pruned.wal_segments],
    }


@pytest.mark.parametrize("seed", range(3))
def test_names_that_are_not_made_with_the_key_change_no_decision(tmp_path: Path, seed: int) -> None:
    target, rng = Folder(tmp_path), random.Random(seed)
    backups = filled(target)
    before, own = decisions(target, backups), {one.name for one in target.list()}
    assert before["pruned"] == [tuple(one.id for one in backups[:3]), tuple(one.id for one in backups[3:]), 3]
    for name, content in junk(rng, target, backups):
        place = tmp_path / name
        with suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch(exist_ok=False)
            place.write_bytes(content)
    assert len({one.name for one in target.list()}) > len(own) + 200
    found = decisions(target, backups)
    for what, expected in before.items():
        assert found[what] == expected, what
    prune(target, KEYS, POLICY, is_dry=False, now=NOW)
    assert Catalogue(target, KEYS).backups() == backups[3:]
    assert own - {one.name for one in target.list()} == {
        *(f"backups/7/{one.id}/{file}" for one in backups[:3] for file in ("base.tar.zst.sealed", "backup.json")),
        *(wal_names(KEYS, "7", segment_name(1, number * SEGMENT, SEGMENT))[0] for number in (1, 2, 3)),
    }


def fifo(place: Path) -> None:
    os.mkfifo(place)


def device(place: Path) -> None:
    os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # of zeros without end


def bound(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))


@pytest.mark.parametrize("make", [fifo, device, bound, Path.mkdir, lambda place: place.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    Path("target/wal/7").mkdir(parents=True)
    target, [name] = Folder(tmp_path / "target"), wal_names(KEYS, "7", segment_name(1, SEGMENT, SEGMENT))
    target.put("wal/7/other", [b"x"])
    upload = Path("target/wal/7/.upload-0123456789abcdef")
    try:
        for place in (Path("target", name), upload):
            make(place)
    except PermissionError:  # a device, without the capability
        required("permission to make a device")
    assert [one.name for one in target.list()] == ["wal/7/other"]
    with pytest.raises(BackupInvalid, match=f"{name} in .* cannot be read"):
        b"".join(target.get(name))
    assert target.clean(0) == 0
    if make is not Path.mkdir:  # what the server has takes its place
        target.put(name, [b"x"], replace=True)
        assert b"".join(target.get(name)) == b"x"
        target.delete([name])
        with pytest.raises(NotFound):
            b"".join(target.get(name))


def test_names_and_folders_that_cannot_be_objects_are_passed_over(tmp_path: Path) -> None:
    target = Folder(tmp_path)
    backups = filled(target)
    before = list(target.list())
    for name in (b"wal/7/\xff\xfe", b"wal/7/.hidden", b"backups/7/a b", b"lost+found/x", b".snapshot/backups/7/x"):
        place = tmp_path / os.fsdecode(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    assert list(target.list()) == before
    assert Catalogue(target, KEYS).backups() == backups
