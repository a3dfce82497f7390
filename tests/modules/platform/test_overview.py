"""The overview: what needs attention, with its remedy, and what a deployment does."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.composition import checks
from app.kernel.actions.compose import make, operations
from app.kernel.audit import Audit
from app.kernel.callers import Caller
from app.kernel.config import load
from app.kernel.db import Database
from app.kernel.doctor.attention import paragraph
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.kernel.process.registry import LiveProcess, Registry
from app.kernel.process.rollouts import Rollouts
from app.modules.platform.domain.queue import TraceNotFound
from app.modules.platform.overview import DeploymentOverview, Overview
from app.modules.platform.timeline import ChangesWanted, Timeline
from app.modules.platform.traces import TraceRef, Traces
from app.modules.platform.usecases import ActionCatalogue, CasesWanted
from app.processes import new_process, sections
from tests.commands.database import migrated_database
from tests.conftest import PostgresServer, TestDatabase
from tests.modules.platform.conftest import Acting
from tests.support.project import ROOT

NOW = datetime.now(UTC)
ANN = uuid7()
LETTER = """
    INSERT INTO kernel.dead_letters
        (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at, trace_context)
    VALUES (kernel.uuid7(), 'default', 'reports.render', 'failed', 3, 3, 60, now(), %s)
"""


@pytest.fixture(scope="module")
def migrated(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    with migrated_database(postgres, tmp_path_factory.mktemp("migrated")) as created:
        yield created


@pytest.fixture
async def process(migrated: TestDatabase) -> AsyncIterator[Process]:
    """A process on a database that the tests of this file share."""
    migrated.run("TRUNCATE kernel.series, kernel.counters, kernel.counted, kernel.rollouts, kernel.processes")
    migrated.run("TRUNCATE kernel.jobs, kernel.dead_letters, kernel.errors, kernel.queues")
    settings = load(ROOT, sections(), {"APP_ENV": "test", **migrated.env})
    async with new_process("test", settings).opened() as opened:
        yield opened


async def acting(p: Process, feature: type[Any]) -> Acting:
    return Acting(await operations(p, [feature]))


async def overview(p: Process) -> DeploymentOverview:
    return await (await acting(p, Overview)).get()


async def test_an_idle_deployment_is_well_and_shows_nothing(process: Process) -> None:
    found = await overview(process)
    assert (found.is_well, found.attention, found.processes) == (True, [], [])
    assert (found.last_hour, found.last_day, found.hour, found.errors) == (None, None, [], [])


async def test_attention_is_what_doctor_finds_with_its_fix_and_its_paragraph(
    process: Process, migrated: TestDatabase
) -> None:
    migrated.run(LETTER, None)
    migrated.run(
        "INSERT INTO kernel.jobs (id, queue, task, max_attempts, timeout_s, rank, run_at)"
        " VALUES (gen_random_uuid(), 'nobody', 't', 1, 1, 1, now() - interval '1 hour')"
    )
    found = await overview(process)
    assert not found.is_well
    assert [(need.check, need.level, need.fix) for need in found.attention] == [
        ("queues", "fail", "app run-event-consumer --queue nobody"),
        ("dead-letters", "warn", "app dead-letters list --task reports.render"),
    ]
    assert found.attention[0].problem.startswith("1 jobs of the queue nobody are due")
    assert found.attention[1].runbook == "DeadLetters"
    assert found.attention[1].paragraph.startswith("Jobs were given up within the last 15 minutes")
    assert [(queue.name, queue.ready) for queue in found.queues] == [("default", 0), ("nobody", 1)]


async def test_many_who_look_at_once_run_the_checks_once(process: Process, migrated: TestDatabase) -> None:
    first = await overview(process)
    migrated.run(LETTER, None)
    assert (await overview(process)).attention == first.attention == []  # remembered for a few seconds
    async with new_process("test", process.settings).opened() as another:
        assert len((await overview(another)).attention) == 1


def test_quick_checks_have_a_section_of_the_runbooks_and_end_in_time() -> None:
    quick = [check for check in checks() if check.quick]
    assert {"queues", "schedules", "dead-letters", "errors", "processes", "migrations", "partitions"} <= {
        check.name for check in quick
    }
    for check in quick:
        assert not check.runbook or paragraph(ROOT, check.runbook), check.name
        assert "](" not in paragraph(ROOT, check.runbook)


async def test_processes_are_counted_by_version_and_releases_are_marked(process: Process) -> None:
    db = await make(process, Database)
    registry, rollouts = Registry(db), Rollouts()
    for version, host in (("1", "a"), ("2", "a"), ("2", "b")):
        rollout = await rollouts.roll_out(db, "run-x", version, {"a.b": "1"})
        await registry.report(LiveProcess(uuid7(), "run-x", version, host, 1, "ready", ["http"], NOW, NOW), rollout)
    found = await overview(process)
    assert [(group.version, group.count, group.hosts) for group in found.processes] == [
        ("1", 1, ["a"]),
        ("2", 2, ["a", "b"]),
    ]
    assert [release.version for release in found.releases] == ["1", "2"]


async def test_the_timeline_merges_what_is_recorded_and_pages_through_all_of_it(
    process: Process, migrated: TestDatabase
) -> None:
    db, acts, rollouts = await make(process, Database), await acting(process, Timeline), Rollouts()
    for version, size in (("1", "10"), ("1", "20"), ("2", "20")):
        await rollouts.roll_out(db, "run-a", version, {"queue.concurrency": size, "a.b": "1"})
        await asyncio.sleep(0.002)  # ids are in the order of milliseconds
    await rollouts.roll_out(db, "run-b", "2", {"a.b": "1"})  # the same release in another role
    for action, outcome in (("platform.pause_queue", "done"), ("platform.pause_queue", "PERMISSION_DENIED")):
        await Audit().record(db, Caller(), action, outcome=outcome, target="reports", reason="too slow")
    migrated.run("INSERT INTO auth.actors (id, type, username, username_key) VALUES (%s, 'user', 'Ann', 'ann')", ANN)
    await Audit().record(db, Caller(), "auth.set_actor_roles", target=ANN)
    await Audit().record(db, Caller(actor_id=ANN), "auth.set_actor_roles", target="somebody gone")
    await Audit().record(db, Caller(), "platform.retry_job", target="not notable")
    for ago, errors in enumerate([1, 80, 0, 0]):
        migrated.run(
            "INSERT INTO kernel.series VALUES ('minute', now() - make_interval(mins => %s), now(), 60, %s, '{}')",
            ago,
            json.dumps({"errors": errors}),
        )
    everything = (await acts.list(ChangesWanted(limit=100))).items
    changes = {(change.what, change.by) for change in everything[:3]}  # of one millisecond, so in any order
    assert changes == {
        ("set actor roles somebody gone", "Ann"),
        ("set actor roles Ann", ""),
        ("pause queue reports (reason too slow)", ""),
    }
    assert [(change.kind, change.what) for change in everything[3:] if change.kind != "migration"] == [
        ("release", "2 started, after 1"),
        ("settings", "run-a: queue.concurrency 10 -> 20"),
        ("release", "1 started"),
        ("errors", "80 errors within a minute"),
    ]
    assert "migrations, 20261127120000_kernel_init_schema to " in next(
        c.what for c in everything if c.kind == "migration"
    )
    paged, cursor = [], None
    while True:
        page = await acts.list(ChangesWanted(limit=2, cursor=cursor))
        paged += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert [change.id for change in paged] == [change.id for change in everything]
    assert everything == sorted(everything, key=lambda change: change.id, reverse=True)


async def test_a_trace_has_the_request_and_what_came_of_it_in_order_of_time(
    process: Process, migrated: TestDatabase
) -> None:
    trace, request, context = uuid7().hex, f"by-{uuid7()}", "00-{}-00f067aa0ba902b7-01"
    acts = await acting(process, Traces)
    mine = context.format(trace)
    migrated.run(
        "INSERT INTO kernel.audit (id, at, action, outcome, target, request_id, trace_id)"
        " VALUES (kernel.uuid7(), now() - interval '9 s', 'auth.create_actor', 'done', 'ann', %s, %s)",
        request,
        trace,
    )
    for context_of in (mine, context.format("f" * 32), None):
        migrated.run(
            "INSERT INTO kernel.events (id, type, version, payload, trace_context, published_at)"
            " VALUES (kernel.uuid7(), 'auth.actor_created', 1, '{}', %s, now() - interval '8 s')",
            context_of,
        )
        migrated.run(
            "INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, created_at, trace_context)"
            " VALUES (kernel.uuid7(), 'q', 'auth.greet', 'done', 0, now() - interval '7 s', %s)",
            context_of,
        )
        migrated.run(
            "INSERT INTO kernel.jobs (id, queue, task, max_attempts, timeout_s, rank, created_at, trace_context)"
            " VALUES (kernel.uuid7(), 'q', 'auth.write', 1, 1, 1, now() - interval '6 s', %s)",
            context_of,
        )
        migrated.run(LETTER, context_of)
    sample = {"at": (NOW - timedelta(seconds=1)).isoformat(), "request_id": request, "trace_id": trace}
    migrated.run(
        "INSERT INTO kernel.errors (fingerprint, kind, type, title, culprit, count, processes, first_seen_at,"
        " last_seen_at, first_release, last_release, samples)"
        " VALUES ('f', 'request', 'KeyError', 'no such key', 'app.x:y', 1, '{}', now(), now(), '1', '1', %s)",
        json.dumps([sample, {**sample, "request_id": "another", "trace_id": "e" * 32}]),
    )
    for wanted in (trace, request):
        found = await acts.get(TraceRef(wanted))
        assert found.trace_ids == [trace]
        assert sorted((entry.kind, entry.what, entry.state) for entry in found.entries) == [
            ("audit", "auth.create_actor", "done"),
            ("dead letter", "reports.render", "dead"),
            ("error", "KeyError", "open"),
            ("event", "auth.actor_created", "published"),
            ("job", "auth.greet", "done"),
            ("job", "auth.write", "ready"),
        ]
        assert [entry.at for entry in found.entries] == sorted(entry.at for entry in found.entries)
    with pytest.raises(TraceNotFound):
        await acts.get(TraceRef("never-seen"))


async def test_the_catalogue_has_every_action_that_somebody_can_call(process: Process) -> None:
    found = {
        case.id: case for case in (await (await acting(process, ActionCatalogue)).list(CasesWanted(limit=100))).items
    }
    pause = found["platform.pause_queue"]
    assert (pause.method, pause.path, pause.permission, pause.command) == (
        "POST",
        "/platform/v1/queues/{name}/pause",
        "platform:queues:write",
        "app queues pause",
    )
    assert pause.notable
    assert all(case.changes for case in found.values() if case.notable)
    assert {case_id.partition(".")[0] for case_id in found} == {"auth", "platform"}
