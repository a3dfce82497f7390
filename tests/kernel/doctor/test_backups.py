"""Faults of the target, the key and the programs of backups, where they are taken."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.kernel.backup import Backup
from app.kernel.backup.catalogue import Catalogue, base_name, record_name
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from tests.commands.database import migrated_database
from tests.conftest import PostgresServer, TestDatabase, required
from tests.kernel.doctor.planted import Planted
from tests.support.backups import GOOD, recorded

KEY, OTHER = "the key of these backups, 32 characters", "another key, which is as long as the first one"
AT = datetime(2026, 11, 27, 2, 15, tzinfo=UTC)
ID = "20261127T021500Z-3f2a"
BACKUP = Backup(ID, "7", "builtin", AT, AT, 1, "0/2000028", "0/2000100", 180000, "1", "x", "app", 100, 10)
CHECKS = ("backup-target", "backup-machine")


@pytest.fixture(scope="module")
def migrated(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    with migrated_database(postgres, tmp_path_factory.mktemp("migrated")) as created:
        yield created


@pytest.fixture
async def planted(migrated: TestDatabase, tmp_path: Path) -> AsyncIterator[Planted]:
    """A machine with a target on which there is a whole backup."""
    folder = tmp_path / "target"
    folder.mkdir()
    recorded(migrated, *GOOD)
    target, keys = Folder(folder), Keys(KEY)
    name = base_name("7", ID)
    packed = keys.pack(name, [b"data" * 1000])
    target.put(name, packed)
    Catalogue(target, keys).add(replace(BACKUP, parts=(packed.part,)))
    env = {"BACKUP_TARGET": str(folder), "BACKUP_KEY": KEY, **migrated.env}
    found = Planted(tmp_path / "data", env)
    assert await found.examine(*CHECKS) == {}
    yield found
    assert found.skipped == set()


async def test_a_target_that_is_away_damaged_or_sealed_with_another_key_is_found(
    planted: Planted, migrated: TestDatabase
) -> None:
    folder = Path(planted.env["BACKUP_TARGET"])
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["backup.json", "base.tar.zst.sealed"]
    planted.env["BACKUP_KEY"] = OTHER
    level, text = (await planted.examine("backup-target"))["backup-target"]
    assert (level, "sealed with the key" in text) == ("fail", True), text
    assert "backup.key_previous" in planted.findings[0].fix
    planted.env |= {"BACKUP_KEY_PREVIOUS": KEY}
    assert await planted.examine("backup-target") == {}
    base, record = folder / base_name("7", ID), folder / record_name("7", ID)
    sealed = base.read_bytes()
    base.write_bytes(sealed[:-1])
    level, text = (await planted.examine("backup-target"))["backup-target"]
    assert (level, f"has {len(sealed) - 1} bytes" in text) == ("fail", True), text
    assert planted.findings[0].fix == f"app backup verify {ID}"
    base.write_bytes(sealed)
    signed = record.read_text()
    record.write_text(signed.replace('"size_bytes": 100', '"size_bytes": 101'))
    level, text = (await planted.examine("backup-target"))["backup-target"]
    assert (level, "backup.json" in text) == ("fail", True), text
    record.write_text(signed)
    recorded(migrated, ("backup", "succeeded", 1))
    migrated.run("UPDATE kernel.backup_runs SET backup_id = 'gone'")
    found = await planted.examine("backup-target")
    assert found["backup-target"] == ("fail", f"the newest backup, gone, is not on {folder}")
    recorded(migrated, *GOOD)
    moved = shutil.move(folder, folder.with_name("unmounted"))
    level, text = (await planted.examine("backup-target"))["backup-target"]
    assert (level, str(folder) in text) == ("fail", True), text
    assert planted.findings[0].fix == f"mkdir -p {folder}  # or mount its disk"
    shutil.move(moved, folder)
    assert await planted.examine("backup-target") == {}


async def test_wal_that_an_agent_stores_elsewhere_is_missed_on_the_target(
    planted: Planted, migrated: TestDatabase
) -> None:
    [(cluster, recorded_lsn)] = migrated.all("SELECT cluster, lsn::text FROM kernel.backup_wal")
    catalogue = Catalogue(Folder(Path(planted.env["BACKUP_TARGET"])), Keys(KEY))
    [known] = catalogue.backups()
    catalogue.add(replace(known, cluster=cluster))
    migrated.run("UPDATE kernel.backup_wal SET lsn = '0/900000'")
    assert await planted.examine("backup-target") == {}  # less than a segment
    migrated.run("UPDATE kernel.backup_wal SET lsn = '0/9000000'")
    level, text = (await planted.examine("backup-target"))["backup-target"]
    assert level == "fail"
    assert text.startswith("WAL is recorded as stored until 0/9000000, but not on ")
    migrated.run("UPDATE kernel.backup_wal SET lsn = %s", recorded_lsn)


async def test_missing_programs_and_too_little_room_are_found(planted: Planted, migrated: TestDatabase) -> None:
    planted.env["BACKUP_PROGRAMS"] = "/nowhere"
    level, text = (await planted.examine("backup-machine"))["backup-machine"]
    assert (level, "backup.programs" in text) == ("fail", True), text
    del planted.env["BACKUP_PROGRAMS"]
    migrated.run("UPDATE kernel.backup_runs SET size_bytes = 10^15")
    level, text = (await planted.examine("backup-machine"))["backup-machine"]
    assert (level, text.startswith("a drill needs 1000.0 TB, and")) == ("warn", True), text
    planted.env["BACKUP_SCRATCH"] = "/nowhere"
    assert (await planted.examine("backup-machine"))["backup-machine"][0] == "fail"


async def test_elsewhere_only_the_database_is_asked_and_the_rest_is_skipped(
    planted: Planted, migrated: TestDatabase
) -> None:
    env = dict(planted.env)
    planted.env = {name: value for name, value in env.items() if not name.startswith("BACKUP_")}
    recorded(migrated, ("backup", "failed", 1), ("drill", "failed", 1), wal_problem="the target is full")
    names = ("backups", "wal", "drills", "backup-server", *CHECKS)
    found = await planted.examine(*names)
    assert {name: level for name, (level, _) in found.items()} == {"backups": "warn", "wal": "fail", "drills": "fail"}
    assert planted.skipped == set(CHECKS)
    recorded(migrated, *GOOD)
    planted.env = env
    assert await planted.examine(*names) == {}


async def test_a_provider_that_does_not_answer_or_does_not_have_the_newest_backup_is_found(
    planted: Planted, migrated: TestDatabase
) -> None:
    names = ("backup-server", *CHECKS)
    planted.env |= {"BACKUP_ENGINE": "managed", "BACKUP_MANAGED_STATUS": """echo '{"backups": []}'"""}
    told = "backup.managed_restore is not set, so there can be no drills"
    assert await planted.examine(*names) == {"backup-machine": ("warn", told)}
    assert planted.skipped == {"backup-server"}
    planted.env["BACKUP_MANAGED_RESTORE"] = "true"
    migrated.run("UPDATE kernel.backup_runs SET engine = 'managed'")
    told = f"the newest backup, {ID}, is not on the provider of the database"
    assert await planted.examine(*names) == {"backup-target": ("fail", told)}
    planted.env["BACKUP_MANAGED_STATUS"] = "false"
    level, text = (await planted.examine(*CHECKS))["backup-target"]
    assert (level, text.startswith("backup.managed_status ended with the status 1")) == ("fail", True), text


async def test_a_repository_that_does_not_answer_and_a_server_that_does_not_archive_are_found(
    planted: Planted,
) -> None:
    if shutil.which("pgbackrest") is None:
        required("pgbackrest")
    planted.env |= {"BACKUP_ENGINE": "pgbackrest", "BACKUP_PGBACKREST_CONFIG": "/nowhere/pgbackrest.conf"}
    found = await planted.examine("backup-server", *CHECKS)
    assert found["backup-server"] == ("fail", "archive_mode is off, so no WAL is stored")
    assert "--stanza=app archive-push %p" in planted.results[0].findings[0].fix
    assert found["backup-target"][0] == "fail"
    assert "pgbackrest.conf" in found["backup-target"][1] or "as root" in found["backup-target"][1]
