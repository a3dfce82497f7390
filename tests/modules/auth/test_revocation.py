"""Each action that ends or changes what a caller may do, in one process, as seen by another that remembers the caller.

The oracle is the statement that reads a caller, on a connection of its own.
"""

import asyncio
import base64
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, cast
from uuid import UUID

import httpx
import jwt
import psycopg
import pytest

from app.kernel.actions import Action, declared
from app.kernel.db import Queries
from app.kernel.identifiers import uuid7
from app.modules import modules
from app.modules.auth.domain.api_keys import parsed
from app.modules.auth.domain.second_factor import totp
from app.modules.auth.domain.sessions import MOST_SESSIONS, Claims
from app.modules.auth.postgres.api_keys import ApiKeys
from app.modules.auth.postgres.sessions import Sessions
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project

ME, ACTORS, ROLES = "/auth/v1/me", "/auth/v1/actors", "/auth/v1/roles"
PASSWORD, NEW_PASSWORD = SUPERUSER[1], "another good password"
SUBJECT = """
    WITH actor AS (
        INSERT INTO auth.actors (id, type, username, username_key, password_hash)
        SELECT %(actor)s, %(kind)s, %(name)s, %(name)s, CASE WHEN %(kind)s = 'user' THEN password_hash END
        FROM auth.actors WHERE username_key = 'root'
    ), role AS (INSERT INTO auth.roles (id, name) VALUES (%(role)s, %(name)s)),
    permission AS (INSERT INTO auth.role_permissions (role_id, permission) VALUES (%(role)s, %(read)s)),
    given AS (INSERT INTO auth.actor_roles (actor_id, role_id) VALUES (%(actor)s, %(role)s))
    INSERT INTO auth.actor_permissions (actor_id, permission) VALUES (%(actor)s, %(write)s)
"""
READ, WRITE, OTHER = "auth:actors:read", "auth:actors:write", "auth:roles:read"
UNRELATED = {
    "auth.create_actor": "nobody is signed in to it",
    "auth.create_superuser": "nobody is signed in to it",
    "auth.create_role": "nobody has it",
    "auth.create_api_key": "nobody has used it",
    "auth.rename_role": "names of roles are not shown to callers",
    "auth.start_totp": "it changes nothing until it is confirmed",
    "auth.oauth_token": "it starts a session",
    "auth.oauth_introspect": "it reads",
    "auth.find_superuser": "it reads",
    "auth.unlock": "locks concern new sessions",
    "auth.rotate_keys": "verified tokens stay valid",
    "auth.rewrap_keys": "verified tokens stay valid",
}


@dataclass
class World:
    """The superuser's client of one process, the address of another, and an actor with all kinds of permissions."""

    root: httpx.Client
    other: httpx.Client
    project: Project
    connection: psycopg.Connection
    name: str = ""
    actor: str = ""
    role: str = ""
    key: str = ""
    token: str = ""
    delays_ms: list[float] = field(default_factory=list)

    def sign_in(self, **more: str) -> dict[str, Any]:
        given = {"username": self.name, "password": PASSWORD, **more}
        answer = httpx.post(self.root.base_url.join("/auth/v1/login"), json=given)
        assert answer.status_code == 200, answer.text
        return answer.json()["session"]

    def ask(
        self, method: str, path: str, expected: tuple[int, ...] = (200, 201, 204), token: str = "", **given: Any
    ) -> Any:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = self.root.request(method, path, headers=headers, json=given or None)
        assert answer.status_code in expected, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def new(self, number: int, kind: str = "user") -> None:
        """Make an actor with the superuser's password, a permission and a role, which is signed in or has a key."""
        self.name, self.actor, self.role = f"subject-{number}", str(uuid7()), str(uuid7())
        names = {"name": self.name, "actor": self.actor, "role": self.role, "kind": kind}
        self.connection.execute(SUBJECT, {**names, "read": READ, "write": WRITE})
        if kind == "user":
            self.token = self.sign_in()["access_token"]
        else:
            key = self.ask("POST", f"{ACTORS}/{self.actor}/keys", name="k", permissions=[READ, WRITE, OTHER])
            self.key, self.token = key["id"], key["key"]

    def command(self, *arguments: str, stdin: str | None = None) -> None:
        done = self.project.app("auth", *arguments, *(["--password-stdin"] if stdin else []), stdin=stdin)
        assert done.returncode == 0, done.stderr

    def truth(self) -> tuple[Any, ...] | None:
        """Return what the database says about the token."""
        connection = self.connection

        class Direct:
            async def one(self, sql: str, parameters: Any) -> Any:
                return connection.execute(cast("Any", sql), parameters).fetchone()

        db = cast("Queries", Direct())
        if (key := parsed(self.token)) is not None:
            found = asyncio.run(ApiKeys().caller(db, *key))
        else:
            claims = jwt.decode(self.token, options={"verify_signature": False})
            found = asyncio.run(Sessions().caller(db, Claims(UUID(claims["sub"]), UUID(claims["sid"]))))
        if found is None:
            return None
        caller = found.caller
        return caller.actor.username, caller.actor.type, caller.actor.is_superuser, caller.held

    def seen(self) -> tuple[Any, ...] | None:
        """Return what the other process says about it."""
        answer = self.other.get(ME, headers={"authorization": f"Bearer {self.token}"})
        if answer.status_code == 401:
            return None
        found = answer.json()
        actor = found["actor"]
        return actor["username"], actor["type"], actor["is_superuser"], found["permissions"]

    def follows(self, action: str, change: Callable[[], object]) -> None:
        """Fail unless the change takes effect in the other process, on one of the next requests."""
        before = self.truth()
        assert self.seen() == self.seen() == before
        change()
        changed_at, expected = time.perf_counter(), self.truth()
        assert expected != before, f"{action} changed nothing"
        while self.seen() != expected:
            assert time.perf_counter() - changed_at < 3, (action, self.seen(), expected)
        self.delays_ms.append((time.perf_counter() - changed_at) * 1000)


