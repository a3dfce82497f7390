import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from app.kernel.backup import Backup
from app.kernel.backup.drill.place import scratch_folder
from app.kernel.backup.replay import _wait
from app.kernel.backup.scratch import scratch_server
from app.kernel.db.devserver.child import Account
from app.kernel.db.devserver.embedded import embedded_binaries
from app.kernel.db.devserver.place import SHORT, hand_over, socket_folder
from app.kernel.errors import Unavailable
from app.kernel.product import NAME
from tests.conftest import PostgresServer, program
from tests.support.debian import UNPRIVILEGED, as_unprivileged
from tests.support.project import ROOT

HOSTILE = """
    listen_addresses = '*'
    ssl = on
    ssl_cert_file = '/nowhere/server.crt'
    shared_preload_libraries = 'not_installed'
    session_preload_libraries = 'not_installed'
    max_connections = 200000
    shared_buffers = '900GB'
    archive_mode = on
    archive_command = 'touch {archived}'
    hba_file = '/nowhere/pg_hba.conf'
"""
OWNER = """
import sys, time
from pathlib import Path
from app.kernel.backup.scratch import scratch_server
with scratch_server(Path(sys.argv[1]), Path(sys.argv[2])) as server:
    print(server.child.pid, flush=True)
    time.sleep(60)
"""

QUERY = """
import sys, psycopg
from pathlib import Path
from app.kernel.backup.scratch import scratch_server
with scratch_server(Path(sys.argv[1]), Path(sys.argv[2])) as server, psycopg.connect(server.conninfo()) as connection:
    connection.execute("SET jit_above_cost = 0")
    print(*connection.execute("SELECT sum(n), current_setting('jit') FROM generate_series(1, 1000) n").fetchone())
"""


@pytest.fixture
def programs() -> Path:
    return embedded_binaries() or Path(program("postgres")).parent


@pytest.fixture
def folder(postgres: PostgresServer, programs: Path, tmp_path: Path) -> Path:
    """A copy of a data folder, as a backup is."""
    copied = tmp_path / "copied"
    where = ("-h", postgres.host, "-p", str(postgres.port), "-U", postgres.user)
    command = [programs / "pg_basebackup", *where, "-D", copied, "-X", "fetch", "--checkpoint=fast", "--no-sync"]
    subprocess.run(command, check=True, timeout=60)
    return copied


def test_what_came_with_the_folder_neither_stops_the_server_nor_acts(
    folder: Path, programs: Path, tmp_path: Path
) -> None:
    for name in ("postgresql.conf", "postgresql.auto.conf"):
        with (folder / name).open("a") as settings:
            settings.write(HOSTILE.format(archived=tmp_path / "archived"))
    came = (folder / "postgresql.auto.conf").read_text()
    (folder / "postgresql.auto.conf.aside").write_text("")
    (folder / "pg_hba.conf").write_text("local all all reject\n")
    before = {path.name for path in folder.iterdir()}
    with scratch_server(folder, programs) as server:
        assert server.state == "ready"
        assert server.sockets.stat().st_mode & 0o777 == 0o700
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal()")
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    left = {path.name for path in folder.iterdir()} - before
    assert left == {"postmaster.opts", "backup_label.old"}
    assert (folder / "postgresql.auto.conf").read_text() == came
    assert not (folder / "postgresql.auto.conf.aside").exists()
    assert not (tmp_path / "archived").exists()
    state = subprocess.run([programs / "pg_controldata", folder], capture_output=True, text=True, check=True).stdout
    assert any(line.split()[-2:] == ["shut", "down"] for line in state.splitlines() if "cluster state" in line)


def test_a_server_ends_with_its_owner_and_the_folder_can_be_used_again(folder: Path, programs: Path) -> None:
    came = (folder / "postgresql.auto.conf").read_text()
    command = [sys.executable, "-c", OWNER, folder, programs]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}/cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{server}/cmdline").exists()
    with scratch_server(folder, programs):
        pass
    assert (folder / "postgresql.auto.conf").read_text() == came


def test_a_server_runs_under_what_the_unit_of_the_agent_allows(folder: Path, programs: Path) -> None:
    program("systemd-analyze")
    unit = (ROOT / f"deploy/systemd/{NAME}-backup-agent.service").read_text()
    lines = json.dumps([line for line in unit.splitlines() if "=" in line and not line.startswith("#")])
    if os.geteuid() == 0:
        hand_over(folder, Account(UNPRIVILEGED, UNPRIVILEGED))
    sandbox = [*as_unprivileged(reads_all=True), sys.executable, str(ROOT / "tests/support/sandbox.py"), lines]
    command = [*sandbox, sys.executable, "-c", QUERY, str(folder), str(programs)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout.split(), ended.returncode) == (["500500", "off"], 0), ended.stderr


def test_a_server_that_cannot_start_says_why(folder: Path, programs: Path) -> None:
    shutil.rmtree(folder / "pg_xact")
    with (
        pytest.raises(Unavailable, match=r"FATAL: +could not access status of transaction"),
        scratch_server(folder, programs),
    ):
        pass
    (folder / "global" / "pg_control").unlink()
    with pytest.raises(Unavailable, match="pg_control"), scratch_server(folder, programs):
        pass


def test_a_cluster_of_another_encoding_is_read_and_one_that_refuses_connections_is_given_up(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, UNPRIVILEGED, UNPRIVILEGED)
    folder = tmp_path / "made"
    command = [programs / "initdb", "-D", folder, "-U", "postgres", "-E", "SQL_ASCII", "--locale=C", "-A", "trust"]
    subprocess.run([*as_unprivileged(reads_all=True), *command], check=True, capture_output=True, timeout=60)
    with scratch_server(folder, programs) as server:
        assert server.user == "postgres"
        _wait(server, lambda _: None)
        server.user = "unknown"
        monkeypatch.setattr("app.kernel.backup.replay._REFUSED_S", 0.2)
        with pytest.raises(Unavailable, match=r'refuses connections: .*role "unknown" does not exist'):
            _wait(server, lambda _: None)


def test_a_drill_removes_all_that_a_killed_one_has_left(tmp_path: Path) -> None:
    parent = tmp_path / ("x" * 80)  # the path of a socket in it would be too long
    left = parent / f"{NAME}-drill-left"
    (left / "data").mkdir(parents=True)
    sockets = socket_folder(left / "data", Account(os.geteuid(), os.getegid()))
    assert sockets.parent == SHORT
    sockets.mkdir()
    at = datetime.now(UTC)
    backup = Backup("b", "1", "builtin", at, at, 1, "0/0", "0/0", 180000, "0", "", "app", 0, 0)
    with scratch_folder(parent, backup, keep=False) as made:
        assert [*parent.iterdir()] == [made]
    assert not sockets.exists()
    assert [*parent.iterdir()] == []
