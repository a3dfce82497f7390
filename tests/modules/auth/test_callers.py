"""Remembered callers: whatever changes them reaches every process, and nothing else is asked of the database.

The oracle is the statement that reads a caller: what a process answers from memory must become what it returns.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from app.kernel.actions.compose import make
from app.kernel.cache import TRUSTED_S, Invalidations
from app.kernel.callers import Origin
from app.kernel.config import load
from app.kernel.db import Database, Queries, listener
from app.kernel.errors import Unauthenticated
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.modules.auth.authentication import Authentication
from app.modules.auth.domain.api_keys import new_secret, parsed
from app.modules.auth.domain.sessions import AuthenticatedCaller, Claims, LoadedCaller, Session
from app.modules.auth.postgres.api_keys import ApiKeys
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.tokens import Tokens
from app.processes import new_process, sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT
from tests.support.proxy import proxy_to

USER, ROBOT, OTHER, ROLE, OTHER_ROLE, SESSION, CLIENT, KEY = ids = [uuid7() for _ in range(8)]
SECRET = new_secret(KEY)
CONTENT = """
    DELETE FROM auth.actors; DELETE FROM auth.roles;
    INSERT INTO auth.actors (id, type, username, username_key, last_active_at)
    VALUES (%(user)s, 'user', 'ann', 'ann', now()), (%(robot)s, 'service_acc', 'robot', 'robot', now()),
           (%(other)s, 'user', 'bob', 'bob', now());
    INSERT INTO auth.roles (id, name) VALUES (%(role)s, 'one'), (%(other_role)s, 'two');
    INSERT INTO auth.role_permissions (role_id, permission) VALUES (%(role)s, 'a:b:c'), (%(other_role)s, 'x:y:z');
    INSERT INTO auth.actor_roles (actor_id, role_id)
    VALUES (%(user)s, %(role)s), (%(robot)s, %(role)s), (%(other)s, %(other_role)s);
    INSERT INTO auth.actor_permissions (actor_id, permission)
    VALUES (%(user)s, 'd:e:f'), (%(robot)s, 'd:e:f'), (%(other)s, 'p:q:r');
    INSERT INTO auth.api_keys (id, actor_id, name, secret_hash, permissions, expires_at, last_used_at)
    VALUES (%(key)s, %(robot)s, 'k', %(hash)s, '{a:b:c,d:e:f,x:y:z}', now() + interval '1 day', now());
    INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at, scope, api_key_id)
    VALUES (%(session)s, %(user)s, now() + interval '1 hour', now() + interval '1 day', NULL, NULL),
           (%(client)s, %(robot)s, now() + interval '1 hour', now() + interval '1 day', '{a:b:c,x:y:z}', %(key)s)
