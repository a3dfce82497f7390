"""Captured errors: grouped, counted, stored, and told once."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from loguru import logger

from app.kernel.config import BackupSettings, LoggerSettings, SentinelSettings, Settings, load
from app.kernel.db.postgres import PoolUse
from app.kernel.db.server import Server
from app.kernel.errors import Invalid, NotFound
from app.kernel.queue import Handler
from app.kernel.sentinel import NOTIFY, ErrorNotFound, service
from app.kernel.sentinel.backups import BackupWatch
from app.kernel.sentinel.capture import Capture
from app.kernel.sentinel.connections import ConnectionWatch
from app.kernel.sentinel.postgres import Errors
from app.kernel.sentinel.service import PoolWatch, Sentinel
from app.kernel.telemetry import logs, metrics
from app.modules.platform.alerts import Alerts
from app.modules.platform.domain.messages import SEND_MESSAGE, Message
from app.processes import sections
from tests.kernel.queue.conftest import Bench, bench
from tests.support.backups import GOOD, recorded
from tests.support.project import ROOT

__all__ = ["bench"]

SETTINGS = load(ROOT, sections(), {"APP_ENV": "test", "SENTINEL_NOTIFY_URLS": "json://x"})[SentinelSettings]
BACKUPS = load(ROOT, sections(), {"APP_ENV": "test"})[BackupSettings]


class Mailbox:
    """A recipient that may refuse."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refuses = False

    def names(self) -> list[str]:
        return ["you"]

    async def send(self, message: Message) -> None:
        if self.refuses:
            raise RuntimeError("not today")
        if message.recipient != "you":
            raise NotFound("who?")
        self.messages.append(message)


