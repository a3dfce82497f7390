"""Backups as operators see them: the list of runs, whether all is well, and starting one."""

from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest

from app.kernel.actions.compose import operations
from app.kernel.config import load
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.modules.platform.backups import BackupRunNotFound, Backups, DrillsWanted, RunRef, RunsWanted
from app.modules.platform.overview import Overview
from app.processes import new_process, sections
from tests.conftest import TestDatabase
from tests.modules.platform.conftest import Acting
from tests.support.backups import GOOD, recorded
from tests.support.project import ROOT


@pytest.fixture
async def process(database: TestDatabase) -> AsyncIterator[Process]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with new_process("test", settings).opened() as opened:
        yield opened


async def test_runs_are_listed_by_kind_and_state_and_paged(process: Process, database: TestDatabase) -> None:
    acts = Acting(await operations(process, [Backups]))
    assert (await acts.list(RunsWanted())).items == []
    recorded(database, *GOOD, ("backup", "failed", 30), ("drill", "failed", 2), ("prune", "succeeded", 1))
    everything = (await acts.list(RunsWanted())).items
    assert [run.kind for run in everything].count("backup") == 2
    assert {run.id for run in everything} == {run.id for run in await paged(acts)}
    for kind, state, count in (("backup", None, 2), (None, "failed", 2), ("drill", "failed", 1), ("verify", None, 0)):
        found = (await acts.list(RunsWanted(kind=kind, state=state))).items
        assert len(found) == count
        assert all(kind in (None, run.kind) and state in (None, run.state) for run in found)
    failed = (await acts.list(RunsWanted(kind="drill", state="failed"))).items[0]
    assert (await acts.get(RunRef(failed.id))).problem == "the target is full"
    with pytest.raises(BackupRunNotFound):
        await acts.get(RunRef(uuid7()))


async def paged(acts: Acting) -> list:
    found, cursor = [], None
    while True:
        page = await acts.list(RunsWanted(limit=2, cursor=cursor))
        found += page.items
        if (cursor := page.next_cursor) is None:
            return found


async def test_the_status_and_the_overview_say_what_is_newest_and_what_needs_attention(
    process: Process, database: TestDatabase
) -> None:
    acts, overview = Acting(await operations(process, [Backups])), Acting(await operations(process, [Overview]))
    empty = await acts.status(DrillsWanted())
    assert (empty.backup, empty.wal, empty.drill, empty.drills, empty.attention) == (None, None, None, [], [])
    assert (await overview.get()).backup is None
    failed = (("drill", "failed", 1), ("backup", "failed", 2))
    recorded(database, *GOOD, ("drill", "succeeded", 14 * 24), *failed, ("backup", "running", 0))
    async with (
        new_process("test", process.settings).opened() as fresh,  # what the checks find is remembered
        await psycopg.AsyncConnection.connect(database.conninfo, autocommit=True) as running,
    ):
        await running.execute("SELECT pg_advisory_lock(hashtext('backup'), hashtext('backup'))")
        found = await Acting(await operations(fresh, [Backups])).status(DrillsWanted())
    assert (found.is_attended, found.backup.size_bytes, found.drill.rto_s) == (True, 5_000_000_000, 42.5)
    assert (found.last_drill.state, [run.kind for run in found.running]) == ("failed", ["backup"])
    needs = [(need.check, need.runbook) for need in found.attention]
    assert needs == [("drills", "DrillFailed"), ("backups", "BackupFailed")]
    assert all(need.paragraph for need in found.attention)
    assert [drill.rpo_s for drill in found.drills] == [3, 3]
    assert found.drills[0].at < found.drills[1].at
    assert len((await acts.status(DrillsWanted(drills=1))).drills) == 1
    line = (await overview.get()).backup
    assert (line.size_bytes, line.rto_s, line.rpo_s) == (5_000_000_000, 42.5, 3)


async def test_a_run_is_enqueued_once_while_it_waits(process: Process, database: TestDatabase) -> None:
    acts = Acting(await operations(process, [Backups]))
    first = await acts.create()
    assert await acts.create() == first
    await acts.drill()
    await acts.prune()
    jobs = database.all("SELECT id, task, queue, state FROM kernel.jobs ORDER BY seq")
    assert [job[1:] for job in jobs] == [
        ("platform.backup", "backup", "ready"),
        ("platform.backup_drill", "backup", "ready"),
        ("platform.backup_prune", "backup", "ready"),
    ]
    assert UUID(str(jobs[0][0])) == first.job_id
    audited = database.all("SELECT action FROM kernel.audit WHERE request_id = 'by-an-operator' ORDER BY id")
    assert sorted(action for (action,) in audited) == sorted(
        ["platform.create_backup"] * 2 + ["platform.run_drill", "platform.prune_backups"]
    )
