"""What grows is bounded, and large tables answer from indexes: filters for something rare, retention, short ids."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints
from uuid import UUID

import psycopg
import pytest

from app.kernel.actions import Action, Caller, Signature, declared
from app.kernel.actions.commands import _whole_id
from app.kernel.actions.compose import make
from app.kernel.config import KeepSettings, load
from app.kernel.db import Database
from app.kernel.db.partitions import PostgresPartitions
from app.kernel.db.retention import Retention
from app.kernel.errors import NotFound
from app.kernel.fields import IdOf
from app.kernel.paging import Cursor, mark
from app.kernel.queue.dead_letters import DeadLetterAdmin, DeadLetterFilters
from app.modules import modules
from app.modules.auth.domain.sessions import AuthenticatedCaller
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import Sessions
from app.processes import new_process, sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT

ROWS = 100_000
BOUND = 2_000
DAY_S = 86400.0
RARE_ID = UUID("01000000-0000-7000-8000-00000000abcd")  # older than all others: a scan from the newest reads everything
RARE_TRACE = f"{10:032x}"
CURSORS = (None, mark(UUID(int=2**128 - 1)), mark(UUID("01000000-0000-7000-8000-00000000abce")))
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

LOAD = f"""
CREATE TEMP TABLE n AS
    SELECT n, at, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
        || '8' || substr(md5(n::text), 4, 15))::uuid AS id
    FROM generate_series(1, {ROWS}) n, LATERAL (SELECT date_trunc('day', now()) + n * interval '6 seconds') AS a (at);

INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, schedule, created_at, finished_at)
SELECT id, 'common', 'common', 'done', 1, 'common', at, at FROM n
UNION ALL SELECT '{RARE_ID}', 'rare', 'rare', 'cancelled', 1, NULL, now(), now();
INSERT INTO kernel.jobs (id, queue, task, state, max_attempts, timeout_s, rank, turn_key)
SELECT id, 'common', 'common', 'ready', 3, 60, n, NULL FROM n
UNION ALL SELECT '{RARE_ID}', 'rare', 'rare', 'waiting', 3, 60, 0, 'k'
UNION ALL SELECT gen_random_uuid(), 'rare', 'rare', 'scheduled', 3, 60, 0, NULL
UNION ALL SELECT gen_random_uuid(), 'rare', 'rare', 'leased', 3, 60, 0, NULL;
INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at, died_at)
SELECT id, 'common', 'common', 'r', 1, 1, 1, now(), now() FROM n
UNION ALL SELECT '{RARE_ID}', 'rare', 'rare', 'r', 1, 1, 1, now(), now() - interval '91 days';
INSERT INTO kernel.events (id, type, version, payload, published_at)
SELECT id, 'common', 1, '{{}}'::jsonb, at FROM n
UNION ALL SELECT '{RARE_ID}', 'rare', 1, '{{}}', date_trunc('day', now());
INSERT INTO kernel.audit (id, at, action, outcome, actor_id, target, address, trace_id)
SELECT id, now(), 'common', 'done', '{UUID(int=1)}'::uuid, 'common', 'common', 'common' FROM n
UNION ALL SELECT '{RARE_ID}', now() - interval '401 days', 'rare', 'rare', '{RARE_ID}', 'rare', 'rare', '{RARE_TRACE}';
INSERT INTO kernel.errors (id, fingerprint, kind, type, title, culprit, state, count, processes, first_seen_at,
    last_seen_at, first_release, last_release, samples)
SELECT id, n::text, 'job', 't', 't', 'c', 'open', 1, '{{}}'::text[], at, now(), '1', '1', '[]'::jsonb
FROM n
UNION ALL SELECT '{RARE_ID}', 'rare', 'outage', 't', 't', 'c', 'muted', 1, '{{}}', now(), now() - interval '91 days',
    '1', '1', '[]';