"""
NAMES = ("user", "robot", "other", "role", "other_role", "session", "client", "key")
TABLES = ("sessions", "actors", "actor_permissions", "actor_roles", "role_permissions", "roles", "api_keys")
OTHER_VALUES = {
    "uuid": (OTHER, OTHER_ROLE, uuid7()),
    "text": ("x:y:z", "admin", None),
    "boolean": (True, False),
    "timestamp with time zone": ("now() - interval '1 second'", "now() + interval '2 days'", None),
    "ARRAY": (["x:y:z"], [], None),
    "bytea": (b"other",),
    "bigint": (7,),
}
ADDED = (
    ("actor_permissions", "(actor_id, permission)", (USER, "x:y:z")),
    ("actor_permissions", "(actor_id, permission)", (ROBOT, "x:y:z")),
    ("actor_roles", "(actor_id, role_id)", (USER, OTHER_ROLE)),
    ("actor_roles", "(actor_id, role_id)", (ROBOT, OTHER_ROLE)),
    ("role_permissions", "(role_id, permission)", (ROLE, "x:y:z")),
)
MOVED = (
    ("actor_permissions", "actor_id", (OTHER, USER)),
    ("actor_permissions", "actor_id", (USER, OTHER)),
    ("actor_roles", "actor_id", (OTHER, USER)),
    ("actor_roles", "actor_id", (USER, OTHER)),
    ("role_permissions", "role_id", (OTHER_ROLE, ROLE)),
    ("role_permissions", "role_id", (ROLE, OTHER_ROLE)),
)
UNNOTED = datetime(1, 1, 1, tzinfo=UTC)


@contextmanager
def by_hand(database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A session as of psql."""
    with psycopg.connect(database.conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET synchronous_commit = off")
        yield connection


def fill(hand: psycopg.Connection) -> None:
    """Replace what is there by two actors with what each of them may do."""
    hand.execute(CONTENT, {**dict(zip(NAMES, ids, strict=True)), "hash": SECRET.secret_hash})


def plain(caller: AuthenticatedCaller | None) -> Any:
    """Return what two processes must agree on: `last_active_at` may be a minute old."""
    if caller is None:
        return None
    return replace(caller.at(Origin()), actor=replace(caller.actor, last_active_at=UNNOTED))


@dataclass
class Server:
    """What a process answers to the session of a user, the session of an OAuth client, and an API key."""

    process: Process
    db: Database
    authentication: Authentication
    tokens: tuple[str, str, str]

    @classmethod
    async def of(cls, process: Process) -> "Server":
        now = datetime.now(UTC)
        sessions = [
            Session(id_, actor, 0, now, now + timedelta(1), now + timedelta(1))
            for id_, actor in ((SESSION, USER), (CLIENT, ROBOT))
        ]
        issued = [(await (await make(process, Tokens)).issue(session, now)).access_token for session in sessions]
        authentication = await make(process, Authentication)
        server = cls(process, await make(process, Database), authentication, (*issued, SECRET.key))
        await until(lambda: server.is_live)
        return server

    @property
    def is_live(self) -> bool:
        return self.process.made[Invalidations].is_live

    async def answer(self, token: str) -> Any:
        try:
            return plain(await self.authentication.authenticate(token, Origin("192.0.2.1")))
        except Unauthenticated:
            return None

    async def answers(self) -> list[Any]:
        return [await self.answer(token) for token in self.tokens]

    async def truth(self) -> list[Any]:
        """Return what the database says."""
        found = [
            await Sessions().caller(self.db, Claims(actor, id_)) for id_, actor in ((SESSION, USER), (CLIENT, ROBOT))
        ]
        key = parsed(SECRET.key)
        assert key is not None
        return [plain(each and each.caller) for each in (*found, await ApiKeys().caller(self.db, *key))]

    async def remembers(self) -> bool:
        """Return whether all three are soon answered from memory: the notification of a former change may come late."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            await self.answers()
            if len(self.authentication.callers) == 3:
                return True
        return False

    async def agrees(self) -> None:
        """Fail unless it soon answers what the database says. An entry that nothing invalidates would stay a minute."""
        deadline = time.monotonic() + 5
        while await self.answers() != await self.truth():
            assert time.monotonic() < deadline, (await self.answers(), await self.truth())


async def until(true: Callable[[], object], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)


@pytest.fixture
async def server(process: Process, database: TestDatabase) -> Server:
    await make(process, Database)
    with by_hand(database) as hand:
        fill(hand)
    return await Server.of(process)


def changes(database: TestDatabase) -> list[tuple[str, str, tuple[object, ...]]]:
    """Return statements that change each column of what is read to several values, and that remove and add rows."""
    columns = database.all(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'auth'"
        " AND table_name = ANY(%s) ORDER BY 1, 2",
        list(TABLES),
    )
    assert {table for table, _, _ in columns} == set(TABLES)
    found: list[tuple[str, str, tuple[object, ...]]] = []
    for table, column, kind in columns:
        for value in OTHER_VALUES[kind]:
            if isinstance(value, str) and "interval" in value:
                found.append((table, f"UPDATE auth.{table} SET {column} = {value}", ()))
            else:
                found.append((table, f"UPDATE auth.{table} SET {column} = %s", (value,)))
    for table in TABLES:
        found += [(table, f"DELETE FROM auth.{table}", ()), (table, f"TRUNCATE auth.{table} CASCADE", ())]
    for table, column, values in MOVED:  # to the second from the first
        found.append((table, f"UPDATE auth.{table} SET {column} = %s WHERE {column} = %s", values[::-1]))
    for table, names, values in ADDED:
        found.append((table, f"INSERT INTO auth.{table} {names} VALUES (%s, %s)", values))
    return found


async def test_whatever_changes_what_a_caller_is_read_from_takes_effect_whoever_changes_it(
    server: Server, database: TestDatabase
) -> None:
    effective: set[str] = set()
    with by_hand(database) as hand:
        for table, statement, values in changes(database):
            assert await server.remembers(), statement
            before = await server.truth()
            with suppress(psycopg.IntegrityError):
                hand.execute(statement, values)
            if await server.truth() != before:
                effective.add(f"{table} {statement.split()[0]}")
                await server.agrees()
                fill(hand)
            await server.agrees()
    names = ("sessions", "actors", "actor_permissions", "actor_roles", "role_permissions", "api_keys")
    expected = {f"{name} {word}" for name in names for word in ("UPDATE", "DELETE", "TRUNCATE")}
    added = {f"{table} INSERT" for table, _, _ in ADDED}
    assert effective == expected | added | {"roles DELETE", "roles TRUNCATE"}  # each kind of change was tried


async def test_no_statement_runs_for_a_remembered_caller(server: Server) -> None:
    assert await server.remembers()
    await server.process.made[Database]._pool.close()  # a statement would be refused
    assert None not in await server.answers()
    # what is remembered has the origin of the request
    token = server.tokens[0]
    caller = await server.authentication.authenticate(token, Origin("192.0.2.7", "agent", "id"))
    assert (caller.origin.address, caller.origin.request_id) == ("192.0.2.7", "id")


async def test_activity_is_stored_once_a_minute_and_a_caller_is_read_again_by_then(
    server: Server, database: TestDatabase
) -> None:
    active = "SELECT count(*) FROM auth.actors WHERE last_active_at > now() - interval '10 seconds'"
    for ago, stored in (("59 seconds", 0), ("61 seconds", 2)):
        with by_hand(database) as hand:
            fill(hand)
            hand.execute("UPDATE auth.actors SET last_active_at = now() - %s::interval", [ago])
            hand.execute("UPDATE auth.api_keys SET last_used_at = now() - %s::interval", [ago])
        assert None not in await server.answers()
        assert database.all(active) == [(stored,)]
    database.run("UPDATE auth.actors SET last_active_at = NULL")
    database.run("UPDATE auth.actors SET updated_at = now()")
    await until(lambda: not len(server.authentication.callers))
    await server.answers()
    assert database.all(active) == [(2,)]
    now = time.monotonic()
    assert await server.remembers()
    untils = [until_ for until_, _, _ in server.authentication.callers._entries.values()]
    assert all(55 < until_ - now <= 60 for until_ in untils), untils


@dataclass(frozen=True)
class SlowSessions(Sessions):
    """Reads a caller, and returns it when it may."""

    has_read: asyncio.Event
    may_return: asyncio.Event

    async def caller(self, db: Queries, claims: Claims) -> LoadedCaller | None:
        found = await Sessions.caller(self, db, claims)
        self.has_read.set()
        await self.may_return.wait()
        return found


async def test_a_session_that_ends_while_it_is_read_is_not_remembered(server: Server, database: TestDatabase) -> None:
    has_read, may_return = asyncio.Event(), asyncio.Event()
    slow = replace(server.authentication, sessions=SlowSessions(has_read, may_return))
    reading = asyncio.create_task(slow.authenticate(server.tokens[0], Origin()))
    await has_read.wait()
    # the sessions that share its process are forgotten at the same time, which shows that the notification has arrived
    await server.answer(server.tokens[1])
    assert len(server.authentication.callers) == 1
    database.run("UPDATE auth.sessions SET ended_at = now()")
    await until(lambda: not len(server.authentication.callers))
    may_return.set()
    assert (await reading).session_id == SESSION  # the request began before the session ended
    assert await server.answer(server.tokens[0]) is None


async def test_while_the_listening_connection_is_lost_every_request_asks_the_database(
    server: Server, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await server.remembers()
    monkeypatch.setattr(listener, "_AGAIN_S", 2.0)  # between the loss and the next attempt
    database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    await until(lambda: not server.is_live)
    for ended, seen in (("now()", None), ("NULL", SESSION)):
        database.run(f"UPDATE auth.sessions SET ended_at = {ended}")
        found = await server.answer(server.tokens[0])
        assert (found and found.session_id) == seen
        assert not server.is_live
    await until(lambda: server.is_live)
    assert len(server.authentication.callers) == 0
    assert await server.remembers()


async def test_a_listening_connection_that_is_cut_silently_is_trusted_for_five_seconds(database: TestDatabase) -> None:
    where = database.server
    with proxy_to(where.host, where.port) as proxy:
        direct = {"postgres.direct_host": "127.0.0.1", "postgres.direct_port": proxy.port}
        settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env}, direct)
        async with new_process("run-test", settings).opened() as process:
            await make(process, Database)
            with by_hand(database) as hand:
                fill(hand)
            server = await Server.of(process)
            assert await server.remembers()
            proxy.forget()
            cut_at = time.monotonic()
            await asyncio.to_thread(database.run, "UPDATE auth.sessions SET ended_at = now()")
            while await server.answer(server.tokens[0]) is not None:
                await asyncio.sleep(0.01)
            assert time.monotonic() - cut_at < TRUSTED_S + 1
            assert await server.answer(server.tokens[2]) is not None  # an API key lives on, from the database
