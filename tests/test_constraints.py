"""Every unique constraint and foreign key: what a client gets who loses the race for it, or why nobody can."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.composition import constraints
from app.kernel.audit import Audit
from app.kernel.callers import Caller, Origin
from app.kernel.db import Queries
from app.kernel.errors import RateLimited, Refusal
from app.kernel.identifiers import uuid7
from app.kernel.process.registry import LiveProcess, Registry
from app.kernel.queue import JobExists, Task
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.queues import QueueAdmin
from app.kernel.queue.transport.postgres import PostgresEvents
from app.modules.auth.domain.actors import Actor, UsernameExists
from app.modules.auth.domain.limits import Limit, Tally, Try
from app.modules.auth.domain.oauth import InvalidClient
from app.modules.auth.domain.permissions import RoleNameExists
from app.modules.auth.domain.sessions import Session
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.api_keys import ApiKeys
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.roles import Roles
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import Sessions
from tests.kernel.queue.conftest import Bench, bench  # noqa: F401 - a fixture

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = (UUID(f"0190b3a0-0000-7000-8000-00000000000{n}") for n in (1, 2, 3))
MADE = "its id is a UUIDv7 that this code makes, never a client"
YOYO = "written by whoever holds the advisory lock of migrations"

UNIQUE = """
    SELECT n.nspname || '.' || i.relname FROM pg_index x
    JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace
    WHERE x.indisunique AND NOT i.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    UNION
    SELECT n.nspname || '.' || c.conname FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
    WHERE c.contype IN ('u', 'p', 'x', 'f') AND c.conparentid = 0
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""


def actor(actor_id: UUID, username: str) -> Actor:
    return Actor(actor_id, "user", username, False, True, None, NOW, NOW)


def task(unique_key: str, on_conflict: Any) -> Callable[[Queries], Awaitable[Any]]:
    return lambda tx: Queue(PostgresEvents()).enqueue(tx, Task("t"), unique_key=unique_key, on_conflict=on_conflict)


def process(db: Any) -> Awaitable[Any]:
    return Registry(db).report(LiveProcess(A, "p", "1", "h", 1, "ready", [], NOW, NOW))


async def new_session(tx: Any) -> None:
    session = Session(uuid7(), A, 0, NOW, NOW + timedelta(days=1), NOW + timedelta(days=1))
    await Sessions().start(tx, session, Origin(), scope=[], api_key_id=C)


Write = Callable[[Any], Awaitable[Any]]


@dataclass
class Race:
    """Two writes that want the same; what the second one raises, and what it returns otherwise."""

    first: Write
    second: Write
    raises: type[Exception] | None = None
    returns: Any = ...