Changes = list[tuple[str, Callable[[], object]]]


def of_user(w: World) -> Changes:
    """Changes that concern users, each for one of its own."""

    def session() -> str:
        return jwt.decode(w.token, options={"verify_signature": False})["sid"]

    def reuse_refresh_token() -> None:
        first = w.sign_in()
        w.token = first["access_token"]
        assert w.seen() == w.seen() == w.truth()
        token = first["refresh_token"]
        for _ in range(2):
            token = w.ask("POST", "/auth/v1/refresh", refresh_token=token)["refresh_token"]
        w.ask("POST", "/auth/v1/refresh", (401,), refresh_token=first["refresh_token"])

    def exceed_most_sessions() -> None:
        w.connection.execute(
            "INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at)"
            " SELECT gen_random_uuid(), %s, now() + interval '1 hour', now() + interval '1 hour'"
            " FROM generate_series(2, %s)",
            (w.actor, MOST_SESSIONS),
        )
        w.sign_in()

    def second_factor(path: str) -> None:
        """Turn it on or off in another session."""
        token, secret = w.sign_in()["access_token"], ""
        secret = w.ask("POST", f"{ME}/totp", token=token, current_password=PASSWORD)["secret"]

        def otp(offset: int) -> str:
            return totp(base64.b32decode(secret), int(time.time()) // 30 + offset)

        if path == "remove":  # after the confirmation has ended this session, which is another one now
            w.ask("POST", f"{ME}/totp/confirm", token=token, otp=otp(0))
            w.connection.execute("UPDATE auth.totp SET last_step = 0")  # as if time had passed
            w.token = w.sign_in(otp=otp(0))["access_token"]
            assert w.seen() == w.seen() == w.truth()
            w.ask("DELETE", f"{ME}/totp", token=token, current_password=PASSWORD, otp=otp(1))
        elif path == "reset":
            w.ask("POST", f"{ME}/totp/confirm", token=token, otp=otp(0))
            w.token = token
            assert w.seen() == w.seen() == w.truth()
            w.command("reset-second-factor", "--username", w.name)
        else:
            w.ask("POST", f"{ME}/totp/confirm", token=token, otp=otp(0))

    def actor(method: str, path: str, **given: object) -> Callable[[], object]:
        return lambda: w.ask(method, f"{ACTORS}/{w.actor}{path}", **given)

    def end_own() -> None:
        w.ask("DELETE", f"{ME}/sessions/{session()}", token=w.sign_in()["access_token"])

    def change_password() -> None:
        token = w.sign_in()["access_token"]
        w.ask("PUT", f"{ME}/password", token=token, current_password=PASSWORD, new_password=NEW_PASSWORD)

    return [
        ("auth.login", exceed_most_sessions),
        ("auth.logout", lambda: w.ask("POST", "/auth/v1/logout", token=w.token)),
        ("auth.oauth_revoke", lambda: w.root.post("/oauth/revoke", data={"token": w.token}).raise_for_status()),
        ("auth.refresh", reuse_refresh_token),
        ("auth.change_password", change_password),
        ("auth.confirm_totp", lambda: second_factor("confirm")),
        ("auth.remove_totp", lambda: second_factor("remove")),
        ("auth.reset_second_factor", lambda: second_factor("reset")),
        ("auth.reset_password", lambda: w.command("reset-password", "--username", w.name, stdin=NEW_PASSWORD)),
        ("auth.end_my_session", end_own),
        ("auth.end_actor_session", lambda: w.ask("DELETE", f"{ACTORS}/{w.actor}/sessions/{session()}")),
        ("auth.end_actor_sessions", actor("DELETE", "/sessions")),
        ("auth.disable_actor", actor("POST", "/disable")),
        ("auth.update_actor", actor("PATCH", "", type="admin")),
        ("auth.update_actor", actor("PATCH", "", is_active=False)),
        ("auth.update_actor", actor("PATCH", "", password=NEW_PASSWORD)),
    ]


def of_permissions(w: World) -> Changes:
    """Changes of what an actor may do, one after the other: each is followed by its opposite."""

    def actor(path: str, method: str = "PUT", **given: object) -> Callable[[], object]:
        return lambda: w.ask(method, f"{ACTORS}/{w.actor}{path}", **given)

    def role(*permissions: str) -> Callable[[], object]:
        return lambda: w.ask("PUT", f"{ROLES}/{w.role}/permissions", permissions=permissions)

    return [
        ("auth.set_actor_permissions", actor("/permissions", permissions=[])),
        ("auth.set_actor_permissions", actor("/permissions", permissions=[WRITE])),
        ("auth.set_actor_roles", actor("/roles", role_ids=[])),
        ("auth.set_actor_roles", lambda: w.ask("PUT", f"{ACTORS}/{w.actor}/roles", role_ids=[w.role])),
        ("auth.set_role_permissions", role(OTHER)),
        ("auth.set_role_permissions", role(OTHER, READ)),
        ("auth.delete_role", lambda: w.ask("DELETE", f"{ROLES}/{w.role}")),
        ("auth.update_actor", lambda: w.ask("PATCH", f"{ACTORS}/{w.actor}", username=f"{w.name}-renamed")),
    ]


def of_keys(w: World) -> Changes:
    """Changes of a service account and its key, one after the other."""
    actor = lambda: f"{ACTORS}/{w.actor}"  # noqa: E731
    return [
        ("auth.disable_actor", lambda: w.ask("POST", f"{actor()}/disable")),
        ("auth.enable_actor", lambda: w.ask("POST", f"{actor()}/enable")),
        ("auth.revoke_api_key", lambda: w.ask("DELETE", f"{actor()}/keys/{w.key}")),
    ]


def revoke_key(w: World) -> None:
    w.root.post("/oauth/revoke", data={"token": w.token}).raise_for_status()


def revoke_key_of_client(w: World) -> None:
    w.ask("DELETE", f"{ACTORS}/{w.actor}/keys/{w.key}")


@pytest.fixture
def world(project: Project, database: TestDatabase) -> Iterator[World]:
    root = log_in(project, project.start("run-auth-http"))
    other = project.client(project.start("run-auth-http").ready())
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        yield World(root, other, project, connection)


def test_every_action_that_concerns_a_caller_takes_effect_in_the_other_process(world: World) -> None:
    changes, tried, number = of_user(world), set[str](), 0
    for action, change in changes:
        number += 1
        world.new(number)
        world.follows(action, change)
        tried.add(action)
    for kind, changes in (
        ("user", of_permissions(world)),
        ("service_acc", of_permissions(world)),
        ("service_acc", of_keys(world)),
    ):
        number += 1
        world.new(number, kind)
        for action, change in changes:
            world.follows(action, change)
            tried.add(action)
    for change in (revoke_key, revoke_key_of_client):
        number += 1
        world.new(number, "service_acc")
        if change is revoke_key_of_client:
            form = {"grant_type": "client_credentials", "client_id": world.actor, "client_secret": world.token}
            world.token = world.root.post("/oauth/token", data=form).raise_for_status().json()["access_token"]
        world.follows("auth.oauth_revoke", lambda change=change: change(world))
    [auth] = [module for module in modules() if module.name == "auth"]
    declarations = [declaration for kind in auth.feature_classes() for _, declaration, _ in declared(kind)]
    acting = [each for each in declarations if isinstance(each, Action) and (each.changes or not each.method)]
    actions = {each.id for each in acting}
    assert tried | UNRELATED.keys() == actions
    assert not tried & UNRELATED.keys()
    lookups = dict(
        re.findall(
            r'cache_lookups_total\{cache="auth.callers",outcome="(\w+)"\} (\d+)', world.other.get("/metrics").text
        )
    )
    assert int(lookups["hit"]) >= len(world.delays_ms), "it was not answered from memory"
    print(f"\n{len(world.delays_ms)} changes; until the other process followed: {cuts(world.delays_ms)}")


def cuts(delays_ms: list[float]) -> str:
    found = quantiles(delays_ms, n=100)
    return f"p50 {found[49]:.1f} ms, p99 {found[98]:.1f} ms"
