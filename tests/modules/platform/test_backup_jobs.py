"""Backups as jobs: a child process that ends with its job and with its worker, one at a time in a fleet."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.kernel.backup.child import command_of
from app.kernel.backup.command import CommandFailed
from app.kernel.config import load
from app.kernel.product import NAME
from app.kernel.queue import NeverRetry
from app.modules.platform.backup_jobs import BackupJobs
from app.processes import sections
from tests.commands.outcome import refused
from tests.conftest import TestDatabase
from tests.support.project import ROOT, Project, eventually

UNDER_WAY = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000"
LEFT = f"""
    SELECT (SELECT count(*) FROM pg_stat_progress_basebackup),
        (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '{NAME}_2%%')
"""
RUNS = "SELECT state, problem FROM kernel.backup_runs ORDER BY started_at"
SLOW = {"BACKUP_MAX_RATE": "3000000"}


def triggered(project: Project, database: TestDatabase) -> str:
    """Trigger the schedule, and wait until the backup is under way; return the job."""
    done = project.app("schedules", "trigger", "platform.backup", "--json")
    assert done.returncode == 0, done.stderr
    eventually(lambda: database.all(UNDER_WAY) == [(1,)])
    return json.loads(done.stdout)["job_id"]


def test_a_command_of_a_job_lets_everything_else_run_first() -> None:
    told = "import os; print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_BATCH)"
    group = Path("/proc/self/autogroup")
    has_group = os.geteuid() == 0 and os.access(group, os.W_OK)  # others may set it ten times a second in all
    if has_group:
        told += f"; print(open('{group}').read().split()[-1])"
    done = subprocess.run(
        command_of([sys.executable, "-c", told], nice=10),
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    assert done.stdout.split() == [str(max(10, os.nice(0))), "True", *(["19"] if has_group else [])]


def test_a_backup_ends_with_its_job_and_with_its_worker_and_the_next_attempt_works(
    project: Project, database: TestDatabase, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    project.env |= {"BACKUP_TARGET": str(tmp_path / "target"), "BACKUP_WAL": "none", "QUEUE_LEASE": "2s"}
    worker = project.start("run-all-in-one", env=SLOW)
    worker.ready()
    eventually(lambda: database.all("SELECT count(*) FROM kernel.schedules WHERE name = 'platform.backup'") == [(1,)])
    job = triggered(project, database)
    assert "since" in refused(project.app("backup", "create"), 75)
    assert project.app("jobs", "cancel", job).returncode == 0
    eventually(lambda: database.all(LEFT) == [(0, 0)])
    eventually(lambda: database.all(RUNS) == [("failed", "it was stopped")])
    eventually(lambda: database.all("SELECT count(*) FROM kernel.jobs WHERE task = 'platform.backup'") == [(0,)])
    triggered(project, database)
    worker.signal(signal.SIGKILL)
    worker.wait()
    eventually(lambda: database.all(LEFT) == [(0, 0)])
    project.start("run-backup-agent").ready()
    eventually(lambda: database.all(RUNS)[-1] == ("succeeded", None))
    listed = json.loads(project.app("backup", "list", "--json").stdout)["items"]
    assert [one["state"] for one in listed] == ["whole"]


async def test_a_job_that_fails_says_why_and_without_a_target_it_has_nothing_to_do(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(**env: str) -> object:
        settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env, **env})
        for name, value in {"APP_ENV": "test", **database.env, **env}.items():
            monkeypatch.setenv(name, value)
        return await BackupJobs(settings).back_up()

    assert await run() is None
    with pytest.raises(CommandFailed, match=r"^the target .* is no folder"):
        await run(BACKUP_TARGET=str(tmp_path / "missing"))
    with pytest.raises(NeverRetry, match=r"^backup\.key is not set"):
        await run(BACKUP_TARGET=str(tmp_path), BACKUP_KEY="")
