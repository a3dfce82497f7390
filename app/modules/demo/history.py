"""What happened before somebody looked: real jobs and real actions, dated back over the last hour."""

import asyncio
import json
import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from app.kernel.db import Database
from app.kernel.errors import Refusal
from app.kernel.product import VERSION
from app.modules.demo.shop import Shop

Act = Callable[..., Awaitable[Any]]
"""Runs an action, named by its id, as the user of the demo, with the fields of its input."""
FORMER = "0.0.9"
_RANDOM = Random(1852)  # noqa: S311 - nothing is secret here
_ORDERS = 240
_OUTAGE_S, _DRAIN_S, _LOOK_S = 3600, 40, 0.2
_ROLES = {
    "operators": [f"platform:{what}:{right}" for what in ("jobs", "queues", "errors") for right in ("read", "write")],
    "support": ["platform:jobs:read", "platform:errors:read", "auth:actors:read"],
    "auditors": ["platform:audit:read", "auth:actors:read", "auth:roles:read"],
}
_CLIENT, _GUESS = "web-shop", "a wrong guess"
_CLIENT_READS = [f"platform:{what}:read" for what in ("jobs", "queues", "errors", "schedules")]
_PEOPLE = {"ada": ["operators", "auditors"], "grace": ["operators"], "linus": ["support"], "margaret": []}

