"""What is said of backups, by what is recorded of them: problems, captured outages, metrics."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.kernel.backup import metrics
from app.kernel.backup.runs import recorded as run
from app.kernel.backup.wal import Gap
from app.kernel.backup.watching import Problem, look, problems
from app.kernel.config import BackupSettings, load
from app.kernel.sentinel.backups import BackupWatch
from app.kernel.telemetry.metrics import exposition
from app.processes import sections
from tests.kernel.queue.conftest import Bench, bench
from tests.support.backups import GOOD, Run, recorded
from tests.support.project import ROOT

__all__ = ["bench"]

HERE = load(ROOT, sections(), {"APP_ENV": "test", "BACKUP_TARGET": "/backups"})[BackupSettings]
ELSEWHERE = load(ROOT, sections(), {"APP_ENV": "test"})[BackupSettings]
"""The settings of a process that does not know the target."""
BACKUP, DRILL = GOOD


async def found(bench: Bench, settings: BackupSettings = ELSEWHERE, *, is_published: bool = False) -> list[Problem]:
    return [*problems(await look(bench.db.all), settings, is_published=is_published)]


CASES: list[tuple[tuple[Run, ...], dict[str, Any], set[tuple[str, str]]]] = [
    (GOOD, {}, set()),
    ((("backup", "succeeded", 26.1), DRILL), {}, {("BackupStale", "fail")}),
    ((*GOOD, ("backup", "failed", 1)), {}, {("BackupFailed", "warn")}),
    ((*GOOD, ("backup", "failed", 26)), {}, set()),  # before the good one
    ((*GOOD, ("backup", "running", 0)), {}, {("BackupFailed", "warn")}),  # nobody holds its lock
    ((*GOOD, ("verify", "succeeded", 2), ("verify", "running", 1)), {}, {("BackupFailed", "fail")}),
    ((*GOOD, ("drill", "running", 1)), {}, {("DrillFailed", "fail")}),
    ((("backup", "succeeded", -24), DRILL), {}, {("BackupMissing", "warn")}),  # of a clock that was ahead
    ((*GOOD, ("backup", "succeeded", -24), ("backup", "failed", 1)), {}, {("BackupFailed", "warn")}),
    ((*GOOD, ("verify", "failed", 1)), {}, {("BackupFailed", "fail")}),
    ((*GOOD, ("verify", "failed", 2), ("verify", "succeeded", 1)), {}, set()),
    ((*GOOD, ("prune", "failed", 1)), {}, {("BackupFailed", "warn")}),
    ((*GOOD, ("prune", "failed", 2), ("prune", "succeeded", 1)), {}, set()),
    ((("backup", "failed", 1),), {}, {("BackupFailed", "warn"), ("BackupMissing", "warn")}),
    (GOOD, {"is_attended": False}, {("BackupUnattended", "fail")}),
    (GOOD, {"wal_lag_s": 299}, set()),
    (GOOD, {"wal_lag_s": 301}, {("WalNotStored", "warn")}),
    (GOOD, {"wal_lag_s": 1801}, {("WalNotStored", "fail")}),
    (GOOD, {"wal_problem": str(Gap(1, 0, 99))}, {("WalGap", "fail")}),
    (GOOD, {"wal_problem": str(Gap(1, 0, 99)), "wal_lag_s": 301}, {("WalGap", "fail"), ("WalNotStored", "warn")}),
    (GOOD, {"wal_problem": "the target does not answer"}, {("WalNotStored", "fail")}),
    ((BACKUP, ("drill", "failed", 1)), {}, {("DrillFailed", "fail")}),
    ((*GOOD, ("drill", "failed", 1)), {}, {("DrillFailed", "fail")}),
    ((*GOOD, ("drill", "failed", 200)), {}, set()),
    ((BACKUP, ("drill", "succeeded", 8 * 24 + 1)), {}, {("DrillStale", "warn")}),
    ((BACKUP,), {}, set()),  # the first drill is not due yet
]


async def test_each_fault_is_found_and_gone_when_all_is_well_again(bench: Bench) -> None:
    for runs, given, expected in CASES:
        recorded(bench.test, *runs, **given)
        assert {(each.type, each.level) for each in await found(bench)} == expected, (runs, given)
        assert all(each.text and each.fix.startswith("app ") for each in await found(bench))
    # an environment for one machine is not nagged while nothing runs
    recorded(bench.test, ("backup", "succeeded", 99), is_attended=False, wal_lag_s=10_000)
    assert await found(bench, is_published=True) == []
    recorded(bench.test, ("backup", "succeeded", 99), wal_lag_s=10_000)
    assert {each.type for each in await found(bench, is_published=True)} == {"BackupStale", "WalNotStored"}


async def test_a_run_is_under_way_while_its_process_lives(bench: Bench) -> None:
    recorded(bench.test, *GOOD)
    with run(bench.test.conninfo, "backup", "builtin"):
        state = await look(bench.db.all)
        assert [each.kind for each in state.running()] == ["backup"]
        assert await found(bench) == []
    recorded(bench.test, *GOOD, ("backup", "running", 0))
    state = await look(bench.db.all)
    assert state.running() == []
    last = state.last("backup")
    assert last is not None
    assert last.problem == "its process ended"


async def test_where_there_should_be_no_backups_nothing_is_missed_and_where_there_should_be_it_is(bench: Bench) -> None:
    recorded(bench.test, wal_lag_s=None, is_attended=False)
    assert await found(bench, ELSEWHERE) == []
    recorded(bench.test, wal_lag_s=None)
    assert [(each.type, each.level) for each in await found(bench, HERE)] == [("BackupMissing", "warn")]
    assert await found(bench, HERE, is_published=True) == []
    watch = BackupWatch(bench.db, HERE, is_published=False)
    assert await watch.problems() == []  # a first backup is not due yet
    age = (
        "INSERT INTO kernel.rollouts (id, at, name, version, settings) VALUES (kernel.uuid7(), %s, 'run-x', '1', '{}')"
    )
    ((now,),) = bench.test.all("SELECT now()")
    bench.test.run(age, now.replace(year=now.year - 1))
    assert [(each.type, each.level) for each in await watch.problems()] == [("BackupMissing", "fail")]
    recorded(bench.test, BACKUP, wal_lag_s=None)
    assert {each.type for each in await watch.problems()} == {"WalNotStored", "DrillStale"}
    assert {each.type for each in await found(bench, ELSEWHERE)} == {"DrillStale"}  # it cannot know of the WAL


async def test_wal_that_nobody_reports_any_more_waits_since_the_last_report_unless_all_is_stored(bench: Bench) -> None:
    recorded(bench.test, *GOOD)
    bench.test.run("UPDATE kernel.backup_wal SET waiting_since = NULL, reported_at = now() - interval '1 hour'")
    assert [(each.type, each.level) for each in await found(bench)] == [("WalNotStored", "fail")]
    bench.test.run("UPDATE kernel.backup_wal SET lsn = 'FFFF/0'")
    assert await found(bench) == []
    bench.test.run("UPDATE kernel.backup_wal SET cluster = '1', lsn = '0/1'")  # of a former database cluster
    assert await found(bench) == []


@pytest.fixture
def _unknown_afterwards(bench: Bench) -> Iterator[None]:
    yield
    for name in vars(metrics).values():
        if isinstance(name, metrics._Known):
            name.record(None)


def exposed() -> dict[str, float]:
    lines = [line.split() for line in exposition()[0].decode().splitlines() if line.startswith("backup_")]
    return {name: float(value) for name, value in lines}


@pytest.mark.usefixtures("_unknown_afterwards")
async def test_metrics_say_what_is_known_and_are_absent_otherwise(bench: Bench) -> None:
    watch = BackupWatch(bench.db, ELSEWHERE, is_published=False)
    await watch.measure()
    assert exposed() == {"backup_expected": 0}
    recorded(
        bench.test, *GOOD, ("backup", "failed", 1), wal_lag_s=7, wal_problem=f"{Gap(1, 0, 99)}. the target is full"
    )
    await watch.measure()
    assert exposed() == {"backup_expected": 0}  # not due yet
    watch.due_at = 0
    await watch.measure()
    measured = exposed()
    assert time.time() - measured.pop("backup_last_success_seconds") == pytest.approx(25 * 3600 - 90, abs=60)
    assert time.time() - measured.pop("backup_drill_last_success_seconds") == pytest.approx(168 * 3600 - 90, abs=60)
    assert measured.pop("backup_wal_lag_seconds") == pytest.approx(7, abs=5)
    assert measured == {
        "backup_expected": 1,
        "backup_failed": 1,
        "backup_size_bytes": 5e9,
        "backup_stored_bytes": 1e9,
        "backup_wal_gap": 1,
        "backup_drill_failed": 0,
        "backup_drill_rto_seconds": 42.5,
        "backup_drill_rpo_seconds": 3,
    }
    recorded(bench.test, wal_lag_s=None)
    watch.due_at = 0
    await watch.measure()
    assert exposed() == {"backup_expected": 0}
