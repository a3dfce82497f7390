"""Nobody changes whom or what holds more than they do, neither by giving nor by taking away."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
import pytest

from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project

A, R = "/auth/v1/actors", "/auth/v1/roles"
OF_ACTOR, OF_ROLE = f"{A}/{{id}}", f"{R}/{{id}}"
HELD = "platform:audit:read"
CHANGE = ["auth:actors:write", "auth:roles:write"]
CALLERS = {"less": CHANGE, "equal": [*CHANGE, HELD], "more": [*CHANGE, HELD, "platform:queues:read"]}
EVERYBODY, WHO_HOLDS_IT, SUPERUSERS = {*CALLERS, "root"}, {"equal", "more", "root"}, {"root"}


@dataclass
class Things:
    """What an operation is tried on, made anew for each try."""

    id: str
    role: str
    key_id: str
    session_id: str


@dataclass
class Case:
    """An operation on something that holds as much as `equal` does, and who may do it."""

    method: str
    path: str
    allowed: set[str]
    body: Callable[[Things], dict[str, Any]] | None = None
    holds: bool = True  # the actor or role that it is done to
    type: str = "user"
    title: str = field(default="")

    @property
    def operation(self) -> tuple[str, str]:
        return self.method, self.path


def give_role(things: Things) -> dict[str, Any]:
    return {"role_ids": [things.role]}


def giving(**body: Any) -> Callable[[Things], dict[str, Any]]:
    return lambda _: body


NEW = {"type": "user", "username": "new"}
CASES = [
    Case("POST", A, EVERYBODY, giving(**NEW)),
    Case("POST", A, EVERYBODY, giving(**NEW | {"type": "service_acc"})),
    Case("POST", A, SUPERUSERS, giving(**NEW | {"type": "admin"})),
    Case("POST", A, SUPERUSERS, giving(**NEW, is_superuser=True)),
    Case("PATCH", OF_ACTOR, WHO_HOLDS_IT, giving(username="renamed")),
    Case("PATCH", OF_ACTOR, WHO_HOLDS_IT, giving(is_active=False)),
    Case("PATCH", OF_ACTOR, WHO_HOLDS_IT, giving(type="user")),
    Case("PATCH", OF_ACTOR, EVERYBODY, giving(username="renamed", type="user"), holds=False),
    *(Case("PATCH", OF_ACTOR, SUPERUSERS, giving(type=kind), holds=holds)
      for kind in ("admin", "service_acc") for holds in (True, False)),
    Case("PATCH", OF_ACTOR, SUPERUSERS, giving(type="user"), holds=False, type="service_acc"),
    Case("PATCH", OF_ACTOR, SUPERUSERS, giving(is_superuser=True), holds=False),
    Case("POST", f"{OF_ACTOR}/disable", WHO_HOLDS_IT),
    Case("POST", f"{OF_ACTOR}/disable", EVERYBODY, holds=False),
    Case("POST", f"{OF_ACTOR}/enable", WHO_HOLDS_IT),
    Case("DELETE", f"{OF_ACTOR}/sessions", WHO_HOLDS_IT),
    Case("DELETE", f"{OF_ACTOR}/sessions/{{session_id}}", WHO_HOLDS_IT),
    Case("DELETE", f"{OF_ACTOR}/sessions/{{session_id}}", EVERYBODY, holds=False),
    Case("PUT", f"{OF_ACTOR}/roles", WHO_HOLDS_IT, give_role, holds=False),
    Case("PUT", f"{OF_ACTOR}/roles", WHO_HOLDS_IT, give_role),
    Case("PUT", f"{OF_ACTOR}/roles", WHO_HOLDS_IT, giving(role_ids=[])),
    Case("PUT", f"{OF_ACTOR}/roles", EVERYBODY, giving(role_ids=[]), holds=False),
    Case("PUT", f"{OF_ACTOR}/permissions", WHO_HOLDS_IT, giving(permissions=[HELD]), holds=False),
    Case("PUT", f"{OF_ACTOR}/permissions", WHO_HOLDS_IT, giving(permissions=[HELD])),
    Case("PUT", f"{OF_ACTOR}/permissions", WHO_HOLDS_IT, giving(permissions=[])),
    Case("PUT", f"{OF_ACTOR}/permissions", EVERYBODY, giving(permissions=CHANGE), holds=False),
    Case("PUT", f"{OF_ACTOR}/permissions", SUPERUSERS, giving(permissions=["platform:jobs:write"]), holds=False),
    Case("POST", f"{OF_ACTOR}/roles/preview", WHO_HOLDS_IT, give_role, holds=False),
    Case("POST", f"{OF_ACTOR}/roles/preview", WHO_HOLDS_IT, give_role),
    Case("POST", f"{OF_ACTOR}/roles/preview", WHO_HOLDS_IT, giving(role_ids=[])),
    Case("POST", f"{OF_ACTOR}/roles/preview", EVERYBODY, giving(role_ids=[]), holds=False),
    Case("POST", f"{OF_ACTOR}/permissions/preview", WHO_HOLDS_IT, giving(permissions=[HELD]), holds=False),
    Case("POST", f"{OF_ACTOR}/permissions/preview", WHO_HOLDS_IT, giving(permissions=[])),
    Case("POST", f"{OF_ACTOR}/permissions/preview", EVERYBODY, giving(permissions=CHANGE), holds=False),
    Case("POST", f"{OF_ACTOR}/keys", WHO_HOLDS_IT, giving(name="k", permissions=[]), type="service_acc"),
    Case("POST", f"{OF_ACTOR}/keys", EVERYBODY, giving(name="k", permissions=[]), holds=False, type="service_acc"),
    Case("POST", f"{OF_ACTOR}/keys", WHO_HOLDS_IT, giving(name="k", permissions=[HELD]), False, "service_acc"),
    Case("DELETE", f"{OF_ACTOR}/keys/{{key_id}}", WHO_HOLDS_IT, type="service_acc"),
    Case("DELETE", f"{OF_ACTOR}/keys/{{key_id}}", EVERYBODY, holds=False, type="service_acc"),
    Case("POST", R, EVERYBODY, giving(name="new")),
    Case("PATCH", OF_ROLE, WHO_HOLDS_IT, giving(name="renamed")),
    Case("PATCH", OF_ROLE, EVERYBODY, giving(name="renamed"), holds=False),
    Case("DELETE", OF_ROLE, WHO_HOLDS_IT),
    Case("DELETE", OF_ROLE, EVERYBODY, holds=False),
    Case("PUT", f"{OF_ROLE}/permissions", WHO_HOLDS_IT, giving(permissions=[HELD]), holds=False),
    Case("PUT", f"{OF_ROLE}/permissions", WHO_HOLDS_IT, giving(permissions=[HELD])),
    Case("PUT", f"{OF_ROLE}/permissions", WHO_HOLDS_IT, giving(permissions=[])),
    Case("PUT", f"{OF_ROLE}/permissions", EVERYBODY, giving(permissions=[CHANGE[0]]), holds=False),
    Case("POST", f"{OF_ROLE}/permissions/preview", WHO_HOLDS_IT, giving(permissions=[HELD]), holds=False),
    Case("POST", f"{OF_ROLE}/permissions/preview", WHO_HOLDS_IT, giving(permissions=[])),
    Case("POST", f"{OF_ROLE}/permissions/preview", EVERYBODY, giving(permissions=[CHANGE[0]]), holds=False),
    Case("POST", f"{OF_ROLE}/delete/preview", WHO_HOLDS_IT),
    Case("POST", f"{OF_ROLE}/delete/preview", EVERYBODY, holds=False),
    Case("POST", "/auth/v1/keys/rotate", SUPERUSERS),
]  # fmt: skip

STATE = """
    SELECT a.id::text, a.type, a.username, a.is_active, a.is_superuser, a.password_hash FROM auth.actors a
    UNION ALL SELECT id::text, name, NULL, NULL, NULL, NULL FROM auth.roles
    UNION ALL SELECT role_id::text, permission, NULL, NULL, NULL, NULL FROM auth.role_permissions
    UNION ALL SELECT actor_id::text, role_id::text, NULL, NULL, NULL, NULL FROM auth.actor_roles
    UNION ALL SELECT actor_id::text, permission, NULL, NULL, NULL, NULL FROM auth.actor_permissions
    UNION ALL SELECT id::text, name, NULL, NULL, NULL, NULL FROM auth.api_keys
    UNION ALL SELECT id::text, ended_at::text, NULL, NULL, NULL, NULL FROM auth.sessions
    ORDER BY 1, 2
