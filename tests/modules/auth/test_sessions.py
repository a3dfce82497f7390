"""Refresh tokens, sessions, locks and keys, over HTTP and across processes."""

import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import jwt
import pytest

from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project, eventually

LOGIN, REFRESH, ME = "/auth/v1/login", "/auth/v1/refresh", "/auth/v1/me"
USERNAME, PASSWORD = SUPERUSER


def sign_in(client: httpx.Client) -> dict:
    answer = client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return answer.json()["session"]


def refresh(client: httpx.Client, session: dict) -> httpx.Response:
    return client.post(REFRESH, json={"refresh_token": session["refresh_token"]})


def me(client: httpx.Client, session: dict) -> int:
    return client.get(ME, headers={"authorization": f"Bearer {session['access_token']}"}).status_code


def age(database: TestDatabase, interval: str) -> None:
    """Let the time since the last rotation pass."""
    database.run("UPDATE auth.sessions SET rotated_at = rotated_at - %s::interval", interval)


def test_refresh_tokens_rotate_and_reuse_ends_the_session(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    first = sign_in(client)
    second = refresh(client, first).json()
    assert second["id"] == first["id"]
    assert second["refresh_token"] != first["refresh_token"]
    assert me(client, first) == me(client, second) == 200

    # the answer was lost: within the grace the same token gets the same successor
    again = refresh(client, first).json()
    assert again["refresh_token"] == second["refresh_token"]
    third = refresh(client, second).json()

    # a grandparent is reuse even within the grace; the session ends although the request fails
    reused = refresh(client, first)
    assert (reused.status_code, reused.json()["code"]) == (401, "REFRESH_TOKEN_REUSED")
    assert refresh(client, third).json()["code"] == "INVALID_REFRESH_TOKEN"
    assert me(client, third) == 401
    assert database.all("SELECT outcome FROM kernel.audit WHERE action = 'auth.refresh'") == [("REFRESH_TOKEN_REUSED",)]

    # a parent after the grace is reuse
    parent = sign_in(client)
    child = refresh(client, parent).json()
    age(database, "11 seconds")
    assert refresh(client, parent).json()["code"] == "REFRESH_TOKEN_REUSED"
    assert me(client, child) == 401


def test_idle_and_absolute_limits_end_a_session(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    for column in ("idle_expires_at", "expires_at"):
        session = sign_in(client)
        database.run(f"UPDATE auth.sessions SET {column} = now() WHERE id = %s", session["id"])
        assert refresh(client, session).json()["code"] == "REFRESH_TOKEN_EXPIRED"
        assert me(client, session) == 401
    session = sign_in(client)
    database.run(
        "UPDATE auth.sessions SET expires_at = now() + interval '1 hour', idle_expires_at = now() + interval '1 minute'"
    )
    idle, absolute = (
        "SELECT idle_expires_at FROM auth.sessions WHERE id = %s",
        "SELECT expires_at FROM auth.sessions WHERE id = %s",
    )
    assert refresh(client, session).status_code == 200
    assert database.all(idle, session["id"]) == database.all(absolute, session["id"])


def test_twenty_parallel_refreshes_in_two_processes_leave_one_live_leaf(
    project: Project, database: TestDatabase
) -> None:
    processes = [project.start("run-auth-http") for _ in range(2)]
    client = log_in(project, processes[0])
    urls = [process.ready() for process in processes]
    session = sign_in(client)

    def one(number: int) -> httpx.Response:
        return httpx.post(urls[number % 2] + REFRESH, json={"refresh_token": session["refresh_token"]}, timeout=20)

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(one, range(20)))
    assert Counter(answer.status_code for answer in answers) == {200: 20}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1
    assert database.all("SELECT refresh_counter FROM auth.sessions WHERE id = %s", session["id"]) == [(1,)]


def test_a_process_killed_while_it_rotates_leaves_at_most_one_live_leaf(
    project: Project, database: TestDatabase
) -> None:
    keeper = project.start("run-auth-http")
    client = log_in(project, keeper)
    for _ in range(3):
        victim = project.start("run-auth-http")
        url, session = victim.ready(), sign_in(client)
        with ThreadPoolExecutor(8) as threads:
            pending = [
                threads.submit(httpx.post, url + REFRESH, json={"refresh_token": session["refresh_token"]}, timeout=20)
                for _ in range(8)
            ]
            victim.signal(signal.SIGKILL)
            answered = [done.result().json() for done in pending if not done.exception()]
        leaves = {answer["refresh_token"] for answer in answered}
        assert len(leaves) <= 1
        successor = refresh(client, session)
        assert successor.status_code == 200, "the lost answer logged the user out"
        assert leaves <= {successor.json()["refresh_token"]}


def test_sessions_are_listed_and_ended_by_their_owner_only(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    other = sign_in(client)
    listed = client.get("/auth/v1/me/sessions").json()["items"]
    assert [s["is_current"] for s in listed] == [False, True]
    assert (listed[0]["id"], listed[0]["address"]) == (other["id"], "127.0.0.1")
    assert client.delete(f"/auth/v1/me/sessions/{other['id']}").status_code == 204
    assert me(client, other) == 401
    gone = client.delete(f"/auth/v1/me/sessions/{other['id']}")
    assert (gone.status_code, gone.json()["code"]) == (404, "SESSION_NOT_FOUND")
    database.run(
        "WITH a AS (INSERT INTO auth.actors (id, type, username, username_key)"
        " VALUES (gen_random_uuid(), 'user', 'eve', 'eve') RETURNING id)"
        " INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at)"
        " SELECT %s, id, now() + interval '1 day', now() + interval '1 day' FROM a",
        "0190b3a0-0000-7000-8000-000000000001",
    )
    assert client.delete("/auth/v1/me/sessions/0190b3a0-0000-7000-8000-000000000001").status_code == 404


def test_changing_the_password_ends_the_other_sessions(project: Project) -> None:
    client = log_in(project, project.start("run-auth-http"))
    other, path = sign_in(client), f"{ME}/password"
    for new, code in (
        ("short", "WEAK_PASSWORD"),
        ("password123", "WEAK_PASSWORD"),
        ("my-root-password", "WEAK_PASSWORD"),
    ):
        answer = client.put(path, json={"current_password": PASSWORD, "new_password": new})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert answer.json()["errors"][0]["field"] == "new_password"
    wrong = client.put(path, json={"current_password": "wrong", "new_password": "a much better one"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "INVALID_CREDENTIALS")
    assert client.put(path, json={"current_password": PASSWORD, "new_password": "a much better one"}).status_code == 204
    assert client.get(ME).status_code == 200
    assert me(client, other) == 401
    assert client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD}).status_code == 401
    assert client.post(LOGIN, json={"username": USERNAME, "password": "a much better one"}).status_code == 200


def test_ten_failures_lock_a_name_in_every_process_and_an_operator_unlocks_it(project: Project) -> None:
    processes = [project.start("run-auth-http") for _ in range(2)]
    client = log_in(project, processes[0])
    other = project.client(processes[1].ready())
    for number in range(10):
        attempt = (client, other)[number % 2].post(LOGIN, json={"username": USERNAME.upper(), "password": "wrong"})
        assert attempt.status_code == 401
    locked = other.post(LOGIN, json={"username": USERNAME, "password": PASSWORD})
    assert (locked.status_code, locked.json()["code"]) == (401, "INVALID_CREDENTIALS")
    assert client.get(ME).status_code == 200, "a lock must not end sessions"
    assert project.app("auth", "unlock", "--username", "nobody").returncode == 67
    assert project.app("auth", "unlock", "--username", USERNAME).stdout == f"{USERNAME} can sign in again\n"
    assert other.post(LOGIN, json={"username": USERNAME, "password": PASSWORD}).status_code == 200


def test_too_many_failures_are_refused_with_retry_after(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    client.post(LOGIN, json={"username": USERNAME, "password": "wrong"})
    database.run("UPDATE auth.limits SET hits = 30 WHERE key LIKE 'login:actor:%%'")
    limited = client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD})
    assert (limited.status_code, limited.json()["code"]) == (429, "RATE_LIMITED")
    assert 800 < int(limited.headers["retry-after"]) <= 900
    assert client.post(LOGIN, json={"username": "another", "password": "wrong"}).status_code == 401
    database.run("UPDATE auth.limits SET hits = 100 WHERE key = 'login:address:127.0.0.1'")
    assert client.post(LOGIN, json={"username": "another", "password": "wrong"}).status_code == 429
    database.run("UPDATE auth.limits SET started_at = now() - interval '16 minutes'")
    assert client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD}).status_code == 200


