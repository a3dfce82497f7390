"""Auth over HTTP, as its clients see it."""

import httpx

from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project, eventually

LOGIN = "/auth/v1/login"


def test_every_failed_sign_in_looks_the_same(project: Project, database: TestDatabase) -> None:
    running = project.start("run-auth-http")
    client = log_in(project, running)
    username, password = SUPERUSER
    database.run(
        "INSERT INTO auth.actors (id, type, username, username_key) VALUES (gen_random_uuid(), 'user', 'No', 'no1')"
    )
    wrong = [(username, "wrong password"), ("nobody", password), ("<>", password), ("no1", password)]
    database.run(
        "INSERT INTO auth.actors (id, type, username, username_key, password_hash, is_active)"
        " SELECT gen_random_uuid(), 'user', 'off', 'off', password_hash, false FROM auth.actors WHERE username = 'root'"
    )
    wrong.append(("off", password))
    bodies = []
    for name, attempt in wrong:
        answer = client.post(LOGIN, json={"username": name, "password": attempt})
        assert answer.status_code == 401, name
        problem = answer.json()
        assert problem["code"] == "INVALID_CREDENTIALS"
        bodies.append({key: value for key, value in problem.items() if not key.endswith("_id")})
    assert all(body == bodies[0] for body in bodies)
    assert client.post(LOGIN, json={"username": username.upper(), "password": password}).status_code == 200
    assert password not in running.output.read_text()


def test_what_ends_or_changes_takes_effect_at_once_in_every_process(project: Project, database: TestDatabase) -> None:
    auth, platform = project.start("run-auth-http"), project.start("run-platform-http")
    client = log_in(project, auth)
    other = project.client(platform.ready())
    other.headers = client.headers
    processes = "/platform/v1/processes"
    assert sorted(p["name"] for p in other.get(processes).json()["items"]) == ["run-auth-http", "run-platform-http"]

    def soon(expected: str) -> bool:
        """Wait for a code, or `items`: a caller is remembered for a minute, unless the process is notified."""
        return eventually(lambda: expected in other.get(processes).json().get("code", "items"), every=0.001)

    database.run("UPDATE auth.actors SET is_superuser = false")
    assert soon("PERMISSION_DENIED")
    database.run("INSERT INTO auth.actor_permissions SELECT id, 'platform:processes:read' FROM auth.actors")
    assert soon("items")
    assert client.get("/auth/v1/me").json()["permissions"] == ["platform:processes:read"]

    database.run("UPDATE auth.actors SET is_active = false")
    assert soon("SESSION_NOT_FOUND")
    database.run("UPDATE auth.actors SET is_active = true")
    assert soon("items")

    assert client.post("/auth/v1/logout").status_code == 204
    assert client.post("/auth/v1/logout").status_code == 204
    assert client.get("/auth/v1/me").json()["code"] == "SESSION_NOT_FOUND"
    assert soon("SESSION_NOT_FOUND")
    for header in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer x"}):
        assert httpx.get(f"{auth.url()}/auth/v1/me", headers=header).json()["code"] == "INVALID_TOKEN"


def test_the_session_of_a_login_is_what_the_contract_says(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    username, password = SUPERUSER
    answer = client.post(LOGIN, json={"username": username, "password": password}).json()
    assert set(answer) == {"actor", "session"}
    assert set(answer["session"]) == {
        "id", "token_type", "access_token", "access_token_expires_at", "refresh_token", "refresh_token_expires_at"
    }  # fmt: skip
    assert set(answer["actor"]) == {
        "id", "type", "username", "is_superuser", "is_active", "last_active_at", "created_at", "updated_at"
    }  # fmt: skip
    assert answer["actor"]["created_at"].endswith("Z")
    stored = database.all("SELECT s::text FROM auth.sessions s") + database.all(
        "SELECT encode(private_key, 'escape') FROM auth.signing_keys"
    )
    assert all(answer["session"][name] not in str(stored) for name in ("access_token", "refresh_token"))
    assert "PRIVATE KEY" not in str(stored)


def test_a_wrong_master_secret_is_a_configuration_error(project: Project) -> None:
    running = project.start("run-auth-http")
    running.ready()
    running.stop()
    ended = project.app(
        "run-auth-http", "--port", "0", env={"AUTH_MASTER_SECRET": "another secret of enough characters"}
    )
    assert ended.returncode == 78
    assert ended.stderr.startswith("app: AUTH_MASTER_SECRET does not decrypt the signing keys")


def test_processes_that_start_at_once_share_one_first_signing_key(project: Project, database: TestDatabase) -> None:
    running = [project.start("run-auth-http") for _ in range(4)]
    client = log_in(project, running[0])
    assert database.all("SELECT count(*) FROM auth.signing_keys") == [(1,)]
    for process in running[1:]:
        assert httpx.get(f"{process.ready()}/auth/v1/me", headers=client.headers).status_code == 200


def test_a_refusal_does_not_repeat_what_was_secret(project: Project) -> None:
    client = log_in(project, project.start("run-auth-http"))
    long, password = "a secret " * 500, SUPERUSER[1]
    wrong = [
        (LOGIN, {"username": "root", "password": long}),
        (LOGIN, {"username": "root", "password": [password]}),
        (LOGIN, {"username": ["root"], "password": password}),
        (LOGIN, {"username": "root", "password": password, "otp": long}),
        ("/auth/v1/refresh", {"refresh_token": long}),
        ("/auth/v1/me/totp", {"current_password": {"password": password}}),
        ("/auth/v1/actors", {"type": "robot", "username": "new", "password": password}),
    ]
    for path, body in wrong:
        answer = client.post(path, json=body)
        assert answer.status_code == 422, (path, answer.text)
        assert password not in answer.text
        assert "a secret" not in answer.text
    assert client.get("/auth/v1/me", params={"token": password}).status_code == 200  # and the log has no query