"""


@pytest.fixture
def root(project: Project) -> httpx.Client:
    return log_in(project, project.start("run-auth-http"))


@pytest.fixture
def own(root: httpx.Client, database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A connection of the test to the database of the process."""
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        yield connection


def caller(project: Project, root: httpx.Client, name: str, permissions: list[str]) -> httpx.Client:
    account = root.post(A, json={"type": "service_acc", "username": f"caller-{name}"}).json()["id"]
    assert root.put(f"{A}/{account}/permissions", json={"permissions": permissions}).status_code == 200
    key = root.post(f"{A}/{account}/keys", json={"name": "k", "permissions": permissions}).json()["key"]
    client = project.client(str(root.base_url))
    client.headers["authorization"] = f"Bearer {key}"
    return client


def made(own: psycopg.Connection, case: Case, *, is_superuser: bool) -> Things:
    """Make what a case is about: an actor, a role that holds something, and one that the case is done to."""
    own.execute("DELETE FROM auth.roles")
    own.execute("DELETE FROM auth.actors WHERE username_key <> 'root' AND username_key NOT LIKE 'caller-%%'")
    of_role = case.path.startswith(R)
    things = Things(*(str(uuid.uuid4()) for _ in range(4)))
    own.execute(
        "INSERT INTO auth.actors (id, type, username, username_key, is_superuser)"
        " VALUES (%s, %s, 'target', 'target', %s)",
        (things.id, case.type, is_superuser),
    )
    for role, holds in ((things.role, True), *([(things.id, case.holds)] if of_role else [])):
        own.execute("INSERT INTO auth.roles (id, name) VALUES (%s, %s)", (role, role))
        if holds:
            own.execute("INSERT INTO auth.role_permissions VALUES (%s, %s)", (role, HELD))
    if case.holds and not of_role:
        own.execute("INSERT INTO auth.actor_roles VALUES (%s, %s)", (things.id, things.role))
    own.execute(
        "INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at) VALUES (%s, %s, 'infinity', 'infinity')",
        (things.session_id, things.id),
    )
    if case.type == "service_acc":
        own.execute(
            "INSERT INTO auth.api_keys (id, actor_id, name, secret_hash, permissions, expires_at)"
            " VALUES (%s, %s, 'k', '', '{}', 'infinity')",
            (things.key_id, things.id),
        )
    return things


