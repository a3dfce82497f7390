"""The verdict finds whatever is lost or doubled: planted into the account of a fleet that lost nothing."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tests.chaos.load import Load
from tests.chaos.module.jobs import GROUP, LIMITED, NARROW, PLAIN, SCHEDULE_COUNT, TICK, TX
from tests.chaos.verdict import Verdict, count
from tests.commands.database import migrated_database
from tests.conftest import PostgresServer, TestDatabase
from tests.kernel.http.test_rolling import Sent
from tests.support.fleet import Done, requests
from tests.support.project import ROOT

KINDS = (PLAIN.name, TX.name, LIMITED.name, NARROW.name, GROUP.name, "chaos.told", "chaos.told_in_order")
NUMBERS = range(1, 6)
ROLES, RESUME = "/auth/v1/roles", "/platform/v1/queues/default/resume"

_EFFECTS = """
    INSERT INTO chaos.effects (kind, key, number, before, worker)
    SELECT kind, '', number, nullif(number - 1, 0), 1 FROM unnest(%s::text[]) kind, unnest(%s::bigint[]) number
"""
_TICKS = """
    WITH fired AS (
        SELECT format('chaos.tick_%%s', to_char(n, 'FM00')) AS name,
            timestamptz '2027-01-01 00:00:00Z' + s * interval '1 s' AS at
        FROM generate_series(0, %s - 1) n, generate_series(0, 4) s
    ), kept AS (
        INSERT INTO kernel.schedules (name, spec, misfire, task, next_fire_at, last_fire_at, fired_count)
        SELECT name, 'every 1 s', 'all', %s, max(at) + interval '1 s', max(at), count(*) FROM fired GROUP BY name
    ), told AS (
        INSERT INTO chaos.effects (kind, key, number, worker) SELECT %s, '', 0, 1 FROM fired
    )
    INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, schedule, unique_key, created_at)
    SELECT kernel.uuid7(), 'default', %s, 'done', 1, name, name || '@' || at, at FROM fired
