"""The catalogue lists what is whole and signed, reports the rest, and finds a backup by the beginning of its id."""

import json
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.kernel.backup import Backup, BackupInvalid, Count, Counts, Part, Target
from app.kernel.backup.catalogue import BACKUPS, Catalogue, base_name, record_name
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from app.kernel.errors import Conflict, Invalid, NotFound
from tests.kernel.backup.test_retention import backup

KEYS = Keys("k" * 32)
BEGIN = datetime(2026, 11, 1, 2, 15, tzinfo=UTC)


def whole(number: int = 0, cluster: str = "7") -> Backup:
    one = backup(BEGIN + timedelta(days=number), number + 1, cluster=cluster)
    part = Part(base_name(cluster, one.id), "0" * 64, 10, 20)
    counts = Counts("0/3000060", "700:705:701", (Count("auth.actors", 3), Count("kernel.jobs", 5, 0.1)))
    return replace(one, parts=(part,), counts=counts, key_id=KEYS.id)


def stored(target: Target, *backups: Backup, keys: Keys = KEYS) -> Catalogue:
    catalogue = Catalogue(target, keys)
    for one in backups:
        target.put(base_name(one.cluster, one.id), [b"base"])
        catalogue.add(one)
    return catalogue


def record_of(target: Target, one: Backup) -> Any:
    return json.loads(b"".join(target.get(record_name(one.cluster, one.id))))


def signed(signature: str, content: Any) -> bytes:
    return f'{{"signature": "{signature}",\n"backup": {json.dumps(content, indent=1)}}}\n'.encode()


def overwrite(target: Target, one: Backup, content: bytes) -> None:
    target.put(record_name(one.cluster, one.id), [content], replace=True)


def test_backups_of_all_clusters_are_listed_as_they_were_added_oldest_first(target: Target) -> None:
    backups = [whole(0), whole(1, "99"), whole(2), whole(3, "10")]
    catalogue = stored(target, *reversed(backups))
    assert catalogue.backups() == backups
    with pytest.raises(Conflict):
        catalogue.add(replace(backups[0], size_bytes=9))
    target.put(base_name("7", "20261127T021500Z-0000"), [b"a base that is being uploaded"])
    assert catalogue.backups() == backups
    catalogue.remove(backups[2])
    catalogue.remove(backups[2])
    assert catalogue.backups() == [backups[0], backups[1], backups[3]]
    assert list(target.list(base_name("7", backups[2].id))) == []


def test_a_backup_of_too_many_tables_for_its_record_is_listed_without_their_rows(tmp_path: Path) -> None:
    tables = tuple(Count(f"{'s' * 63}.{number:063}", number) for number in range(30_000))
    many = replace(whole(), counts=Counts("0/3000060", "700:705:701", tables))
    catalogue = stored(Folder(tmp_path), many)
    assert catalogue.read() == ([replace(many, counts=None)], [])


def test_a_record_that_is_forged_edited_or_half_is_reported_and_never_listed(tmp_path: Path) -> None:
    target, good, bad = Folder(tmp_path), whole(0), whole(1)
    catalogue = stored(target, good, bad)
    text, record = b"".join(target.get(record_name("7", bad.id))), record_of(target, bad)

    def edited(**changes: object) -> bytes:
        return signed(record["signature"], {**record["backup"], **changes})

    forged = [
        *(edited(**{key: value}) for key, value in [
            ("stored_bytes", 9), ("database", "x"), ("start_lsn", "0/0"), ("depends_on", ["x"]), ("more", 1),
            ("counts", None), ("parts", []), ("finished_at", "2030-01-01T00:00:00Z"), ("key_id", ""),
        ]),
        signed("", record["backup"]), signed(Keys("o" * 32).sign(b"x"), record["backup"]),
        signed(KEYS.sign(b"x"), record["backup"]), json.dumps({"backup": record["backup"]}).encode(), text + b" ",
        json.dumps(record, indent=1).encode(), signed(KEYS.sign(b'"backup": {}'), {}),
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (5 * 1024 * 1024),
        b"".join(target.get(record_name("7", good.id))),  # that of another backup
        *(text[:length] for length in random.Random(1).sample(range(len(text) - 1), 20)),
    ]  # fmt: skip
    for content in forged:
        overwrite(target, bad, content)
        backups, damaged = catalogue.read()
        assert backups == [good]
        assert [(one.cluster, one.backup) for one in damaged] == [("7", bad.id)]
        assert bad.id in damaged[0].problem
        assert "\n" not in damaged[0].problem
        with pytest.raises(BackupInvalid, match=bad.id):
            catalogue.get(bad.id)
        assert catalogue.get("latest") == good
    overwrite(target, bad, signed(record["signature"], None).replace(b"null", b"no JSON"))
    assert "its signature does not match" in catalogue.read()[1][0].problem, "it is not parsed before that is known"
    overwrite(target, bad, text)
    assert catalogue.backups() == [good, bad]
    assert signed(record["signature"], record["backup"]) == text, "the forged ones differ in what they say alone"


