"""`app jobs`, `queues`, `dead-letters`, `schedules` and `events`, as processes."""

import os
import pwd
import socket
import time
from pathlib import Path
from uuid import UUID

import pytest

from tests.commands.outcome import printed_json, refused
from tests.commands.terminal import INTERRUPT, terminal
from tests.conftest import TestDatabase
from tests.support.project import Project, eventually

NOBODY = "0190b3a0-0000-7000-8000-000000000001"
FAILED = """[{"attempt": 3, "at": "2026-11-22T10:00:00+00:00", "error": "RuntimeError: \\u001b[31mnot today"}]"""
COUNT = "SELECT count(*) FROM kernel.dead_letters WHERE queue = %s"


def job(database: TestDatabase, queue: str, state: str = "scheduled") -> str:
    [(made,)] = database.all(
        "INSERT INTO kernel.jobs (id, queue, task, payload, state, rank, max_attempts, timeout_s, run_at)"
        """ VALUES (kernel.uuid7(), %s, 'greet', '{"name": "José"}', %s, 0, 3, 10, now() + '1 hour') RETURNING id""",
        queue,
        state,
    )
    return str(made)


def dead_letters(database: TestDatabase, queue: str, count: int = 1, age: str = "1 minute") -> list[str]:
    made = database.all(
        "INSERT INTO kernel.dead_letters"
        " (id, queue, task, payload, reason, attempt, max_attempts, timeout_s, errors, created_at, died_at)"
        """ SELECT kernel.uuid7(), %s, 'greet', '{"name": "José"}', E'failed:\\n\\x1b[31mnot today', 3, 3, 10, %s,"""
        " now(), now() - %s::interval FROM generate_series(1, %s) RETURNING id",
        queue,
        FAILED,
        age,
        count,
    )
    return [str(letter) for (letter,) in made]


# Jobs and queues


def test_jobs_are_listed_shown_retried_and_cancelled(on_migrated: Project, migrated: TestDatabase) -> None:
    first, second = job(migrated, "q1"), job(migrated, "q1", "leased")
    table = on_migrated.app("jobs", "list", "--queue", "q1", "--limit", "2")
    assert table.stderr.startswith("there may be more: --cursor ")
    heading, *lines = table.stdout.splitlines()
    assert heading.split() == ["job", "task", "queue", "state", "attempts", "due", "or", "ended"]
    assert sorted(line.split()[:5] for line in lines) == sorted(
        [[first, "greet", "q1", "scheduled", "0/3"], [second, "greet", "q1", "leased", "0/3"]]
    )
    assert "José" not in on_migrated.app("jobs", "show", first).stdout
    assert '"name": "José"' in on_migrated.app("jobs", "reveal", first).stdout
    assert on_migrated.app("jobs", "retry", first).stdout == f"{first} is ready\n"
    asked = on_migrated.app("jobs", "cancel", second)
    assert asked.stdout == f"{second} is running; its cancellation was requested\n"
    assert printed_json(on_migrated.app("jobs", "cancel", first, "--json")) == {
        "id": first, "state": "cancelled", "cancel_requested_at": None
    }  # fmt: skip
    audited = "SELECT action, actor_id FROM kernel.audit WHERE target = %s ORDER BY id"
    assert migrated.all(audited, first) == [(f"platform.{what}_job", None) for what in ("reveal", "retry", "cancel")]
    again = on_migrated.app("jobs", "run-again", first, "--payload", "-", stdin='{"name": "Zoé"}')
    assert again.stdout.endswith(f" runs {first} again with other arguments\n")
    assert '"name": "Zoé"' in on_migrated.app("jobs", "reveal", again.stdout.split()[0]).stdout
    for wrong in ("[1]", "{", '{"name": 1, "name": 2}', "7"):
        done = on_migrated.app("jobs", "run-again", first, "--payload", wrong)
        assert (done.returncode, "--payload" in done.stderr, "Traceback" in done.stderr) == (2, True, False), wrong
    addresses = migrated.all("SELECT DISTINCT address FROM kernel.audit WHERE target = %s", first)
    user = pwd.getpwuid(os.getuid()).pw_name
    assert addresses == [(f"os:{user}@{socket.gethostname()}",)]
    assert "is cancelled; an ended job cannot be changed" in refused(on_migrated.app("jobs", "retry", first), 73)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"jobs show {NOBODY}", f"there is no job {NOBODY}"),
        ("events replay --subscriber nobody --from 2026-11-22 --yes", "there is no subscriber nobody"),
    ],
)
def test_what_is_not_there_is_one_line(on_migrated: Project, line: str, says: str) -> None:
    assert says in refused(on_migrated.app(*line.split()), 67)