def test_resetting_a_password_ends_every_session_and_lifts_the_lock(project: Project) -> None:
    client = log_in(project, project.start("run-auth-http"))
    for _ in range(10):
        client.post(LOGIN, json={"username": USERNAME, "password": "wrong"})
    weak = project.app("auth", "reset-password", "--username", USERNAME, "--password-stdin", stdin="password1")
    assert weak.returncode == 65
    done = project.app("auth", "reset-password", "--username", USERNAME, "--password-stdin", stdin="a much better one")
    assert done.stdout == f"{USERNAME} has a new password; 1 sessions ended\n"
    assert client.get(ME).status_code == 401
    assert client.post(LOGIN, json={"username": USERNAME, "password": "a much better one"}).status_code == 200


def test_rotated_keys_are_followed_without_restart_and_old_tokens_stay_valid(project: Project) -> None:
    auth, platform = project.start("run-auth-http"), project.start("run-platform-http")
    client = log_in(project, auth)
    elsewhere = platform.ready() + "/platform/v1/processes"
    assert httpx.get(elsewhere, headers=client.headers).status_code == 200
    rotated = project.app("auth", "keys", "rotate", "--json")
    assert rotated.returncode == 0, rotated.stderr
    fresh = project.start("run-auth-http")
    session = sign_in(project.client(fresh.ready()))
    token = session["access_token"]
    assert jwt.get_unverified_header(token)["kid"] in rotated.stdout
    # the running process meets a key that it does not know yet
    eventually(lambda: httpx.get(elsewhere, headers={"authorization": f"Bearer {token}"}).status_code == 200, 5)
    assert client.get(ME).status_code == 200
    listed = project.app("auth", "keys", "list").stdout
    assert len(listed.splitlines()) == 3


