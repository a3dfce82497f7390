import json
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.kernel.backup import Backup
from app.kernel.backup.drill.run import lost_s, reached
from app.kernel.backup.engine import Wal
from app.kernel.backup.replay import Replayed
from app.kernel.config.alone import ALONE
from app.kernel.config.settings import schema
from app.processes import sections
from tests.conftest import TestDatabase, make_superuser
from tests.support.backups import add_of_another_cluster
from tests.support.debian import free_port
from tests.support.project import Project, Running, eventually

CHECKS = [
    "restore", "manifest", "counts", "wal", "content", "migrations", "login", "foreign keys", "queue", "tables",
    "indexes",
]  # fmt: skip


@pytest.fixture
def scratch(project: Project, tmp_path: Path) -> Path:
    folder = tmp_path / "restored"
    for path in (folder, tmp_path / "target"):
        path.mkdir()
    project.env |= {"BACKUP_TARGET": str(tmp_path / "target"), "BACKUP_SCRATCH": str(folder)}
    return folder


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def states(text: str) -> dict[str, str]:
    return {check["name"]: check["state"] for check in json.loads(text)["checks"]}


def restoring(project: Project, scratch: Path) -> tuple[Running, int]:
    """Start a drill; return it and its server once that runs."""
    running = project.start("backup", "drill")

    def server() -> int:
        assert running.popen.poll() is None, running.said()
        pids = list(scratch.glob("app-drill-*/data/postmaster.pid"))
        return int(pids[0].read_text().splitlines()[0]) if pids and pids[0].read_text() else 0

    return running, eventually(server)


def runs(pid: int) -> bool:
    try:
        return "postgres" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_drill_proves_a_backup_from_the_target_alone_whatever_becomes_of_it(
    project: Project, database: TestDatabase, scratch: Path, tmp_path: Path
) -> None:
    make_superuser(project)
    assert project.app("auth", "keys", "rotate").returncode == 0  # signing keys under the master secret
    made = project.app("backup", "create", "--json")
    assert made.returncode == 0, made.stderr
    before, rows = tree(tmp_path / "target"), database.all("SELECT count(*) FROM auth.actors")

    done = project.app("backup", "drill", "--json", seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = dict.fromkeys(CHECKS, "ok") | {"tables": "skipped", "indexes": "skipped"}
    assert states(done.stdout) == expected
    result = json.loads(done.stdout)
    assert 0 < result["rto_s"] < 120
    assert 0 <= result["rpo_s"] < 60
    [(state, details)] = database.all("SELECT state, details FROM kernel.backup_runs WHERE kind = 'drill'")
    assert (state, details["rto_s"], details["checks"]) == ("succeeded", result["rto_s"], result["checks"])
    assert list(scratch.iterdir()) == []

    # stopped
    running, server = restoring(project, scratch)
    running.signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert not runs(server)
    assert list(scratch.iterdir()) == []
    # killed: the next one cleans up
    running, server = restoring(project, scratch)
    running.signal(signal.SIGKILL)
    eventually(lambda: not runs(server))
    assert list(scratch.iterdir()) != []

    # on another machine, without a database, and with another master secret
    home = tmp_path / "home"
    home.mkdir()
    nothing = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(free_port()), "HOME": str(home)}
    nothing["PGHOSTADDR"] = "127.0.0.1"  # would lead to another server than the restored one
    elsewhere = {**nothing, "AUTH_MASTER_SECRET": "of another deployment, of which nobody knows"}
    failed = project.app("backup", "drill", "--json", env=elsewhere, seconds=120)
    assert failed.returncode == 1, failed.stderr
    assert states(failed.stdout) == expected | {"login": "failed"}
    assert "not recorded" in failed.stderr
    assert "app: login: " in failed.stderr
    assert list(scratch.iterdir()) == []
    assert list(home.iterdir()) == []
    assert tree(tmp_path / "target") == before
    assert database.all("SELECT count(*) FROM auth.actors") == rows


def test_a_drill_without_room_or_backup_says_so_in_a_line(project: Project, scratch: Path, tmp_path: Path) -> None:
    add_of_another_cluster(tmp_path / "target")
    none = project.app("backup", "drill")
    assert none.returncode == 67
    assert "there is no backup of the cluster" in none.stderr
    assert "only of others: of-another (cluster 7, " in none.stderr
    taken = tmp_path / "file"
    taken.touch()
    assert project.app("backup", "create").returncode == 0
    bad = project.app("backup", "drill", env={"BACKUP_SCRATCH": str(taken)})
    assert bad.returncode == 69
    assert "backup.scratch" in bad.stderr
    sealed = project.app("backup", "drill", env={"BACKUP_KEY": "another key, with which nothing was ever sealed"})
    assert sealed.returncode == 65
    assert "no backup on" in sealed.stderr


def test_what_was_stored_when_the_drill_began_is_what_a_loss_would_have_left() -> None:
    began = datetime(2026, 11, 22, 10, tzinfo=UTC)
    minute = timedelta(minutes=1)
    assert lost_s(began, began - minute, None) == 60
    assert lost_s(began, began - minute, Wal(1, "0/1", began)) == 60
    assert lost_s(began, began + minute, Wal(1, "0/1", began - 2 * minute)) == 120
    assert lost_s(began, began + minute, None) == 0


def test_replay_that_ends_before_the_stored_wal_is_a_problem() -> None:
    now = datetime.now(UTC)
    backup = Backup("b", "c", "builtin", now, now, 1, "0/0", "0/0", 180000, "0", "", "app", 0, 0)
    whole = Wal(1, "0/4000000", now)
    assert reached(backup, Replayed("0/3FFFF00", 1, now), whole).problems == ()
    assert reached(backup, Replayed("0/4000000", 1, now), whole).problems == ()
    [problem] = reached(backup, Replayed("0/2FFFF00", 1, now), whole).problems
    assert problem == "replay ended at 0/2FFFF00, although WAL until 0/4000000 is stored"
    assert reached(backup, Replayed("0/3FFFF00", 1, now), replace(whole, gap="a gap")).problems == ("a gap",)
    assert reached(backup, Replayed("0/1", 1, now), None).problems == ()


def test_whatever_leads_out_of_a_process_is_turned_off_in_one_that_is_alone() -> None:
    leading = {
        setting.key
        for kind in sections()
        for setting in schema(kind)
        if setting.name.endswith(("url", "urls", "endpoint", "hosts", "direct_host", "credentials", "target"))
    }
    # what only a target uses, and what is only shown
    assert leading - {"backup.s3_endpoint", "http_server.public_url"} <= ALONE.keys()