def test_a_record_in_the_folder_of_another_backup_or_cluster_is_damaged(tmp_path: Path) -> None:
    target, one = Folder(tmp_path), whole()
    catalogue = stored(target, one)
    content = [b"".join(target.get(record_name("7", one.id)))]
    for place in (record_name("8", one.id), record_name("7", "20990101T000000Z-0000")):
        target.put(place, content)
        assert catalogue.backups() == [one]
        assert "it is the record of another backup" in catalogue.read()[1][0].problem
        target.delete([place])


def test_records_of_the_former_key_are_listed_until_it_is_removed(tmp_path: Path) -> None:
    target, old, new = Folder(tmp_path), whole(0), whole(1)
    rotated = Keys("n" * 32, "k" * 32)
    stored(target, old)
    stored(target, new, keys=rotated)
    assert Catalogue(target, rotated).backups() == [old, new]
    removed = Catalogue(target, Keys("n" * 32))
    assert removed.backups() == [new]
    assert f"sealed with the key '{KEYS.id}'" in removed.read()[1][0].problem
    with pytest.raises(BackupInvalid) as caught:
        removed.get(old.id)
    assert "backup.key_previous" in caught.value.hint


def test_an_id_may_be_shortened_while_no_other_begins_so(tmp_path: Path) -> None:
    first, second, elsewhere = whole(0), whole(1), whole(2, "99")
    catalogue = stored(Folder(tmp_path), first, second, elsewhere)
    assert catalogue.get(first.id) == catalogue.get("20261101") == first
    assert catalogue.get("latest", "7") == second
    with pytest.raises(Invalid, match=rf"2 clusters.*: {second.id} \(cluster 7, .*, {elsewhere.id} \(cluster 99, "):
        catalogue.get("latest")
    with pytest.raises(NotFound, match=rf"no backup of the cluster 8 on .*, only of others: {second.id} "):
        catalogue.get("latest", "8")
    assert catalogue.get("20261103", "99") == elsewhere
    for missing in ("20261103", "", "x", "20261101T021500Z-0001x"):
        with pytest.raises(NotFound, match="there is no backup"):
            catalogue.get(missing, "7")
    with pytest.raises(Invalid, match="3 backups begin with '2026'"):
        catalogue.get("2026")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        Catalogue(Folder(tmp_path / "empty"), KEYS).get("latest")


def test_thousands_of_objects_do_not_slow_the_listing_down(tmp_path: Path) -> None:
    target, one = Folder(tmp_path), whole()
    catalogue = stored(target, *(whole(number) for number in range(50)))
    wal = tmp_path / "wal/7"
    wal.mkdir(parents=True)
    for number in range(5000):
        (wal / f"0000000100000000{number:08X}.zst.sealed").touch()
    began = time.process_time()
    assert len(catalogue.backups()) == 50
    assert time.process_time() - began < 2
    assert len(list(target.list(BACKUPS))) == 100
    assert catalogue.get("latest").id > one.id