def test_the_key_set_verifies_our_tokens_in_a_client_that_is_not_ours(project: Project) -> None:
    running = project.start("run-auth-http")
    client = log_in(project, running)
    token = sign_in(client)["access_token"]
    keys = jwt.PyJWKClient(f"{running.url()}/.well-known/jwks.json")
    claims = jwt.decode(
        token,
        keys.get_signing_key_from_jwt(token),
        algorithms=["ES256"],
        audience="app",
        issuer="http://127.0.0.1:8080",
    )
    assert claims["sub"] == client.get(ME).json()["actor"]["id"]
    published = client.get("/.well-known/jwks.json")
    assert published.headers["cache-control"] == "public, max-age=300"
    assert all("d" not in key for key in published.json()["keys"])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE kernel.audit SET outcome = 'x'",
        "UPDATE kernel.audit SET count = count + 1 WHERE window_at IS NULL",
        "UPDATE kernel.audit SET count = count - 1",
        "UPDATE kernel.audit SET count = count + 1, outcome = 'x' WHERE window_at IS NOT NULL",
        "UPDATE kernel.audit SET last_at = now()",
        "DELETE FROM kernel.audit",
        "TRUNCATE kernel.audit",
    ],
)
def test_the_audit_trail_is_append_only(project: Project, database: TestDatabase, statement: str) -> None:
    import psycopg

    database.run(
        "INSERT INTO kernel.audit (id, action, outcome, window_at)"
        " VALUES (gen_random_uuid(), 'a', 'done', NULL), (gen_random_uuid(), 'a', 'DENIED', now())"
    )
    database.run("UPDATE kernel.audit SET count = count + 1, last_at = now() WHERE window_at IS NOT NULL")
    with pytest.raises(psycopg.errors.RaiseException, match="append only"):
        database.run(statement)


def test_signing_in_starts_a_new_session_whatever_was_sent_along(project: Project) -> None:
    client = log_in(project, project.start("run-auth-http"))
    first, second = sign_in(client), sign_in(client)
    assert {first[name] for name in ("id", "access_token", "refresh_token")}.isdisjoint(second.values())
    for name in ("id", "session", "session_id", "sid", "refresh_token"):
        fixed = {"username": USERNAME, "password": PASSWORD, name: first["id"]}
        assert client.post(LOGIN, json=fixed).status_code == 422


def test_a_session_too_many_ends_the_least_used_one(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    database.run(
        "INSERT INTO auth.sessions (id, actor_id, rotated_at, idle_expires_at, expires_at)"
        " SELECT gen_random_uuid(), a.id, now() - n * interval '1 minute', now() + interval '1 day',"
        "        now() + interval '1 day'"
        " FROM auth.actors a, generate_series(1, 99) n"
    )
    ended = "SELECT id FROM auth.sessions WHERE ended_at IS NOT NULL"
    (oldest,) = database.all("SELECT id FROM auth.sessions ORDER BY rotated_at LIMIT 1")
    assert len(client.get("/auth/v1/me/sessions", params={"limit": 100}).json()["items"]) == 100
    assert database.all(ended) == []
    latest = sign_in(client)
    assert database.all(ended) == [oldest]
    assert me(client, latest) == client.get(ME).status_code == 200
    assert len(client.get("/auth/v1/me/sessions", params={"limit": 100}).json()["items"]) == 100