actors, roles = Actors(), Roles()
factors = SecondFactors()
RACES: dict[str, list[Race]] = {
    "auth.actors_username_key_key": [
        Race(
            lambda tx: actors.add(tx, actor(uuid7(), "new"), "new", None),
            lambda tx: actors.add(tx, actor(uuid7(), "new"), "new", None),
            returns=None,
        ),
        Race(
            lambda tx: actors.save(tx, actor(A, "new"), "new"),
            lambda tx: actors.save(tx, actor(B, "new"), "new"),
            raises=UsernameExists,
        ),
        Race(
            lambda tx: actors.save(tx, actor(A, "new"), "new"),
            lambda tx: actors.add(tx, replace(actor(uuid7(), "new"), is_superuser=True), "new", "hash"),
            returns=None,
        ),
        Race(
            lambda tx: actors.add(tx, actor(uuid7(), "new"), "new", None),
            lambda tx: actors.save(tx, actor(B, "new"), "new"),
            raises=UsernameExists,
        ),
    ],
    "auth.roles_name_key": [
        Race(lambda tx: roles.add(tx, uuid7(), "new"), lambda tx: roles.add(tx, uuid7(), "new"), returns=None),
        Race(lambda tx: roles.rename(tx, A, "new"), lambda tx: roles.rename(tx, B, "new"), raises=RoleNameExists),
        Race(lambda tx: roles.rename(tx, A, "new"), lambda tx: roles.add(tx, uuid7(), "new"), returns=None),
        Race(lambda tx: roles.add(tx, uuid7(), "new"), lambda tx: roles.rename(tx, B, "new"), raises=RoleNameExists),
    ],
    "auth.role_permissions_pkey": [Race(*[lambda tx: roles.replace_permissions(tx, A, ["a:b:c"])] * 2)],
    "auth.actor_permissions_pkey": [Race(*[lambda tx: roles.replace_direct(tx, A, ["a:b:c"])] * 2)],
    "auth.actor_roles_pkey": [Race(*[lambda tx: roles.replace_of_actor(tx, A, [A])] * 2)],
    "auth.totp_pkey": [
        Race(*[lambda tx: factors.start(tx, A, b"secret")] * 2, returns=True),
        Race(
            lambda tx: tx.run("INSERT INTO auth.totp (actor_id, secret, confirmed_at) VALUES (%s, '', now())", (A,)),
            lambda tx: factors.start(tx, A, b"secret"),
            returns=False,
        ),
    ],
    "auth.limits_pkey": [
        Race(
            *[lambda tx: Limits().reserve(tx, [Limit("k", 2)])] * 2,
            returns=Try([Limit("k", 2)], {"k": Tally(0, 2, 900)}),
        ),
        Race(*[lambda tx: Limits().reserve(tx, [Limit("k", 1)])] * 2, raises=RateLimited),
    ],
    "auth.sessions_api_key_id_fkey": [
        Race(lambda tx: ApiKeys().remove(tx, A, C), new_session, raises=InvalidClient)
    ],
    "kernel.audit_refusals": [Race(*[lambda tx: Audit().refused(tx, Caller(), "a", "B")] * 2)],
    "kernel.jobs_unique_key": [
        Race(task("k", "keep"), task("k", "keep")),
        Race(task("k", "keep"), task("k", "replace")),
        Race(task("k", "keep"), task("k", "refuse"), raises=JobExists),
    ],
    "kernel.queues_pkey": [
        Race(lambda tx: QueueAdmin(["q"]).pause(tx, "q"), lambda tx: QueueAdmin(["q"]).resume(tx, "q")),
        Race(lambda tx: QueueAdmin(["q"]).pause(tx, "q"), lambda tx: QueueAdmin(["q"]).limit(tx, "q", 1)),
    ],
    "kernel.processes_pkey": [Race(process, process)],
}  # fmt: skip