def test_giving_and_taking_away_need_what_is_given_or_taken_away(
    project: Project, root: httpx.Client, own: psycopg.Connection
) -> None:
    paths = root.get("/openapi.json").json()["paths"]
    changing = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method, described in methods.items()
        if method != "get" and "Needs the permission" in described["description"]
    }
    assert changing == {case.operation for case in CASES}, "each operation that changes others needs its cases here"

    callers = {name: caller(project, root, name, permissions) for name, permissions in CALLERS.items()}
    callers["root"] = root
    of_superusers = [case for case in CASES if case.path.startswith(OF_ACTOR) and case.holds]
    wrong: list[str] = []
    for case, is_superuser in [*((case, False) for case in CASES), *((case, True) for case in of_superusers)]:
        for name, client in callers.items():
            things = made(own, case, is_superuser=is_superuser)
            before = own.execute(STATE).fetchall()
            path = case.path.format(id=things.id, key_id=things.key_id, session_id=things.session_id)
            answer = client.request(case.method, path, json=case.body(things) if case.body else None)
            is_allowed = name in (SUPERUSERS if is_superuser else case.allowed)
            said = f"{name}: {case.method} {case.path} {answer.request.content!r} {is_superuser=}: {answer.text}"
            if is_allowed and not answer.is_success:
                wrong.append(said)
            if not is_allowed and (answer.status_code != 403 or answer.json()["code"] != "PERMISSION_DENIED"):
                wrong.append(said)
            if not is_allowed and own.execute(STATE).fetchall() != before:
                wrong.append(f"it was refused, and done: {said}")
    assert wrong == []


