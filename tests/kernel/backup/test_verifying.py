"""Verification against archives made here, each wrong in one way, and the reader of archives against Python's."""

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.commands.backup.verify import verified
from app.kernel.backup import Backup, BackupInvalid, Part
from app.kernel.backup.builtin import Builtin
from app.kernel.backup.catalogue import base_name, record_name, wal_names
from app.kernel.backup.checksums import checksum_of
from app.kernel.backup.engine import Advance, Progress
from app.kernel.backup.sealed import Keys
from app.kernel.backup.tar import Entry, TarReader
from app.kernel.backup.targets.folder import Folder
from app.kernel.backup.timelines import history_name, segment_name
from app.kernel.backup.verifying import Verification
from app.kernel.errors import NotFound
from tests.kernel.backup.conftest import settings_of

QUIET = Progress(lambda _, __: lambda _: None)
KEYS = Keys("k" * 40)
SEGMENT = 2**20
Files = dict[str, bytes]
AT = datetime(2026, 11, 27, tzinfo=UTC)


def crc32c(content: bytes) -> str:
    made = checksum_of("CRC32C")
    made.update(content)
    return made.hexdigest()


def test_crc32c_is_that_of_rfc_3720() -> None:
    assert [crc32c(b"\0" * 32), crc32c(b"\xff" * 32), crc32c(bytes(range(32)))] == ["aa36918a", "43aba862", "4e79dd46"]


def archive(files: Files) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        folder = tarfile.TarInfo("base")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return made.getvalue()


def manifest(files: Files) -> bytes:
    listed = [
        {"Path": name, "Size": len(content), "Checksum-Algorithm": "CRC32C",
         "Checksum": crc32c(content)}
        for name, content in files.items() if not name.startswith("pg_wal/0")
    ]  # fmt: skip
    span = [{"Timeline": 1, "Start-LSN": "0/100028", "End-LSN": "0/200100"}]
    text = json.dumps({"PostgreSQL-Backup-Manifest-Version": 2, "Files": listed, "WAL-Ranges": span})[:-1] + ",\n"
    return f'{text}"Manifest-Checksum": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n'.encode()


def whole() -> Files:
    files = {
        "backup_label": b"START WAL LOCATION: 0/100028",
        "base/1/1259": random.Random(1).randbytes(300_000),
        "base/1/empty": b"",
        "global/pg_control": b"control",
        "pg_wal/archive_status/000000010000000000000001.done": b"",
        "pg_wal/000000010000000000000001": bytes(SEGMENT),
        "pg_wal/000000010000000000000002": bytes(SEGMENT),
    }
    return {**files, "backup_manifest": manifest(files)}


def stored(folder: Path, content: bytes) -> tuple[Folder, Backup]:
    folder.mkdir()
    target, name = Folder(folder), base_name("7", "20261127T000000Z-0001")
    packed = KEYS.pack(name, [content])
    target.put(name, packed)
    backup = Backup(
        "20261127T000000Z-0001", "7", "builtin", AT, AT, 1, "0/100028", "0/200100", 180004, "1", "", "app",
        len(content), packed.part.stored_bytes, SEGMENT, KEYS.id, (packed.part,),
    )  # fmt: skip
    return target, backup


def test_a_backup_on_a_timeline_of_which_no_wal_is_stored_yet_has_no_gap(tmp_path: Path) -> None:
    target, backup = stored(tmp_path / "target", archive(whole()))
    engine = Builtin(settings_of(), target, KEYS)
    name = wal_names(KEYS, "7", segment_name(1, SEGMENT, SEGMENT))[0]
    target.put(name, KEYS.pack(name, [bytes(SEGMENT)], in_threads=False))
    history = wal_names(KEYS, "7", history_name(2))[0]
    target.put(history, KEYS.pack(history, [b"1\t0/100100\trestored\n"], in_threads=False))
    engine.catalogue.add(replace(backup, timeline=2))
    [found] = verified(engine, QUIET)
    assert [problem for problem in found["problems"] if "gap" in problem] == []


def test_a_backup_that_is_deleted_while_all_are_verified_is_not_reported_as_damaged(tmp_path: Path) -> None:
    target, backup = stored(tmp_path / "target", archive(whole()))
    engine = Builtin(settings_of(), target, KEYS)
    engine.catalogue.add(backup)
    engine.catalogue.add(replace(backup, id="20261127T000000Z-0002"))

    def deleting(*names: str) -> Progress:
        def begin(step: str, _: int | None) -> Advance:
            if step in names:
                engine.catalogue.remove(backup)
                target.delete([part.name for part in backup.parts])
            return lambda _: None

        return Progress(begin)

    [first, second] = verified(engine, QUIET)
    assert (first["problems"], second["problems"]) == ([], [])
    [left] = verified(engine, deleting(backup.id))
    assert (left["id"], len(left["problems"])) == ("20261127T000000Z-0002", 1)  # its part is that of the other one