_IDLE = "SELECT count(*) FROM kernel.jobs WHERE state IN ('ready', 'leased') AND queue NOT IN ('partners', 'pictures')"
# the n-th of all rows moves to the n-th part of the hour; ids stay, so their order does, too
_DATE_BACK = (
    """
    UPDATE kernel.finished_jobs j SET created_at = created_at - by.hour, finished_at = finished_at - by.hour
    FROM (
        SELECT id, interval '1 hour' * (1 - percent_rank() OVER (ORDER BY id)) AS hour FROM kernel.finished_jobs
    ) by WHERE j.id = by.id
    """,
    """
    UPDATE kernel.dead_letters d SET created_at = created_at - by.hour, died_at = died_at - by.hour
    FROM (
        SELECT id, interval '1 hour' * (1 - percent_rank() OVER (ORDER BY id)) AS hour FROM kernel.dead_letters
    ) by WHERE d.id = by.id
    """,
    """
    UPDATE kernel.events e SET published_at = published_at - by.hour
    FROM (SELECT id, interval '1 hour' * (1 - percent_rank() OVER (ORDER BY id)) AS hour FROM kernel.events) by
    WHERE e.id = by.id
    """,
    """
    UPDATE kernel.errors e SET first_seen_at = first_seen_at - interval '50 minutes' - random() * interval '1 day',
        hourly = (
            SELECT array_agg((e.count * random() ^ 3)::bigint ORDER BY hour) FROM generate_series(1, 23) hour
        ) || e.count, hourly_at = now()
    """,
)
_GATEWAY_IS_BACK = """
    UPDATE kernel.dead_letters SET payload = jsonb_set(payload, '{fails_until}', to_jsonb(now()))
    WHERE jsonb_typeof(payload -> 'fails_until') = 'string'
"""
_FORMER_RELEASE = """
    UPDATE kernel.errors SET first_release = %s WHERE type NOT LIKE '%%RetryAfter%%' AND type NOT LIKE '%%ValueError%%'
"""
_ROLLOUT = """
    INSERT INTO kernel.rollouts (id, at, name, version, settings, last_seen_at)
    SELECT overlay(kernel.uuid7()::text placing '01900000' from 1)::uuid, now() - interval '26 hours', name, %s,
        settings, at - interval '1 minute'
    FROM kernel.rollouts WHERE version <> %s
"""
_START_EARLIER = "UPDATE kernel.rollouts SET at = now() - interval '38 minutes' WHERE version = %s"
# a backup each night, of which one failed; a drill each week, the last one an hour ago
_BACKUPS = """
    INSERT INTO kernel.backup_runs (id, kind, state, engine, backup_id, started_at, finished_at, runner, size_bytes,
        stored_bytes, problem, details)
    SELECT overlay(kernel.uuid7()::text placing substr(ms, 1, 8) || '-' || substr(ms, 9) from 1)::uuid, kind,
        CASE WHEN is_bad THEN 'failed' ELSE 'succeeded' END, 'builtin',
        CASE WHEN NOT is_bad THEN to_char(at, 'YYYYMMDD"T021500Z-3f2a"') END, at, at + took, 'agent-1:77',
        CASE WHEN NOT is_bad THEN 5e9 - age * 1e6 END, CASE WHEN NOT is_bad THEN 12e8 - age * 3e5 END,
        CASE WHEN is_bad THEN 's3://backups/shop: the target does not answer' END, details
    FROM (
        SELECT *, lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS ms FROM (
        SELECT 'backup' AS kind, n * 24 AS age, now() - n * interval '24 hours' - interval '2 hours' AS at,
            interval '70 s' + random() * interval '20 s' AS took, n = 9 AS is_bad, '{}'::jsonb AS details
        FROM generate_series(0, 27) n
        UNION ALL
        SELECT 'drill', n * 168, now() - n * interval '168 hours' - interval '1 hour', interval '140 s', false,
            jsonb_build_object('rto_s', 138 - n * 3 + random() * 6, 'rpo_s', 20 + random() * 30, 'checks', '[
                {"name": "files", "state": "ok", "summary": "1,213 files as in the manifest", "problems": [],
                 "notes": [], "seconds": 6.1},
                {"name": "rows", "state": "ok", "summary": "48 tables, 8,123,456 rows", "problems": [], "notes": [],
                 "seconds": 11.4},
                {"name": "login", "state": "ok", "summary": "a new account signed in", "problems": [], "notes": [],
                 "seconds": 2.2}]'::jsonb)
        FROM generate_series(0, 11) n
        ) each
    ) made
"""
_POINT = """
    INSERT INTO kernel.series (resolution, at, measured_at, seconds, counts, gauges)
    VALUES (%s, date_trunc(%s, %s::timestamptz, 'UTC'), %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""


async def write(db: Database, act: Act, shop: Shop) -> None:
    """Write the history. It takes a minute, in which jobs run and fail."""
    await _accounts(act)
    back_at = datetime.now(UTC) + timedelta(seconds=_OUTAGE_S)
    for number in range(1, _ORDERS + 1):
        await shop.sell(db, number, fails_until=back_at if number % 3 == 0 else None)
    await _idle(db)
    await _operated(act)
    for statement in _DATE_BACK:
        await db.run(statement)
    await db.run(_GATEWAY_IS_BACK)
    await db.run(_FORMER_RELEASE, (FORMER,))
    await db.run(_ROLLOUT, (FORMER, FORMER))
    await db.run(_START_EARLIER, (VERSION,))
    await _series(db)
    await db.run(_BACKUPS)
    for number in range(_ORDERS + 1, _ORDERS + 60):  # what was resolved comes back
        await shop.sell(db, number)
    await _idle(db)


async def client_key(act: Act) -> str:
    """Return a new API key of the client that makes requests, in place of those that it had."""
    found = (await act("auth.list_actors", q=_CLIENT)).items
    robot = found[0] if found else await act("auth.create_actor", type="service_acc", username=_CLIENT)
    await act("auth.set_actor_permissions", id=robot.id, permissions=_CLIENT_READS)
    for key in (await act("auth.list_api_keys", id=robot.id)).items:
        await act("auth.revoke_api_key", id=robot.id, key_id=key.id)
    made = await act("auth.create_api_key", id=robot.id, name="requests", permissions=_CLIENT_READS)
    return made.key


async def _accounts(act: Act) -> None:
    roles: dict[str, str] = {}
    for name, permissions in _ROLES.items():
        roles[name] = (await act("auth.create_role", name=name)).id
        await act("auth.set_role_permissions", id=roles[name], permissions=permissions)
    for name, held in _PEOPLE.items():
        made = await act("auth.create_actor", type="user", username=name, password=secrets.token_urlsafe(12))
        await act("auth.set_actor_roles", id=made.id, role_ids=[roles[role] for role in held])
        if not held:
            await act("auth.disable_actor", id=made.id)
    for name in ("ada", "root", "admin"):
        with suppress(Refusal):
            await act("auth.login", username=name, password=_GUESS)


async def _operated(act: Act) -> None:
    """Do what operators do."""
    await act("platform.pause_queue", name="partners", seconds=7200, reason="the partner moves its servers")
    await act("platform.limit_queue", name="pictures", concurrency=2)
    await act("platform.pause_schedule", name="demo.monthly_statement", reason="until the books are closed")
    for error in (await act("platform.list_errors")).items:
        if "RetryAfter" in error.type:
            await act("platform.mute_error", id=error.id, seconds=86400)
        elif "ConnectionRefused" in error.type or "KeyError" in error.type:
            await act("platform.resolve_error", id=error.id)
    for letter in (await act("platform.list_dead_letters", task="demo.render_report")).items[:2]:
        await act("platform.retry_dead_letter", id=letter.id)


async def _idle(db: Database) -> None:
    """Wait until jobs have run, or for a while."""
    for _ in range(int(_DRAIN_S / _LOOK_S)):
        if not (await db.one(_IDLE) or (0,))[0]:
            return
        await asyncio.sleep(_LOOK_S)


async def _series(db: Database) -> None:
    """Write the time series of an hour by minute, and of a day by hour, with a spike of errors 20 minutes ago."""
    now = datetime.now(UTC)
    for resolution, step, buckets in (("minute", 60, 60), ("hour", 3600, 24)):
        for ago in range(buckets, 0, -1):
            at = now - timedelta(seconds=ago * step)
            is_spike = resolution == "minute" and ago in (19, 20, 21)
            load = 1 + 0.4 * math.sin(at.timestamp() / (7 * step)) + _RANDOM.random() / 4
            counts, gauges = _counted(load * step / 60, is_spike=is_spike)
            await db.run(_POINT, (resolution, resolution, at, at, step, json.dumps(counts), json.dumps(gauges)))


def _counted(load: float, *, is_spike: bool) -> tuple[dict[str, int], dict[str, float]]:
    requests = int(340 * load)
    failed, slow = (requests // 6, requests // 5) if is_spike else (0, requests // 150)
    fast = requests - slow
    counts = {
        "requests": requests,
        "requests_refused": requests // 40,
        "requests_failed": failed,
        "requests_le_0.005": fast * 6 // 10,
        "requests_le_0.01": fast - fast * 6 // 10,
        "requests_le_0.25": slow // 2,
        "requests_le_1": slow - slow // 2,
        "jobs_done": int(95 * load),
        "jobs_failed": int((40 if is_spike else 3) * load),
        "errors": int((60 if is_spike else 2) * load),
    }
    ready = int(180 if is_spike else 4 + 6 * _RANDOM.random())
    gauges = {"scheduled": 6, "ready": ready, "waiting": 3, "leased": 8, "dead": 40, "oldest_ready_s": ready / 8}
    return {name: count for name, count in counts.items() if count}, gauges