INSERT INTO auth.actors (id, type, username, username_key, is_active)
SELECT id, 'user', n::text, n::text, true FROM n
UNION ALL SELECT '{RARE_ID}', 'admin', 'rare', 'rare', false;
INSERT INTO auth.api_keys (id, actor_id, name, secret_hash, permissions, expires_at)
SELECT id, id, 'common', ''::bytea, '{{}}'::text[], now() + interval '1 day' FROM n
UNION ALL SELECT '{RARE_ID}', '{RARE_ID}', 'rare', '', '{{}}', now() + interval '1 day';
INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at)
SELECT id, '{RARE_ID}'::uuid, now() + interval '1 day', now() + interval '30 days' FROM n
UNION ALL SELECT '{RARE_ID}', '{RARE_ID}', now() - interval '8 days', now() + interval '1 day';
INSERT INTO auth.limits (key, hits, started_at)
SELECT n::text, 1, now() FROM n UNION ALL SELECT 'rare', 1, now() - interval '1 hour';
INSERT INTO kernel.event_inbox (event_id, subscriber, taken_at)
SELECT id, 's', now() FROM n UNION ALL SELECT '{RARE_ID}', 's', now() - interval '31 days';
"""
# the filters of lists, and what the rare row has; a list of something that people create is short
RARE: dict[str, dict[str, list[Any]]] = {
    "platform.list_jobs": {
        "queue": ["rare"],
        "task": ["rare"],
        "state": ["scheduled", "ready", "waiting", "leased", "done", "cancelled"],
        "recurring": [False],
        "created_from": [TODAY + timedelta(days=20)],
        "created_to": [TODAY],
        "min_attempts": [999],
        "error": ["rare"],
        "text": ["rare"],
        "trace_id": ["f" * 32],
    },
    "platform.list_dead_letters": {"queue": ["rare"], "task": ["rare"], "cause": ["rare"]},
    "platform.list_dead_letter_causes": {"queue": ["rare"], "task": ["rare"]},
    "platform.list_purges": {},
    "platform.list_backups": {"kind": [], "state": []},  # some runs a day are few
    "platform.list_canaries": {},
    "platform.list_events": {
        "type": ["rare"],
        "from_": [TODAY],
        "to": [TODAY + timedelta(seconds=1)],
        "trace": ["f" * 32],
    },
    "platform.list_audit": {
        "actor_id": [RARE_ID],
        "target": ["rare"],
        "action": ["rare"],
        "outcome": ["rare"],
        "address": ["rare"],
        "trace_id": [RARE_TRACE],
        "from_": [datetime.now(UTC) + timedelta(days=30)],
        "to": [datetime(2004, 12, 1, tzinfo=UTC)],  # the time in RARE_ID
    },
    "platform.list_errors": {
        "state": ["muted"],
        "kind": ["outage"],
        "q": [],  # groups are few: a part of a text and a release have no index
        "release": [],
        "seen_after": [datetime.now(UTC) + timedelta(hours=1)],
        "seen_before": [datetime.now(UTC) - timedelta(days=90)],
    },
    "auth.list_actors": {
        "type": ["admin"],
        "is_active": [False],
        "q": [],
    },  # a part of a name has no index: it reads all
    "auth.list_roles": {},
    "auth.list_api_keys": {"id": [RARE_ID]},
    "auth.list_actor_sessions": {"id": [RARE_ID]},
    "platform.list_timeline": {},
}

# pages that search the newest 10,000 rows of two tables, and those that group the newest 20,000
SEARCHES = {"min_attempts", "error", "text", "trace_id"}
SEARCH_BOUND = 20_100


@dataclass
class Recording:
    """A database that notes what is run on it."""

    db: Database
    seen: list[tuple[Any, Any]] = field(default_factory=list)

    async def one(self, sql: Any, parameters: Any = ()) -> Any:
        self.seen.append((sql, parameters))
        return await self.db.one(sql, parameters)

    async def all(self, sql: Any, parameters: Any = ()) -> Any:
        self.seen.append((sql, parameters))
        return await self.db.all(sql, parameters)

    async def run(self, sql: Any, parameters: Any = ()) -> Any:
        self.seen.append((sql, parameters))
        return await self.db.run(sql, parameters)


@pytest.fixture(scope="module")
def loaded(template: TestDatabase) -> Iterator[TestDatabase]:
    created = template.copy()
    with psycopg.connect(created.conninfo, autocommit=True) as session:
        session.execute("SET session_replication_role = replica")  # no triggers
        session.execute("SET timezone = 'UTC'; SET synchronous_commit = off")
        session.execute(LOAD)
        session.execute("VACUUM ANALYZE")  # as autovacuum does
    yield created
    created.drop()


@asynccontextmanager
async def process_on(database: TestDatabase) -> AsyncIterator[Any]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with new_process("run-test", settings).opened() as opened:
        yield opened


def rows_read(plan: dict[str, Any]) -> int:
    """Return how many rows the scans of a plan have read, those that no filter let pass too."""
    own = 0
    if "Scan" in plan["Node Type"] and plan["Node Type"] not in ("Subquery Scan", "CTE Scan", "Bitmap Heap Scan"):
        removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        own = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    if plan["Node Type"] == "Bitmap Heap Scan":
        own = plan["Actual Rows"] + plan.get("Rows Removed by Index Recheck", 0) + plan.get("Rows Removed by Filter", 0)
        return int(own)
    return int(own) + sum(rows_read(child) for child in plan.get("Plans", ()))


class _RolledBack(Exception): ...


async def read_by(db: Any, sql: Any, parameters: Any, before: Any = "SELECT") -> int:
    """Return how many rows a statement reads; what it changes is rolled back."""
    try:
        async with db.begin() as tx:
            await tx.run(before)
            ((found,),) = await tx.all("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + sql, parameters)
            raise _RolledBack
    except _RolledBack:
        return rows_read(found[0]["Plan"])


def lists() -> Iterator[tuple[type[Any], str, Action, Signature, type[Any]]]:
    """Yield the lists that page by id; those by name, such as of queues, are short."""
    for module in modules():
        for kind in module.feature_classes():
            for method, work, signature in declared(kind):
                hints = get_type_hints(getattr(kind, method))
                wanted = [hint for hint in hints.values() if isinstance(hint, type) and hasattr(hint, "limit")]
                is_by_id = wanted and get_type_hints(wanted[0], include_extras=True)["cursor"] == Cursor | None
                is_own = AuthenticatedCaller in signature.parameters
                if isinstance(work, Action) and "Page" in str(signature.returns) and is_by_id and not is_own:
                    yield kind, method, work, signature, wanted[0]


async def test_a_filter_for_something_rare_reads_few_rows_in_every_list(loaded: TestDatabase) -> None:
    found = list(lists())
    assert {action.id for _, _, action, *_ in found} == set(RARE), "say in RARE what is rare in each list"
    slow: list[str] = []
    async with process_on(loaded) as p:
        db = await make(p, Database)
        for kind, method, action, signature, wanted in found:
            filters = {item.name for item in fields(wanted)} - {"limit", "cursor"}
            assert filters == set(RARE[action.id]), f"say in RARE what is rare in {action.id}"
            feature = await make(p, kind)
            cases = [{name: value} for name, values in RARE[action.id].items() for value in values]
            required = [item for item in fields(wanted) if item.default is MISSING]
            for case in [*([] if required else [{}]), *cases]:
                is_search = action.id == "platform.list_dead_letter_causes" or SEARCHES & case.keys()
                bound = SEARCH_BOUND if is_search else BOUND
                for cursor in CURSORS:
                    recording = Recording(db)
                    given: dict[Any, Any] = {Database: recording, Caller: Caller()}
                    asked = wanted(**case, cursor=cursor)
                    await getattr(feature, method)(*(given.get(kind, asked) for kind in signature.parameters))
                    for sql, parameters in recording.seen:
                        if (read := await read_by(db, sql, parameters)) > bound:
                            slow.append(f"{action.id} {case} {cursor}: {read} rows")
        assert slow == []
        recording = Recording(db)
        await DeadLetterAdmin().page(recording, DeadLetterFilters(task="rare"), 20, None)
        assert (
            await read_by(db, *recording.seen[0], "DROP INDEX kernel.dead_letters_task, kernel.dead_letters_cause")
            > ROWS
        )


async def test_retention_reads_only_what_it_removes(loaded: TestDatabase) -> None:
    keep = KeepSettings(7 * DAY_S, 90 * DAY_S, 30 * DAY_S, 400 * DAY_S, 90 * DAY_S)
    removes: dict[str, list[int]] = {}
    async with process_on(loaded) as p:
        db = await make(p, Database)
        recording = Recording(db)
        recorded: list[tuple[Any, Any]] = []

        async def only_note(sql: Any, parameters: Any = ()) -> int:
            recorded.append((sql, parameters))
            return 0

        recording.run = only_note
        await Retention(keep, PostgresPartitions(lambda: loaded.conninfo)).prune(recording)
        await Sessions().prune(recording, 7 * DAY_S)
        await Limits().prune(recording)
        for sql, parameters in recorded:
            table = re.search(r"DELETE FROM ([a-z_.]+)", sql)[1]
            removes[table] = [await read_by(db, sql, parameters), (await db.run(sql, parameters))]
    assert {table: read for table, (read, _) in removes.items() if read > BOUND} == {}
    large = {
        "kernel.audit",
        "kernel.dead_letters",
        "kernel.errors",
        "kernel.event_inbox",
        "auth.sessions",
        "auth.limits",
    }
    assert {table for table, (_, removed) in removes.items() if removed == 1} == large


def declared_growth() -> dict[str, str]:
    """Return what the document says about the bound of each table."""
    text = (ROOT / "docs" / "operating.md").read_text().split("## What grows, and what bounds it")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {name: bound for names, _, bound in rows for name in re.findall(r"`([a-z_.]+)`", names)}


def undeclared(database: TestDatabase) -> set[str]:
    return {name for (name,) in database.all(TABLES)} ^ set(declared_growth())


TABLES = """
    SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_|^information_schema$|^public$'