def test_a_damaged_record_is_reported_beside_a_whole_backup_of_the_same_id(tmp_path: Path) -> None:
    target, backup = stored(tmp_path / "target", archive(whole()))
    engine = Builtin(settings_of(), target, KEYS)
    engine.catalogue.add(backup)
    target.put(f"backups/42/{backup.id}/backup.json", [b"{}"])
    [damaged, good] = verified(engine, QUIET)
    assert (damaged["id"], good["id"], good["problems"]) == (backup.id, backup.id, [])
    assert "it is not a whole record" in damaged["problems"][0]


def problems(folder: Path, content: bytes, change: Callable[[Backup], Backup] = lambda b: b) -> tuple[str, ...]:
    target, backup = stored(folder, content)
    return Verification(target, KEYS).verify(change(backup), QUIET).problems


def without(files: Files, name: str) -> Files:
    return {other: content for other, content in files.items() if other != name}


CHANGED: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a file is missing": (lambda f: without(f, "base/1/empty"), "base/1/empty is missing"),
    "a file is added": (lambda f: {"base/1/new": b"x", **f}, "base/1/new is not in the manifest"),
    "a bit is flipped": (lambda f: f | {"global/pg_control": b"controm"}, "global/pg_control has another checksum"),
    "a file is cut off": (lambda f: f | {"global/pg_control": b"contro"}, "global/pg_control has 6 bytes, not 7"),
    "a segment is missing": (lambda f: without(f, "pg_wal/000000010000000000000002"), "000000010000000000000002"),
    "a segment is cut off": (lambda f: f | {"pg_wal/000000010000000000000001": b""}, "000000010000000000000001"),
    "the manifest is missing": (lambda f: without(f, "backup_manifest"), "backup_manifest is missing or damaged"),
    "the manifest is another": (
        lambda f: f | {"backup_manifest": f["backup_manifest"].replace(b'"Size": 7', b'"Size":  7')},
        "its own checksum differs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", CHANGED)
def test_an_archive_that_is_not_what_the_server_sent_is_found(tmp_path: Path, how: str) -> None:
    change, expected = CHANGED[how]
    [problem] = problems(tmp_path / "target", archive(change(whole())))
    assert expected in problem