"""
_AUDITED = (
    "INSERT INTO kernel.audit (id, action, outcome, request_id) VALUES (kernel.uuid7(), 'auth.create_role', 'done', %s)"
)


def _post(name: str, path: str = ROLES, outcome: str = "201", **more: Any) -> Sent:
    return Sent(name, "POST", path, more.get("begun", 10.0), more.get("ended", 10.5), outcome)


SENT = (
    _post("r1"),
    _post("r2"),
    _post("q1", RESUME, "200"),
    Sent("g1", "GET", "/auth/v1/me", 10.0, 10.5, "200"),
    _post("r3", outcome="502", begun=19.0, ended=20.1),  # of an API that was killed
    _post("r4", outcome="503", begun=31.0, ended=31.1),  # while there was no primary
    _post("r5", outcome="ConnectError('')", begun=41.0, ended=41.0),  # while there was no nginx
)
DONE = (Done("auth", 20, 0, 22, 24, gone=20.2), Done("primary", 30, 0, 33, 35), Done("nginx", 40, 0, 42, 45))


@dataclass
class Account:
    """What was sent, enqueued and done; one connection, whose changes are rolled back."""

    connection: psycopg.Connection
    sent: list[Sent] = field(default_factory=lambda: list(SENT))
    load: Load = field(default_factory=lambda: Load(random.Random(1), 0))

    def all(self, sql: str, *parameters: object) -> list[tuple]:
        return self.connection.execute(sql, parameters).fetchall()  # pyright: ignore[reportArgumentType]

    def failed(self) -> set[str]:
        """Return the checks that fail."""
        verdict = Verdict()
        count(verdict, self, self.load)
        requests(verdict, self, DONE, self.sent)
        return {what for what, _, ok in verdict.checks if not ok}


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    """The account of a fleet that lost nothing."""
    with migrated_database(postgres, tmp_path_factory.mktemp("verdict")) as made:
        made.run((ROOT / "tests/chaos/migrations/20270101000000_chaos_init_effects.sql").read_text())
        made.run(_EFFECTS, list(KINDS), list(NUMBERS))
        made.run(_TICKS, SCHEDULE_COUNT, TICK.name, TICK.name, TICK.name)
        for sent in SENT:
            if sent.method == "POST" and not sent.failed:
                made.run(_AUDITED, sent.id)
                if sent.path == ROLES:
                    made.run("INSERT INTO auth.roles (id, name) VALUES (kernel.uuid7(), %s)", sent.id)
        yield made


@contextmanager
def account(database: TestDatabase) -> Iterator[Account]:
    with psycopg.connect(database.conninfo) as connection:
        found = Account(connection)
        for kind in KINDS:
            found.load.confirmed[kind] = {("", number) for number in NUMBERS}
        yield found
        connection.rollback()


def test_an_account_without_losses_adds_up(database: TestDatabase) -> None:
    with account(database) as found:
        assert found.failed() == set()


_TICK_JOB = "FROM kernel.finished_jobs WHERE schedule = 'chaos.tick_07' AND unique_key LIKE '%%:0{}+00'"
_ONE_TICK = "WHERE ctid = (SELECT min(ctid) FROM chaos.effects WHERE kind = 'chaos.tick')"
_UNLIKE, _NOT_ONCE = "schedules whose row differs from their ticks", "ticks whose job was not done exactly once"
PLANTED = {
    "an acknowledged write is lost": (
        "DELETE FROM auth.roles WHERE name = 'r1'",
        "POST: acknowledged roles that are lost",
    ),
    "a write is made twice": (_AUDITED.replace("%s", "'r2'"), "POST: written twice"),
    "a write that failed is made twice": (
        f"{_AUDITED}, (kernel.uuid7(), 'auth.create_role', 'done', 'r3')".replace("%s", "'r3'"),
        "POST: written twice",
    ),
    "an effect is of nothing": (
        "INSERT INTO chaos.effects (kind, key, number, worker) VALUES ('chaos.plain', '', 99, 1)",
        "chaos.plain: done, but never enqueued",
    ),
    "an event is left": (
        "INSERT INTO kernel.event_outbox (event_id, type, version, payload) VALUES (kernel.uuid7(), 'a.b', 1, '{}')",
        "events left in the outbox",
    ),
    "an event is overtaken": (
        "UPDATE chaos.effects SET before = 1 WHERE kind = 'chaos.told_in_order' AND number = 3",
        "chaos.told_in_order: begun before the one before was done",
    ),
    "a tick is lost": (
        f"WITH gone AS (DELETE {_TICK_JOB.format(2)}) DELETE FROM chaos.effects {_ONE_TICK}",
        "ticks missing between a schedule's first and last",
        _UNLIKE,
    ),
    "the last tick is lost": (
        f"WITH gone AS (DELETE {_TICK_JOB.format(4)}) DELETE FROM chaos.effects {_ONE_TICK}",
        _UNLIKE,
    ),
    "a tick comes twice": (
        f"""WITH told AS (INSERT INTO chaos.effects (kind, key, number, worker) VALUES ('chaos.tick', '', 0, 1))
        INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, schedule, unique_key, created_at)
        SELECT kernel.uuid7(), queue, task, outcome, attempt, schedule, unique_key, created_at {_TICK_JOB.format(2)}""",
        "schedules with a tick that came twice",
        _UNLIKE,
    ),
    "a tick's effect is lost, and another's is there twice": (
        f"""WITH gone AS (DELETE FROM chaos.effects {_ONE_TICK})
        INSERT INTO chaos.effects (kind, key, number, worker) VALUES ('chaos.tick', '', 0, 1)""",
        _NOT_ONCE,
    ),
    **{
        f"{kind} is lost": (
            f"DELETE FROM chaos.effects WHERE kind = '{kind}' AND number = 5",
            f"{kind}: confirmed, but never done",
        )
        for kind in KINDS
    },
    **{
        f"{kind} is done twice": (
            f"""INSERT INTO chaos.effects (kind, key, number, before, worker)
            SELECT kind, key, number, before, worker FROM chaos.effects WHERE kind = '{kind}' AND number = 1""",
            f"{kind}: done more than once",
        )
        for kind in (TX.name,)
    },
}


@pytest.mark.parametrize("what", PLANTED)
def test_it_is_found_that(what: str, database: TestDatabase) -> None:
    plant, *checks = PLANTED[what]
    with account(database) as found:
        found.connection.execute(plant)  # pyright: ignore[reportCallIssue, reportArgumentType]
        assert found.failed() == set(checks)


_UNDOCUMENTED = "answers that are not documented"


@pytest.mark.parametrize(
    ("sent", "check"),
    [
        (_post("x", RESUME, "200"), "POST: acknowledged without an audit record"),
        (Sent("x", "GET", "/auth/v1/me", 10, 10.5, "500"), _UNDOCUMENTED),
        (Sent("x", "GET", "/auth/v1/me", 10, 10.5, "503"), _UNDOCUMENTED),  # nothing was done then
        (Sent("x", "GET", "/auth/v1/me", 31, 31.5, "503 without Retry-After"), _UNDOCUMENTED),
        (Sent("x", "GET", "/auth/v1/me", 19, 20.1, "502"), _UNDOCUMENTED),  # nginx repeats it
        (_post("x", outcome="502", begun=21, ended=21.1), _UNDOCUMENTED),  # after the kill
        (Sent("x", "GET", "/auth/v1/me", 43, 43.1, "ConnectError('')"), _UNDOCUMENTED),  # nginx is back
    ],
)
def test_an_answer_is_found_that_must_not_be(sent: Sent, check: str, database: TestDatabase) -> None:
    with account(database) as found:
        found.sent.append(sent)
        assert found.failed() == {check}