"""


def test_every_table_has_a_declared_bound(loaded: TestDatabase) -> None:
    assert undeclared(loaded) == set(), "say in docs/operating.md what bounds each table"
    partitioned = "SELECT relnamespace::regnamespace || '.' || relname FROM pg_class WHERE relkind = 'p'"
    bounds = declared_growth()
    assert {name for name, bound in bounds.items() if bound.startswith("partitions by day")} == {
        name for (name,) in loaded.all(partitioned)
    }
    for name, bound in bounds.items():
        pruned = re.match(r"`(platform|auth)\.prune`", bound)
        assert pruned or bound.startswith(("partitions by day", "itself: ")), f"{name}: {bound}"
        source = ROOT / ("app/kernel/db" if pruned and pruned[1] == "platform" else "app/modules/auth/postgres")
        statements = " ".join(path.read_text() for path in source.glob("*.py"))
        assert not pruned or f"DELETE FROM {name} " in statements, f"nothing prunes {name}"
    loaded.run("CREATE TABLE kernel.new (n int)")
    assert undeclared(loaded) == {"kernel.new"}
    loaded.run("DROP TABLE kernel.new")


async def test_the_beginning_of_an_id_is_found_in_an_index_and_its_end_among_the_newest(loaded: TestDatabase) -> None:
    async with process_on(loaded) as p:
        db = await make(p, Database)
        recording = Recording(db)
        jobs = IdOf("job", ("kernel.finished_jobs",))
        for part in ("0100", "01000000", "01000000-00"):
            assert await _whole_id(recording, jobs, part) == RARE_ID
        assert sum([await read_by(db, sql, parameters) for sql, parameters in recording.seen]) <= 3 * 6
        assert await db.one("SELECT count(*) > 100000 FROM kernel.finished_jobs") == (True,)
        newest = await db.one("SELECT id FROM kernel.finished_jobs ORDER BY id DESC LIMIT 1")
        assert newest is not None
        recording.seen.clear()
        assert await _whole_id(recording, jobs, str(newest[0])[-12:]) == newest[0]
        assert max([await read_by(db, sql, parameters) for sql, parameters in recording.seen]) <= 100_001
        with pytest.raises(NotFound, match="none of the newest 100,000"):
            await _whole_id(recording, jobs, "0000abcd")