def test_another_type_loses_the_ways_in_that_it_does_not_have(
    root: httpx.Client, project: Project, database: TestDatabase
) -> None:
    username, password = "ann", "quite a good password"

    def signed_in() -> httpx.Response:
        return root.post("/auth/v1/login", json={"username": username, "password": password})

    ann = root.post(A, json={"type": "user", "username": username, "password": password}).json()["id"]
    path = f"{A}/{ann}"
    token = signed_in().json()["session"]["access_token"]
    database.run("INSERT INTO auth.totp (actor_id, secret) VALUES (%s, '')", ann)
    assert root.patch(path, json={"type": "admin"}).json()["type"] == "admin"
    as_ann = {"authorization": f"Bearer {token}"}
    assert root.get("/auth/v1/me", headers=as_ann).json()["actor"]["type"] == "admin"

    assert root.patch(path, json={"type": "service_acc"}).json()["type"] == "service_acc"
    assert root.get("/auth/v1/me", headers=as_ann).status_code == 401
    assert signed_in().json()["code"] == "INVALID_CREDENTIALS"
    kept = "SELECT password_hash FROM auth.actors WHERE id = %s UNION ALL SELECT 'totp' FROM auth.totp"
    assert database.all(kept, ann) == [(None,)]
    assert root.patch(path, json={"password": password}).status_code == 422
    database.run("UPDATE auth.actors SET password_hash = (SELECT password_hash FROM auth.actors WHERE id <> %s"
                 " AND password_hash IS NOT NULL LIMIT 1) WHERE id = %s", ann, ann)  # fmt: skip
    answer = root.post("/auth/v1/login", json={"username": username, "password": SUPERUSER[1]})
    assert answer.json()["code"] == "INVALID_CREDENTIALS", "a service account signs in with a password"
    reset = project.app("auth", "reset-password", "--username", username, "--password-stdin", stdin=password)
    assert (reset.returncode, reset.stderr) == (65, "app: ann is a service account: it has API keys and no password\n")

    key = root.post(f"{path}/keys", json={"name": "k", "permissions": []}).json()["key"]
    form = {"grant_type": "client_credentials", "client_id": username, "client_secret": key}
    token = root.post("/oauth/token", data=form).json()["access_token"]
    for secret in (key, token):
        assert root.get("/auth/v1/me", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    changed = root.patch(path, json={"type": "user", "password": password})
    assert changed.status_code == 200, changed.text
    for secret in (key, token):
        assert root.get("/auth/v1/me", headers={"authorization": f"Bearer {secret}"}).status_code == 401
    assert root.get(f"{path}/keys").json()["items"] == []
    assert signed_in().status_code == 200


def test_the_last_superuser_who_can_sign_in_stays(root: httpx.Client) -> None:
    own = f"{A}/{root.get('/auth/v1/me').json()['actor']['id']}"
    robot = root.post(A, json={"type": "service_acc", "username": "robot", "is_superuser": True})
    assert robot.status_code == 201
    without_password = root.post(A, json={"type": "admin", "username": "ghost", "is_superuser": True})
    assert without_password.status_code == 201
    for change in ({"is_superuser": False}, {"is_active": False}):
        assert root.patch(own, json=change).json()["code"] == "LAST_SUPERUSER"
    assert root.post(f"{own}/disable").json()["code"] == "LAST_SUPERUSER"
    for kind in ("user", "service_acc"):
        assert root.patch(own, json={"type": kind}).json()["code"] == "PERMISSION_DENIED"
    assert root.patch(own, json={"type": "admin"}).status_code == 200