class Watch:
    """A sentinel that a test steps through."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.capture = Capture({"process": "test", "host": "h:1", "release": "1", "environment": "test"})
        self.errors = Errors(3600)
        self.pool = PoolUse(0, 1, 0, 10)
        pool = PoolWatch(lambda: self.pool)
        connections = ConnectionWatch(bench.db, Server("there:1", {}))
        backups = BackupWatch(bench.db, BACKUPS, is_published=False)
        given = (self.capture, bench.db, bench.queue, self.errors, SETTINGS, "test", pool, connections, backups)
        self.sentinel = Sentinel(*given)
        self.mailbox = Mailbox()

    def handlers(self) -> list[Handler]:
        alerts = Alerts(self.errors, self.mailbox, self.bench.queue, Settings("test"))
        return [Handler(NOTIFY, alerts.notify, mode="tx"), Handler(SEND_MESSAGE, alerts.send)]

    async def groups(self) -> list[tuple]:
        return await self.bench.rows("SELECT kind, type, title, state, count FROM kernel.errors ORDER BY id")

    async def told(self, count: int) -> list[Message]:
        """Store, let people be told without the delay, and return the messages when there are so many."""
        await self.sentinel.store()
        await self.bench.db.run("UPDATE kernel.jobs SET run_at = now() WHERE task = %s", (NOTIFY.name,))
        await self.bench.until(lambda: asyncio.sleep(0, len(self.mailbox.messages)), count)
        await self.bench.until(lambda: self.bench.rows("SELECT count(*) FROM kernel.jobs"), [(0,)])
        assert len(self.mailbox.messages) == count
        return self.mailbox.messages


@pytest.fixture
async def watch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    made = Watch(bench)
    monkeypatch.setattr(logs, "_listener", made.capture)
    logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    yield made
    logger.remove()


def failing(message: str) -> None:
    raise ValueError(message)


def fail(message: str = "no", **context: Any) -> None:
    from app.kernel.paging import after

    try:
        after("not a cursor")  # something of ours is in the stack
    except Invalid as error:
        with logger.contextualize(**context):
            logger.opt(exception=error).error(message)


async def test_ten_thousand_alike_are_one_group_and_one_message(watch: Watch, bench: Bench) -> None:
    for number in range(10_000):
        fail(f"number {number}")
    async with bench.consuming(watch.handlers()):
        (message,) = await watch.told(1)
    assert await watch.groups() == [("service", "Invalid", "Invalid: the cursor is invalid", "open", 10_000)]
    assert message.title == "[test] Invalid: the cursor is invalid"
    assert "10000 times" in message.body


async def test_a_rare_error_among_many_others_has_its_sample(watch: Watch) -> None:
    for number in range(1000):
        fail(f"number {number}")
    try:
        failing("rare")
    except ValueError as error:
        logger.opt(exception=error).error("rare")
    await watch.sentinel.store()
    found = await watch.bench.rows("SELECT type, count, jsonb_array_length(samples) FROM kernel.errors ORDER BY id")
    assert sorted(found) == [("Invalid", 1000, 1), ("ValueError", 1, 1)]


async def test_of_a_flood_of_failures_each_is_counted_and_has_its_line(
    watch: Watch, bench: Bench, tmp_path: Path
) -> None:
    logs.configure(LoggerSettings("info", "json", str(tmp_path / "log")), "test")

    async def written() -> int:
        return len((tmp_path / "log").read_text().splitlines())

    logs.new_context(request_id="r1")
    for number in range(10_000):
        try:
            failing(f"number {number} token=abcdefgh")
        except ValueError as error:
            logs.failed(error, "unhandled {}", "ValueError", operation="x.y")
        if number % 1000 == 0:
            await bench.until(written, number + 1)  # beyond 4,000 lines that wait, they are dropped
    await watch.sentinel.store()
    assert await watch.groups() == [("request", "ValueError", "ValueError: number 0 token=***", "open", 10_000)]
    await bench.until(written, 10_000)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    stacks = [line for line in lines if "Traceback" in line["exception"]]
    assert 1 <= len(stacks) < 100
    assert {line["request_id"] for line in lines} == {"r1"}
    assert lines[9_000]["exception"] == "ValueError: number 9000 token=***"
    assert (lines[9_000]["message"], lines[9_000]["level"]) == ("unhandled ValueError", "error")


async def test_errors_that_come_from_elsewhere_are_groups_of_their_own(watch: Watch) -> None:
    fail()
    try:
        failing("x")
    except ValueError as error:
        logger.opt(exception=error).error("another")
    logger.error("without an exception")
    fail(request_id="r1")
    fail(job_id="j1")
    await watch.sentinel.store()
    assert sorted((kind, type_) for kind, type_, *_ in await watch.groups()) == [
        ("job", "Invalid"),
        ("request", "Invalid"),
        ("service", "Invalid"),
        ("service", "ValueError"),
        ("service", "log"),
    ]


async def test_what_is_no_error_is_not_captured(watch: Watch) -> None:
    logger.warning("a warning")
    logger.info("password=hunter2")
    assert watch.capture.drain() == []


async def test_a_sample_says_what_was_going_on_without_secrets(watch: Watch) -> None:
    with logger.contextualize(request_id="r1"):
        logger.info("first {}", "password=hunter2")
    with logger.contextualize(request_id="r2"):
        logger.info("of another request")
    fail("oops token=abcdefgh", request_id="r1", operation="auth.login", password="hunter2")
    await watch.sentinel.store()
    ((samples,),) = await watch.bench.rows("SELECT samples FROM kernel.errors")
    (sample,) = samples
    assert sample["operation"] == "auth.login"
    assert (sample["process"], sample["host"], sample["release"]) == ("test", "h:1", "1")
    assert [line.split(" ", 1)[1] for line in sample["lines"]] == ["first password=***", "oops token=***"]
    assert "app.kernel.paging" not in sample["message"]
    assert "in after" in sample["stack"]
    assert "hunter2" not in str(sample)
    assert "abcdefgh" not in str(sample)


async def test_a_resolved_group_regresses_and_is_told_again_at_once(watch: Watch, bench: Bench) -> None:
    async with bench.consuming(watch.handlers()):
        fail()
        await watch.told(1)
        fail()
        await watch.told(1)  # within the cooldown
        ((error_id,),) = await bench.rows("SELECT id FROM kernel.errors")
        await watch.errors.resolve(bench.db, error_id, next_release=False)
        fail()
        _, message = await watch.told(2)
    assert message.title.startswith("[test] regressed: ")
    assert "2 times since the last message, 3 in all" in message.body
    assert [state for _, _, _, state, _ in await watch.groups()] == ["regressed"]


async def test_after_the_cooldown_people_are_told_how_many_there_were_since(watch: Watch, bench: Bench) -> None:
    async with bench.consuming(watch.handlers()):
        fail()
        await watch.told(1)
        for _ in range(5):
            fail()
        await watch.sentinel.store()
        await bench.db.run("UPDATE kernel.errors SET notified_at = now() - interval '2 hours'")
        await watch.sentinel.detect_outages()
        _, message = await watch.told(2)
    assert "5 times since the last message, 6 in all" in message.body


async def test_of_a_muted_group_nobody_is_told_until_then(watch: Watch, bench: Bench) -> None:
    async with bench.consuming(watch.handlers()):
        fail()
        await watch.told(1)
        ((error_id,),) = await bench.rows("SELECT id FROM kernel.errors")
        await watch.errors.mute(bench.db, error_id, datetime.now(UTC) + timedelta(minutes=1))
        await bench.db.run("UPDATE kernel.errors SET notified_at = NULL")
        fail()
        await watch.told(1)
        await bench.db.run("UPDATE kernel.errors SET muted_until = now()")
        fail()
        await watch.told(2)
    assert [(state, count) for *_, state, count in await watch.groups()] == [("open", 3)]


async def test_many_groups_at_once_are_told_in_a_digest(watch: Watch, bench: Bench) -> None:
    for number in range(30):
        watch.capture.add("outage", "QueueStuck", f"queue {number}", f"q{number}")
    async with bench.consuming(watch.handlers()):
        (message,) = await watch.told(1)
    assert message.title == "[test] 30 groups of errors"
    assert message.body.count("app errors show") == 20
    assert "and 10 more" in message.body


async def test_a_message_that_is_not_accepted_is_tried_again(watch: Watch, bench: Bench) -> None:
    watch.mailbox.refuses = True
    async with bench.consuming(watch.handlers()):
        fail()
        await watch.sentinel.store()
        await bench.db.run("UPDATE kernel.jobs SET run_at = now()")
        tried = "SELECT count(*) FROM kernel.jobs WHERE task = 'platform.send_message' AND attempt = 1"
        await bench.until(lambda: bench.rows(tried), [(1,)])
        watch.mailbox.refuses = False
        await bench.db.run("UPDATE kernel.jobs SET run_at = now()")
        await bench.until(lambda: asyncio.sleep(0, len(watch.mailbox.messages)), 1)


async def test_while_the_database_is_away_errors_are_kept_and_counted(watch: Watch, bench: Bench) -> None:
    class Away:
        def begin(self) -> Any:
            from app.kernel.errors import Unavailable

            raise Unavailable("away")

    away = replace(watch.sentinel, db=Away())  # type: ignore[arg-type]
    for _ in range(3):
        fail()
        with pytest.raises(Exception, match="away"):
            await away.store()
    await watch.sentinel.store()
    assert [count for *_, count in await watch.groups()] == [3]


async def test_more_groups_than_can_be_kept_are_dropped_and_counted(watch: Watch) -> None:
    for number in range(250):
        watch.capture.add("outage", "X", f"number {number}", str(number))
    assert len(watch.capture.drain()) == 200


async def test_outages_of_others_are_captured(watch: Watch, bench: Bench) -> None:
    await bench.db.run(
        "INSERT INTO kernel.processes (id, name, version, host, pid, state, services, started_at, last_seen_at)"
        " VALUES (kernel.uuid7(), 'run-x', '1', 'there', 7, 'ready', '{}', now(), now() - interval '1 minute'),"
        " (kernel.uuid7(), 'run-y', '1', 'there', 8, 'ready', '{}', now(), now())"
    )
    await bench.db.run(
        "INSERT INTO kernel.schedules (name, task, spec, misfire, next_fire_at, paused_at) VALUES"
        " ('late', 't', 's', 'one', now() - interval '3 minutes', NULL),"
        " ('paused', 't', 's', 'one', now() - interval '3 minutes', now()), ('fine', 't', 's', 'one', now(), NULL)"
    )
    await bench.db.run("INSERT INTO kernel.queues (name, paused_at) VALUES ('paused', now()), ('slow', NULL)")
    for queue, age_s in (("stuck", 400), ("slow", 400), ("fine", 100), ("paused", 400)):
        await bench.db.run(
            "INSERT INTO kernel.jobs (id, queue, task, rank, max_attempts, timeout_s, run_at)"
            " VALUES (kernel.uuid7(), %s, 't', 0, 1, 1, now() - %s * interval '1 second')",
            (queue, age_s),
        )
    await watch.sentinel.detect_outages()
    found = {(group.type, group.culprit): group.title for group in watch.capture.drain()}
    queues = {("QueueStuck", "stuck"), ("QueueStuck", "slow")}
    assert set(found) == {("ProcessGone", "run-x"), ("ScheduleLate", "late"), *queues}
    assert "run-x on there (pid 7) has not reported for 6" in found["ProcessGone", "run-x"]
    assert found["QueueStuck", "stuck"].endswith(" s: no consumer works on it")
    assert found["QueueStuck", "slow"].endswith(" s: too few consumers, or jobs that hang")


async def test_bad_backups_are_told_once_and_no_more_when_they_are_well_again(watch: Watch, bench: Bench) -> None:
    async with bench.consuming(watch.handlers()):
        recorded(bench.test, ("backup", "succeeded", 27), ("drill", "failed", 1))
        for _ in range(3):
            await watch.sentinel.detect_outages()
        messages = await watch.told(2)
        recorded(bench.test, *GOOD)
        await watch.sentinel.detect_outages()
        assert watch.capture.drain() == []
        await watch.told(2)
    told = "\n".join(message.title for message in messages)
    assert "the newest backup is 27 h old, more than backup.max_age (26 h)" in told
    assert "failed: the target is full" in told
    assert {(type_, state, count) for _, type_, _, state, count in await watch.groups()} == {
        ("BackupStale", "open", 3),
        ("DrillFailed", "open", 3),
    }


def test_a_pool_is_complained_of_when_it_stays_nearly_full() -> None:
    use = PoolUse(9, 1, 0, 10)
    watch = PoolWatch(lambda: use)
    assert [watch.complaint(now) for now in (0.0, 9.9)] == ["", ""]
    use = PoolUse(8, 2, 0, 10)  # a moment of air
    assert [watch.complaint(now) for now in (10.0, 10.1)] == ["", ""]
    use = PoolUse(10, 0, 3, 10)
    assert [bool(watch.complaint(now)) for now in (11.0, 20.9, 21.0, 30.9, 31.0)] == [False, False, True, False, True]
    assert watch.complaint(41.0) == "for 10 s, 10 of 10 connections of the pool were in use; 3 requests wait"


async def test_a_server_whose_connections_are_nearly_used_up_is_captured(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_NEARLY_FULL", 0.001)
    await watch.sentinel.detect_outages()
    (group,) = watch.capture.drain()
    assert group.type == "ConnectionsNearlyUsedUp"
    assert re.fullmatch(r"\d+ of \d+ connections of PostgreSQL are in use", group.title)


async def test_connections_of_others_to_the_server_are_measured(watch: Watch, bench: Bench) -> None:
    def measured(state: str) -> float:
        return metrics._SERVER_CONNECTIONS.labels("there:1", state)._value.get()

    await watch.sentinel.connections.measure()
    before = measured("used")
    assert 0 < before < measured("max") < 1000
    with psycopg.connect(bench.test.conninfo), psycopg.connect(bench.test.conninfo):
        await watch.sentinel.connections.measure()
        assert measured("used") == before  # not due yet
        watch.sentinel.connections.due_at = 0
        await watch.sentinel.connections.measure()
        assert measured("used") >= before + 2


async def test_only_one_process_looks_out_at_a_time(watch: Watch, bench: Bench) -> None:
    from app.kernel.sentinel.service import _MY_TURN

    turns = await asyncio.gather(*(bench.db.run(_MY_TURN) for _ in range(8)))
    assert sorted(turns) == [0] * 7 + [1]


async def test_a_group_that_does_not_exist_is_not_found(watch: Watch, bench: Bench) -> None:
    from uuid import uuid4

    for change in (watch.errors.get(bench.db, uuid4()), watch.errors.resolve(bench.db, uuid4(), next_release=True)):
        with pytest.raises(ErrorNotFound):
            await change
    with pytest.raises(ErrorNotFound):
        await watch.errors.mute(bench.db, uuid4(), datetime.now(UTC))


async def test_when_there_is_nobody_to_tell_nothing_is_enqueued(watch: Watch, bench: Bench) -> None:
    nobody = load(ROOT, sections(), {"APP_ENV": "test"})[SentinelSettings]
    alone = replace(watch.sentinel, settings=nobody)
    fail()
    await alone.store()
    await alone.detect_outages()
    assert [count for *_, count in await watch.groups()] == [1]
    assert await bench.states() == []