def test_queues_are_listed_paused_limited_and_resumed(on_migrated: Project, migrated: TestDatabase) -> None:
    job(migrated, "q2")
    paused = on_migrated.app("queues", "pause", "q2")
    assert (paused.returncode, paused.stderr) == (0, "")
    assert paused.stdout.startswith("q2 has been paused since 20")
    for_hours = on_migrated.app("queues", "pause", "q2", "--for", "2h", "--reason", "mail is down", "--json")
    assert printed_json(for_hours)["pause_reason"] == "mail is down"
    assert "must be in the future" in refused(on_migrated.app("queues", "pause", "q2", "--until", "2026-01-01"), 65)
    assert on_migrated.app("queues", "limit", "q2", "4").stdout.endswith("; at most 4 of its jobs may run at once\n")
    lines = on_migrated.app("queues", "list").stdout.splitlines()
    [line] = [line for line in lines if line.startswith("q2 ")]
    assert line.split()[:9] == ["q2", "0", "1", "0", "0", "0", "0", "0", "4"]
    for change in (["pause", "q2x"], ["resume", "q2x"], ["limit", "q2x", "3"], ["limit", "q2x", "--none"]):
        assert refused(on_migrated.app("queues", *change), 67) == "app: there is no queue q2x; did you mean q2?"
    assert migrated.all("SELECT count(*) FROM kernel.queues WHERE name = 'q2x'") == [(0,)]


# Dead letters


def test_dead_letters_are_listed_shown_and_retried(on_migrated: Project, migrated: TestDatabase) -> None:
    letters = dead_letters(migrated, "q3", 3)
    listed = on_migrated.app("dead-letters", "list", "--queue", "q3")
    assert "\x1b" not in listed.stdout
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == sorted(letters, key=UUID, reverse=True)
    plain = on_migrated.app("dead-letters", "show", letters[0]).stdout
    assert "\x1b" not in plain
    assert "RuntimeError: " in plain
    many = on_migrated.app("dead-letters", "retry", "--queue", "q3", "--task", "greet")
    assert (many.returncode, many.stdout, many.stderr) == (0, "retried 3 dead letters\n", "")
    assert migrated.all("SELECT state, attempt FROM kernel.jobs WHERE queue = 'q3'") == [("ready", 0)] * 3


