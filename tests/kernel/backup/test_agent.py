"""The agent that stores WAL, on a PostgreSQL as operators run one, with real kills."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.kernel.backup import Backup
from app.kernel.backup.catalogue import Catalogue
from app.kernel.backup.receiver import Receiver
from app.kernel.backup.sealed import Keys
from app.kernel.backup.timelines import history_name, lsn_text, segment_name, wal_file
from app.kernel.backup.wal import SEGMENT_BYTES
from tests.conftest import required
from tests.support.debian import UNPRIVILEGED, DebianServer, installed, no_server
from tests.support.project import ROOT, eventually
from tests.support.wal import (
    KEY,
    ORACLE,
    REQUESTED,
    Agents,
    agents,
    allow,
    check_against_copies,
    kill_at_random,
    wal_server,
    writing,
)

MIB = 1024 * 1024
LITTLE = {"min_wal_size": "2MB", "max_wal_size": "2MB", "checkpoint_timeout": "1h", "autovacuum": "off"}


@pytest.fixture(autouse=True)
def installed_server() -> None:
    if installed(15) is None:
        required("PostgreSQL 15")


@pytest.fixture
def server() -> Iterator[DebianServer]:
    with wal_server(**LITTLE) as made:
        yield made


@pytest.fixture
def found(server: DebianServer, tmp_path: Path) -> Iterator[Agents]:
    with agents(server, tmp_path) as made:
        yield made


def fill(server: DebianServer, segments: int) -> str:
    """Write some segments of WAL; return the name of the last one."""
    name = ""
    for _ in range(segments):
        server.run("SELECT pg_logical_emit_message(false, '', repeat('x', 1000))", "postgres")
        [(name,)] = server.all("SELECT pg_walfile_name(pg_switch_wal())", "postgres")
    return name


def test_wal_is_stored_as_often_as_wal_interval_says_and_a_server_at_rest_costs_nothing(found: Agents) -> None:
    server = found.server
    started = found.start()
    server.run("CREATE TABLE ages (at timestamptz)")
    found.catch_up()
    lags: list[float] = []
    for _ in range(30):
        server.run("INSERT INTO ages VALUES (clock_timestamp())")
        time.sleep(0.1)
        [(lag,)] = server.all("SELECT extract(epoch FROM now() - stored_at)::float8 FROM kernel.backup_wal")
        lags.append(lag)
    # wal_interval, and the time to notice, to store and to say so
    assert (sorted(lags)[15] < 1.5, max(lags) < 4) == (True, True), lags

    all_stored = "SELECT stored_at > (SELECT max(at) FROM ages) FROM kernel.backup_wal"
    eventually(lambda: server.all(all_stored) == [(True,)])
    before, [(reported,)] = found.objects(), server.all("SELECT reported_at FROM kernel.backup_wal")
    reports = "SELECT reported_at > %s::timestamptz + interval '2.5 s', stored_at, waiting_since, problem"
    with server.connect("app") as connection:
        eventually(lambda: connection.execute(f"{reports} FROM kernel.backup_wal", (reported,)).fetchone()[0])
        _, stored_at, waiting_since, problem = connection.execute(
            f"{reports} FROM kernel.backup_wal", (reported,)
        ).fetchone()
    assert found.objects() == before
    assert (stored_at > reported, waiting_since, problem) == (True, None, None)

    started.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert started.wait(20) == 0
    assert time.monotonic() - began < 5
    assert not list((found.folder / "spool-0").iterdir())


def test_wal_that_is_lost_is_a_gap_until_a_backup_was_taken_after_it(found: Agents) -> None:
    server = found.server
    started = found.start()
    found.catch_up()
    catalogue = Catalogue(found.target(), Keys(KEY))
    begin = found.written()
    catalogue.add(backup_at(found, begin))
    started.kill()
    started.wait(10)
    found.running.clear()
    server.run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "postgres")
    server.run("SELECT pg_reload_conf()", "postgres")
    fill(server, 8)
    server.run("CHECKPOINT", "postgres")
    assert server.all("SELECT wal_status FROM pg_replication_slots") == [("lost",)]

    found.start()
    eventually(lambda: found.said(REQUESTED) == 1)
    problem = eventually(lambda: (row := found.row()) and row[4])
    assert problem.startswith("gap: WAL from 0/")
    found.has(fill(server, 1))
    [(slot, status)] = server.all("SELECT slot_name, wal_status FROM pg_replication_slots")
    assert (slot, status) == ("app_backup_app", "reserved")
    archive = found.archive()
    [gap] = archive.gaps(begin // MIB * MIB, 1)
    assert f"to {lsn_text(gap.end)} of timeline 1 is not stored" in problem
    ends = [archive.end(wal.file) for wal in archive.segments() if wal.file.number == gap.begin // MIB]
    assert gap.begin == max([gap.begin // MIB * MIB, *(-(-end // 8) * 8 for end in ends)])

    catalogue.add(replace(backup_at(found, found.written()), id="20261127T120000Z-0002"))
    eventually(lambda: (row := found.row()) is not None and row[4] is None)
    assert found.said(REQUESTED) == 1


@pytest.mark.parametrize("is_taken", [False, True], ids=["alone", "after a restore took its timeline"])
def test_a_new_primary_that_had_received_less_is_followed_without_a_gap(is_taken: bool, tmp_path: Path) -> None:
    binaries = installed(15)
    assert binaries is not None
    options = {"fsync": "off", "hot_standby": "on", "wal_keep_size": "64MB"}
    with wal_server(**options) as primary, no_server(binaries, **options) as standby:
        primary.replicate(standby)
        standby.stop()
        standby.segment_mb = 1
        with agents(primary, tmp_path) as found:
            found.others = (standby,)
            found.start()
            begin = found.written()
            found.has(fill(primary, 3))  # which the standby never gets
            if is_taken:
                (tmp_path / history_name(2)).write_text("1\t0/100000\tof a restore\n")
                found.archive().put(tmp_path / history_name(2))
            primary.kill()
            standby.start()
            standby.promote()
            found.server = standby
            found.has(fill(standby, 3))
            archive = found.archive()
            assert archive.gaps(begin, 1) == []
            [fork] = archive.history(2) or []
            names = {wal.file.name for wal in archive.files()}
            assert "00000002.history" in names
            number = fork.lsn // MIB
            assert f"00000001{number:016X}" in names  # what the former primary wrote stays
            assert f"00000002{number:016X}" in names
            assert found.said("WAL is not stored now") < 10


def backup_at(found: Agents, lsn: int) -> Backup:
    now = datetime.now(UTC)
    [(cluster,)] = found.server.all("SELECT system_identifier::text FROM pg_control_system()")
    return Backup(
        id="20261127T110000Z-0001",
        cluster=cluster,
        engine="builtin",
        started_at=now,
        finished_at=now,
        timeline=1,
        start_lsn=lsn_text(lsn),
        stop_lsn=lsn_text(lsn),
        server_version=150000,
        app_version="0",
        schema="",
        database="app",
        size_bytes=1,
        stored_bytes=1,
    )


@pytest.mark.parametrize("seed", [15])
def test_whatever_is_killed_under_load_every_segment_is_stored_as_the_server_wrote_it(
    tmp_path: Path, seed: int
) -> None:
    with wal_server(**ORACLE) as server, agents(server, tmp_path) as found:
        found.start()
        found.catch_up()
        found.start()
        with writing(server):
            counts = kill_at_random(found, 6, random.Random(seed))
        fill(server, 3)
        assert counts.get("agent", 0) + counts.get("receiver", 0) > 1, counts
        assert check_against_copies(found) > 3


def test_a_role_that_may_not_stream_is_told_the_two_lines_that_allow_it(tmp_path: Path) -> None:
    with wal_server() as server, agents(server, tmp_path) as found:
        server.run("ALTER ROLE app NOREPLICATION")
        access = server.data / "pg_hba.conf"
        access.write_text("\n".join(access.read_text().splitlines()[1:]))
        server.run("SELECT pg_reload_conf()")
        found.start()
        eventually(lambda: found.said('ALTER ROLE "app" REPLICATION;'))
        server.run('ALTER ROLE "app" REPLICATION')
        eventually(lambda: found.said("host replication app 127.0.0.1/32 scram-sha-256"))
        allow(server)
        eventually(lambda: found.said("storing WAL of the cluster"))
        assert found.said("WAL is not stored now") == 2


def test_archive_command_stores_each_segment_once_and_the_agent_watches_it_without_streaming(tmp_path: Path) -> None:
    """The server calls the command, as its own account."""
    with wal_server(reads_all=True, archive_mode="on") as server:
        server.run("ALTER ROLE app NOREPLICATION")
        target = server.folder / "target"
        target.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(target, UNPRIVILEGED, UNPRIVILEGED)

        def archive_with(key: str) -> list[str]:
            given = {"APP_ENV": "test", "BACKUP_KEY": key, "BACKUP_TARGET": str(target), "PYTHONPATH": str(ROOT)}
            words = ["env", *(f"{name}={value}" for name, value in given.items()), "PYTHONDONTWRITEBYTECODE=1"]
            command = [*words, sys.executable, "-m", "app", "backup", "archive-wal"]
            server.run(f"ALTER SYSTEM SET archive_command = $${shlex.join(command)} %p$$", "postgres")
            server.run("SELECT pg_reload_conf()", "postgres")
            eventually(lambda: server.all("SHOW archive_command")[0][0] == f"{shlex.join(command)} %p")
            return command

        def stops(count: int) -> bool:
            return server.all("SELECT failed_count FROM pg_stat_archiver")[0][0] >= count

        command = archive_with(KEY)
        with agents(server, tmp_path, wal="archive", target=str(target)) as found:
            found.start()
            first = fill(server, 1)
            found.has(first)
            away = target.rename(target.with_name("away"))
            fill(server, 1)
            eventually(lambda: stops(1))
            away.rename(target)
            found.has(fill(server, 1))  # which wakes the archiver, if it has given up for a minute
            found.catch_up(lambda: fill(server, 1))
            assert found.row()[4] is None
            catalogue = Catalogue(found.target(), Keys(KEY))
            catalogue.add(backup_at(found, wal_file(first, MIB).start(MIB)))
            assert found.archive().gaps(wal_file(first, MIB).start(MIB), 1) == []

            archive_with("another key, that of nobody, but long enough")
            missing = fill(server, 1)
            elsewhere = f"archive_command has stored {missing}, not on {target}, or with another backup.key"
            eventually(lambda: found.row()[4] == elsewhere)
            archive_with(KEY)
            found.has(fill(server, 1))
            eventually(lambda: found.said(REQUESTED) == 1)
            eventually(lambda: (found.row()[4] or "").startswith("gap: WAL from 0/"))

            stored, archive = found.objects(), found.archive()
            segment = server.data / "pg_wal" / first
            assert archive.get(first, server.folder / "fetched")
            assert (server.folder / "fetched").read_bytes() == segment.read_bytes()
            assert subprocess.run([*command, str(segment)], check=False).returncode == 0
            assert found.objects()[first] == stored[first]
            other = server.folder / first
            other.write_bytes(segment.read_bytes()[:-1] + b"x")
            refused = subprocess.run([*command, str(other)], check=False, capture_output=True, text=True)
            assert (refused.returncode, refused.stderr.count("\n")) == (73, 1)
            assert "stored already with other content" in refused.stderr


@pytest.mark.parametrize(
    ("said", "is_removed"),
    [
        ("ERROR:  requested WAL segment {} has already been removed", True),
        ("FEHLER:  das angeforderte WAL-Segment {} wurde schon entfernt", True),
        ("ERREUR:  le segment demandé du journal de transactions, {}, a déjà été supprimé", True),
        ('could not open write-ahead log file "{}.partial": No space left on device', False),
        ('could not write 8192 bytes to WAL file "{}.partial": No space left on device', False),
        ('could not open file "/tmp/spool/{}.partial": Permission denied', False),
        ('could not rename file "{}.partial" to "{}": No space left on device', False),
    ],
)
def test_only_the_server_says_that_a_segment_is_gone(said: str, is_removed: bool, tmp_path: Path) -> None:
    """A full disk here has made the agent give up WAL that the server still had."""
    name = segment_name(1, 9 * SEGMENT_BYTES, SEGMENT_BYTES)
    program, folder = tmp_path / "pg_receivewal", tmp_path / "spool"
    folder.mkdir()
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\npg_receivewal: error: {said.format(name, name)}\nEND\nexit 1\n")
    program.chmod(0o755)
    receiver = Receiver(program, "host=nowhere", "test", folder, name, SEGMENT_BYTES)
    eventually(receiver.has_ended)
    assert name in receiver.reason()
    assert receiver.is_removed() == is_removed