def test_a_whole_archive_has_no_problem_and_any_cut_or_other_record_is_found(tmp_path: Path) -> None:
    content = archive(whole())
    assert problems(tmp_path / "whole", content) == ()
    assert "ends early" in problems(tmp_path / "cut", content[: len(content) // 2])[0]
    assert "a header of it is wrong" in problems(tmp_path / "other", b"x" * 2000)[0]
    forged = lambda b: replace(b, parts=tuple(replace(part, sha256="0" * 64) for part in b.parts))  # noqa: E731
    assert "not what was stored" in problems(tmp_path / "forged", content, forged)[0]
    gone = lambda b: replace(b, parts=(Part("backups/7/x/base.tar.zst.sealed", "", 1, 1),))  # noqa: E731
    assert "is not stored" in problems(tmp_path / "gone", content, gone)[0]


def test_any_flipped_bit_of_what_is_stored_is_found(tmp_path: Path) -> None:
    target, backup = stored(tmp_path / "target", archive(whole()))
    [path] = [path for path in (tmp_path / "target").rglob("*") if path.is_file()]
    good, chosen = path.read_bytes(), random.Random(20261127)
    for at in (0, len(good) - 1, *(chosen.randrange(len(good)) for _ in range(30))):
        bad = bytearray(good)
        bad[at] ^= 1 << chosen.randrange(8)
        path.write_bytes(bad)
        assert Verification(target, KEYS).verify(backup, QUIET).problems, f"byte {at}"
    path.write_bytes(good)
    assert Verification(target, KEYS).verify(backup, QUIET).problems == ()


def add_wal(target: Folder, *numbers: int) -> None:
    for number in numbers:
        [name] = wal_names(KEYS, "7", f"{1:08X}{0:08X}{number:08X}")
        header = bytearray(SEGMENT)
        header[2] = 2
        header[4] = 1
        header[8:16] = (number * SEGMENT).to_bytes(8, "little")
        header[24:32] = (7).to_bytes(8, "little")
        header[32:36] = SEGMENT.to_bytes(4, "little")
        target.put(name, KEYS.pack(name, [bytes(header)]))


def test_wal_that_is_missing_or_damaged_after_a_backup_is_found_and_read_once(tmp_path: Path) -> None:
    target, backup = stored(tmp_path / "target", archive(whole()))
    add_wal(target, 2, 3, 5)
    verification = Verification(target, KEYS)
    found = verification.verify(backup, QUIET)
    assert found.wal_segments == 3
    assert found.problems == ("gap: WAL from 0/400000 to 0/500000 of timeline 1 is not stored",)
    segment = tmp_path / "target" / wal_names(KEYS, "7", f"{1:08X}{0:08X}{3:08X}")[0]
    segment.write_bytes(segment.read_bytes()[:-1])
    assert verification.verify(backup, QUIET).problems == found.problems, "it was read before"
    assert len(Verification(target, KEYS).verify(backup, QUIET).problems) == 2


def test_a_gap_is_a_problem_until_a_newer_backup_begins_after_it(tmp_path: Path) -> None:
    target, backup = stored(tmp_path / "target", archive(whole()))
    add_wal(target, 2, 3, 5)
    for start, problems in (("0/300028", 1), ("0/4FFFFF", 1), ("0/500000", 0)):
        newer = replace(backup, id="20261127T000000Z-0002", start_lsn=start, stop_lsn="0/500100")
        verification = Verification(target, KEYS, lambda _, newer=newer: (backup, newer))
        assert len(verification.verify(backup, QUIET).problems) == problems, start
    of_a_branch = replace(backup, id="20261127T000000Z-0003", timeline=9, start_lsn="0/500000", stop_lsn="0/500100")
    verification = Verification(target, KEYS, lambda _: (backup, of_a_branch))
    assert len(verification.verify(backup, QUIET).problems) == 1, "it is not on the way that was verified"


def test_a_record_that_is_damaged_while_all_are_verified_is_reported(tmp_path: Path) -> None:
    target, backup = stored(tmp_path / "target", archive(whole()))
    engine = Builtin(settings_of(), target, KEYS)
    engine.catalogue.add(backup)

    def damaging(_step: str, _size: int | None) -> Advance:
        target.put(record_name("7", backup.id), [b"junk"], replace=True)
        return lambda _: None

    [found] = verified(engine, Progress(damaging))
    assert (found["id"], len(found["problems"])) == (backup.id, 1)


def test_verifying_all_of_an_empty_target_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no backup on"):
        verified(Builtin(settings_of(), Folder(tmp_path), KEYS), QUIET)


def test_archives_are_read_as_python_reads_them_whatever_the_pieces(tmp_path: Path) -> None:
    chosen = random.Random(7)
    for _ in range(40):
        files = {f"f/{n}": chosen.randbytes(chosen.choice((0, 1, 511, 512, 513, 9_000))) for n in range(9)}
        content, seen = archive(files), dict[str, bytearray]()

        def opened(entry: Entry, seen: dict[str, bytearray] = seen) -> Callable[[memoryview], object] | None:
            return seen.setdefault(entry.name, bytearray()).extend if entry.is_file else None

        reader, at = TarReader("archive", opened), 0
        while at < len(content):
            size = chosen.choice((1, 100, 511, 512, 513, 5_000, 100_000))
            reader.feed(content[at : at + size])
            at += size
        reader.end()
        assert {name: bytes(found) for name, found in seen.items()} == files
        wrong = bytearray(content[:512])
        wrong[124:136] = b"no size, no\0"
        wrong[148:156] = b"%06o\0 " % (sum(wrong[:148]) + sum(wrong[156:]) + 8 * ord(" "))
        with pytest.raises(BackupInvalid, match="a size in it is wrong"):
            TarReader("archive", opened).feed(bytes(wrong))
        for at, given in ((124, b"-0000001000\0"), (156, b"2"), (156, b"3"), (156, b"x")):
            wrong = bytearray(content[:512])
            wrong[at : at + len(given)] = given
            wrong[148:156] = b"%06o\0 " % (sum(wrong[:148]) + sum(wrong[156:]) + 8 * ord(" "))
            with pytest.raises(BackupInvalid, match="something else than files and folders"):
                TarReader("archive", opened).feed(bytes(wrong))
        early = TarReader("archive", opened)
        early.feed(content[: chosen.randrange(len(content.rstrip(b"\0")))])
        with pytest.raises(BackupInvalid):
            early.end()