def test_dead_letters_of_some_age_are_purged_and_the_others_stay(on_migrated: Project, migrated: TestDatabase) -> None:
    dead_letters(migrated, "q4", 2500, "8 days")
    dead_letters(migrated, "q4")
    done = on_migrated.app("dead-letters", "purge", "--queue", "q4", "--older-than", "7d", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    text, _, undo = done.stdout.strip().partition("; within a day: app ")
    assert text == "purged 2500 dead letters"
    assert migrated.all(COUNT, "q4") == [(1,)]
    [shown] = on_migrated.app("dead-letters", "purges").stdout.splitlines()[1:]
    assert shown.split()[0] == undo.split()[-1]
    restored = on_migrated.app("dead-letters", "undo-purge", shown.split()[0][-12:])
    assert (restored.stdout, restored.stderr) == ("restored 2500 dead letters\n", "")
    assert migrated.all(COUNT, "q4") == [(2501,)]
    again = on_migrated.app(*undo.split())
    assert refused(again, 67).startswith("app: there is no purge")


def test_purging_asks_and_shows_how_far_it_is_on_a_terminal(on_migrated: Project, migrated: TestDatabase) -> None:
    dead_letters(migrated, "q5", 2500)
    for answer, status, left in ((INTERRUPT, 130, 2500), ("yes\n", 0, 0)):
        with terminal(on_migrated, "dead-letters", "purge", "--queue", "q5") as asked:
            asked.expect("Delete 2500 dead letters? They can be restored for a day. [y/N]: ")
            asked.type(answer)
            assert asked.wait() == status
        assert "Traceback" not in asked.seen
        assert migrated.all(COUNT, "q5") == [(left,)]
    assert "2500/2500" in asked.seen
    assert "purged 2500 dead letters; within a day: app dead-letters undo-purge " in asked.seen


# Events


def test_a_replay_that_is_interrupted_says_how_to_go_on_and_nothing_is_lost_or_doubled(
    on_migrated: Project, migrated: TestDatabase
) -> None:
    total = 30_000
    migrated.run("INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES ('greeter', 'test.moved')")
    migrated.run(
        "INSERT INTO kernel.events (id, type, version, payload, published_at)"
        " SELECT kernel.uuid7(), 'test.moved', 1, '{}',"
        " '2026-11-22T10:00:00Z'::timestamptz + (n / 5000) * interval '1 s' FROM generate_series(1, %s) n",
        total,
    )
    replay = ("events", "replay", "--subscriber", "greeter", "--from", "2026-11-22")
    assert printed_json(on_migrated.app(*replay, "--dry-run", "--json")) == {"dry_run": True, "count": total}
    asked = on_migrated.app(*replay)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "say --yes to confirm" in asked.stderr
    counted = "SELECT count(*), count(DISTINCT event_id) FROM kernel.jobs WHERE task = 'greeter'"
    with terminal(on_migrated, *replay) as shown:
        shown.expect(f"Deliver {total} events to greeter again? [y/N]: ")
        assert migrated.all(counted) == [(0, 0)]
        shown.type("yes\n")
        eventually(lambda: migrated.all(counted)[0][0] > 0, every=0.01)
        shown.type(INTERRUPT)
        assert shown.wait() == 130
    said = " ".join(shown.seen.split())
    assert "Traceback" not in said
    ((enqueued, _),) = migrated.all(counted)
    assert 0 < enqueued < total
    assert f"stopped after {enqueued} events, at 2026-11-22T10:00:0" in said
    cursor = said.partition("continue with --cursor ")[2].split()[0]
    rest = printed_json(on_migrated.app(*replay, "--cursor", cursor, "--yes", "--json"))
    assert rest == {"subscriber": "greeter", "enqueued_count": total - enqueued}
    assert migrated.all(counted) == [(total, total)]
    lines = on_migrated.app(
        "events", "list", "--from", "2026-11-22T10:00:06Z", "--to", "2026-11-23"
    ).stdout.splitlines()
    assert lines[0].split() == ["event", "type", "version", "published", "at", "trace"]
    assert [line.split()[1:] for line in lines[1:]] == [["test.moved", "1", "2026-11-22", "10:00:06Z"]]


# Everything together, with a worker of its own


def test_an_operator_pauses_triggers_cancels_and_resumes_what_a_worker_does(
    project: Project, database: TestDatabase, tmp_path: Path
) -> None:
    copied = project.copy(tmp_path / "copy")
    usecase = copied.root / "app/modules/platform/maintenance.py"
    text = usecase.read_text()
    slow = text.replace(
        '        logger.info("cron manager, queue and consumer work")',
        "        import asyncio\n        await asyncio.sleep(60)",
    )
    assert slow != text
    usecase.write_text(slow)
    copied.env["QUEUE_POLL_INTERVAL"] = "30s"
    manager, worker = copied.start("run-cron-manager"), copied.start("run-event-consumer")
    manager.ready()
    worker.ready()
    heartbeat = "platform.heartbeat"
    assert copied.app("schedules", "pause", heartbeat).stdout.startswith(f"{heartbeat} has been paused since 20")
    assert copied.app("queues", "pause", "default").returncode == 0
    job_id = printed_json(copied.app("schedules", "trigger", heartbeat, "--json"))["job_id"]
    time.sleep(0.5)
    state = "SELECT state FROM kernel.jobs WHERE id = %s"
    assert database.all(state, job_id) == [("ready",)]
    assert copied.app("queues", "resume", "default").returncode == 0
    eventually(lambda: database.all(state, job_id) == [("leased",)])
    assert "its cancellation was requested" in copied.app("jobs", "cancel", job_id).stdout
    ended = eventually(lambda: database.all("SELECT outcome FROM kernel.finished_jobs WHERE id = %s", job_id), 5)
    assert ended == [("cancelled",)]
    heading, *lines = copied.app("schedules", "list").stdout.splitlines()
    assert heading.split() == ["schedule", "rhythm", "next", "until", "late", "fired", "skipped", "last", "job"]
    [line] = [line for line in lines if line.startswith(heartbeat)]
    assert "* * * * * UTC" in line
    assert " paused 20" in line
    assert "cancelled 20" in line
    assert printed_json(copied.app("schedules", "resume", heartbeat, "--json")) == {
        "name": heartbeat, "paused_at": None, "paused_until": None, "pause_reason": None
    }  # fmt: skip


# What removed modules leave behind


def test_removing_orphans_is_recorded_with_what_was_removed_and_only_if_something_was(
    project: Project, database: TestDatabase
) -> None:
    database.run("INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES ('gone.greet', 'gone.moved')")
    dead_letters(database, "default", 2)
    for expected in ("removed 0 schedules, 1 subscriptions, 0 jobs and 2 dead letters\n", None):
        done = project.app("orphans", "remove", "--yes")
        assert done.returncode == 0, done.stderr
        assert expected in (done.stdout, None)
    [(address, details)] = database.all("SELECT address, details FROM kernel.audit")
    assert address == f"os:{pwd.getpwuid(os.geteuid()).pw_name}@{socket.gethostname()}"
    assert details == {"schedules": 0, "subscriptions": 1, "jobs": 0, "dead_letters": 2}


def test_many_orphans_are_removed_in_transactions_of_which_each_is_recorded(
    project: Project, database: TestDatabase
) -> None:
    dead_letters(database, "default", 5001)
    done = project.app("orphans", "remove", "--yes", "--json")
    assert printed_json(done) == {"schedules": 0, "subscriptions": 0, "jobs": 0, "dead_letters": 5001}
    recorded = database.all("SELECT (details->>'dead_letters')::int FROM kernel.audit ORDER BY 1")
    assert recorded == [(1,), (5000,)]