CANNOT = {
    **dict.fromkeys(
        [
            "auth.actors_pkey", "auth.roles_pkey", "auth.api_keys_pkey", "auth.sessions_pkey", "auth.signing_keys_pkey",
            "kernel.audit_pkey", "kernel.errors_pkey", "kernel.jobs_id", "kernel.rollouts_pkey",
            "kernel.canaries_pkey", "kernel.backup_runs_pkey",
        ],
        MADE,
    ),
    **dict.fromkeys(
        [
            "public._migration_checksums_pkey", "public._migrations_pkey", "public._yoyo_log_pkey",
            "public._yoyo_version_pkey", "public.yoyo_lock_pkey",
        ],
        YOYO,
    ),
    "auth.sessions_browser_token": "the digest of a random token of this code, never of a client",
    "auth.recovery_codes_pkey": "random codes, written once, by whoever has locked the row of auth.totp",
    "auth.recovery_codes_actor_id_fkey": "the row of auth.totp is locked while they are written",
    "kernel.errors_fingerprint_key": "no client names one; processes upsert",
    "kernel.purged_dead_letters_pkey": "written together with the removal of the dead letter",
    "kernel.canaries_one_of_a_filter": "the second one gets CANARY_RUNNING: ON CONFLICT DO NOTHING (test_canaries.py)",
    "kernel.canary_letters_pkey": "written together with the removal of the dead letter",
    "kernel.canary_letters_canary_id_fkey": "written by whoever holds the lock of the canary",
    "kernel.dead_letters_pkey": "written together with the removal of the job, by the holder of its lease",
    "kernel.schedules_pkey": "no client names one; cron managers upsert",
    "kernel.subscriptions_pkey": "no client names one; consumers upsert",
    "kernel.counters_pkey": "a process upserts its own row only",
    "kernel.counted_pkey": "written by whoever holds the advisory lock of the series",
    "kernel.counted_process_id_fkey": "a row of kernel.counters is removed a day after its process",
    "kernel.backup_wal_pkey": "no client names one; whoever stores WAL upserts",
    "kernel.series_pkey": "written by whoever holds the advisory lock of the series",
    "kernel.watch_pkey": "one row, made by a migration",
    "kernel.event_outbox_pkey": "the database makes the number",
    "kernel.event_inbox_pkey": "no client names one; consumers insert what is not there",
    **dict.fromkeys(
        [
            "auth.actor_permissions_actor_id_fkey", "auth.actor_roles_actor_id_fkey", "auth.api_keys_actor_id_fkey",
            "auth.sessions_actor_id_fkey", "auth.totp_actor_id_fkey",
        ],
        "no code deletes actors",
    ),
    **dict.fromkeys(
        ["auth.actor_roles_role_id_fkey", "auth.role_permissions_role_id_fkey"],
        "whoever grants a role, or a permission to it, has locked the role",
    ),
}  # fmt: skip


def test_every_unique_constraint_and_foreign_key_is_raced_for_or_cannot_be(bench: Bench) -> None:  # noqa: F811
    here = {"auth", "kernel", "platform", "public"}  # those of other modules are tested beside them
    existing = {name for (name,) in bench.test.all(UNIQUE) if name.partition(".")[0] in here}
    assert existing == RACES.keys() | CANNOT.keys()
    assert not RACES.keys() & CANNOT.keys()


def test_every_constraint_in_a_manifest_exists_and_names_a_refusal(bench: Bench) -> None:  # noqa: F811
    existing = {name for (name,) in bench.test.all(UNIQUE)}
    assert constraints().keys() <= existing
    assert all(issubclass(load(), Refusal) for load in constraints().values())


async def waits(bench: Bench, second: "asyncio.Task[Any]") -> None:  # noqa: F811
    """Wait until the second transaction waits for the first one."""
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
    deadline = time.monotonic() + 10
    while not second.done() and not await asyncio.to_thread(bench.test.all, waiting):
        assert time.monotonic() < deadline, "the second one did not meet the first one"


@pytest.mark.parametrize("constraint", RACES)
async def test_whoever_loses_a_race_is_told_what_is_taken(bench: Bench, constraint: str) -> None:  # noqa: F811
    for race in RACES[constraint]:
        bench.test.run("TRUNCATE auth.actors, auth.roles, auth.limits, kernel.jobs, kernel.queues CASCADE")
        bench.test.run("INSERT INTO auth.roles (id, name) VALUES (%s, 'a'), (%s, 'b')", A, B)
        bench.test.run(
            "INSERT INTO auth.actors (id, type, username, username_key)"
            " VALUES (%s, 'user', 'a', 'a'), (%s, 'user', 'b', 'b')", A, B
        )  # fmt: skip
        bench.test.run("INSERT INTO auth.api_keys VALUES (%s, %s, 'key', '', '{}', now() + interval '1 day')", C, A)

        async def second(write: Write) -> Any:
            async with bench.db.begin() as tx:
                return await write(tx)

        async with bench.db.begin() as tx:
            await race.first(tx)
            task = asyncio.ensure_future(second(race.second))
            await waits(bench, task)
            assert not task.done(), "there was no race"
        if race.raises is not None:
            with pytest.raises(race.raises):
                await task
        else:
            returned = await task
            assert race.returns in (..., returned)
