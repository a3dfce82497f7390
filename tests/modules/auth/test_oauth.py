"""OAuth 2 endpoints, with a client that we did not write."""

import httpx
import pytest
from authlib.integrations.httpx_client import OAuth2Client

from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project, eventually

ACTORS, ME = "/auth/v1/actors", "/auth/v1/me"
TOKEN, INTROSPECT, REVOKE = "/oauth/token", "/oauth/introspect", "/oauth/revoke"


@pytest.fixture
def root(project: Project) -> httpx.Client:
    return log_in(project, project.start("run-auth-http"))


def account(root: httpx.Client, *permissions: str) -> tuple[str, str]:
    """Make a service account with a key; return client id and secret."""
    made = root.post(ACTORS, json={"type": "service_acc", "username": "robot"}).json()
    root.put(f"{ACTORS}/{made['id']}/permissions", json={"permissions": list(permissions)})
    key = root.post(f"{ACTORS}/{made['id']}/keys", json={"name": "k", "permissions": list(permissions)}).json()
    return made["id"], key["key"]


def me(root: httpx.Client, token: str) -> httpx.Response:
    return httpx.get(root.base_url.join(ME), headers={"authorization": f"Bearer {token}"})


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_a_standard_client_gets_uses_inspects_and_revokes_a_token(root: httpx.Client, method: str) -> None:
    client_id, secret = account(root, "auth:actors:read", "auth:roles:read")
    metadata = root.get("/.well-known/oauth-authorization-server").json()
    assert method in metadata["token_endpoint_auth_methods_supported"]
    assert metadata["token_endpoint"].endswith(TOKEN)
    base = str(root.base_url)
    with OAuth2Client(client_id, secret, token_endpoint_auth_method=method, scope="auth:actors:read") as client:
        token = client.fetch_token(base + TOKEN, grant_type="client_credentials")
        assert token["token_type"] == "Bearer"
        assert token["scope"] == "auth:actors:read"
        assert client.get(base + ACTORS).status_code == 200
        assert client.get(base + "/auth/v1/roles").status_code == 403
        assert me(root, token["access_token"]).json()["permissions"] == ["auth:actors:read"]
        known = client.introspect_token(base + INTROSPECT, token=token["access_token"]).json()
        assert known == {
            "active": True, "sub": client_id, "username": "robot", "scope": "auth:actors:read", "token_type": "Bearer"
        }  # fmt: skip
        assert client.revoke_token(base + REVOKE, token=token["access_token"]).status_code == 200
        assert me(root, token["access_token"]).status_code == 401
        assert client.introspect_token(base + INTROSPECT, token=token["access_token"]).json() == {"active": False}
        assert client.introspect_token(base + INTROSPECT, token="nonsense").json() == {"active": False}
        assert client.revoke_token(base + REVOKE, token="nonsense").status_code == 200


def test_a_refresh_token_is_rotated_as_at_the_own_endpoint(root: httpx.Client) -> None:
    username, password = SUPERUSER
    session = root.post("/auth/v1/login", json={"username": username, "password": password}).json()["session"]
    first = {"grant_type": "refresh_token", "refresh_token": session["refresh_token"]}
    rotated = root.post(TOKEN, data=first).json()
    assert me(root, rotated["access_token"]).status_code == 200
    again = root.post(TOKEN, data={"grant_type": "refresh_token", "refresh_token": rotated["refresh_token"]}).json()
    reused = root.post(TOKEN, data=first)
    assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
    assert me(root, again["access_token"]).status_code == 401
    other = root.post("/auth/v1/login", json={"username": username, "password": password}).json()["session"]
    assert root.post(REVOKE, data={"token": other["refresh_token"]}).status_code == 200
    assert me(root, other["access_token"]).status_code == 401


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({"scope": "a:b:c"}, 400, "invalid_request"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, 401, "invalid_client"),
        ({"grant_type": "client_credentials", "client_id": "robot", "client_secret": "wrong"}, 401, "invalid_client"),
        ({"grant_type": "client_credentials", "client_id": "other", "client_secret": "KEY"}, 401, "invalid_client"),
        (
            {"grant_type": "client_credentials", "client_id": "robot", "client_secret": "KEY", "scope": "a:b:c"},
            400,
            "invalid_scope",
        ),
        ({"grant_type": "client_credentials", "client_id": "robot", "client_secret": "KEY", "unknown": "1"}, 200, None),
        ({"grant_type": "refresh_token"}, 400, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "rt_x"}, 400, "invalid_grant"),
    ],
)
def test_refusals_are_those_of_the_standard(root: httpx.Client, form: dict, status: int, error: str | None) -> None:
    _, key = account(root, "auth:actors:read")
    answer = root.post(
        TOKEN, data={name: value.replace("KEY", key) for name, value in form.items()}, headers={"authorization": ""}
    )
    assert (answer.status_code, answer.json().get("error")) == (status, error)
    assert answer.headers["cache-control"] == "no-store"
    assert status != 401 or answer.headers["www-authenticate"].startswith("Basic")
    assert key not in answer.text


def test_tokens_of_a_client_end_with_its_key_and_only_clients_may_ask(
    root: httpx.Client, database: TestDatabase
) -> None:
    client_id, key = account(root, "auth:actors:read")
    credentials = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": key}
    token = root.post(TOKEN, data=credentials).json()["access_token"]
    assert me(root, token).status_code == 200
    anonymous = root.post(INTROSPECT, data={"token": token}, headers={"authorization": ""})
    assert (anonymous.status_code, anonymous.json()["error"]) == (401, "invalid_client")
    key_id = root.get(f"{ACTORS}/{client_id}/keys").json()["items"][0]["id"]
    assert root.delete(f"{ACTORS}/{client_id}/keys/{key_id}").status_code == 204
    assert me(root, token).json()["code"] == "SESSION_NOT_FOUND"
    assert root.post(TOKEN, data=credentials).json()["error"] == "invalid_client"
    assert root.post(TOKEN, json=credentials).status_code == 415
    twice = root.post(
        TOKEN, content="grant_type=a&grant_type=b", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert twice.status_code == 400
    trail = database.all(
        "SELECT action, outcome, count FROM kernel.audit WHERE action LIKE 'auth.oauth%%' ORDER BY action"
    )
    assert trail == [("auth.oauth_client", "invalid_client", 2), ("auth.oauth_token", "done", 1)]


def test_a_token_of_a_client_does_not_outlive_its_key(root: httpx.Client, database: TestDatabase) -> None:
    client_id, key = account(root, "auth:actors:read")
    database.run("UPDATE auth.api_keys SET expires_at = now() + interval '2 seconds'")
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": key}
    token = root.post(TOKEN, data=form).json()["access_token"]
    assert me(root, token).status_code == 200
    eventually(lambda: me(root, token).status_code == 401, 4)


def test_a_client_learns_of_its_own_tokens_only_without_the_permission(root: httpx.Client) -> None:
    client_id, key = account(root, "auth:actors:read", "auth:tokens:read")
    narrow = root.post(f"{ACTORS}/{client_id}/keys", json={"name": "n", "permissions": ["auth:actors:read"]}).json()[
        "key"
    ]
    other = root.post(ACTORS, json={"type": "service_acc", "username": "other"}).json()["id"]
    others_key = root.post(f"{ACTORS}/{other}/keys", json={"name": "k", "permissions": []}).json()["key"]
    of_root = root.headers["authorization"].removeprefix("Bearer ")

    def asked(secret: str, token: str) -> dict:
        form = {"token": token, "client_id": client_id, "client_secret": secret}
        answer = root.post(INTROSPECT, data=form, headers={"authorization": ""})
        assert answer.status_code == 200, answer.text
        return answer.json()

    for token in (of_root, others_key):
        assert asked(narrow, token) == {"active": False}
        assert asked(key, token)["active"] is True
    assert asked(key, of_root)["scope"] == "auth:superuser"
    for token in (key, narrow):
        assert asked(narrow, token)["sub"] == client_id
    root.put(f"{ACTORS}/{client_id}/permissions", json={"permissions": ["auth:actors:read"]})
    assert asked(key, of_root) == {"active": False}, "a permission that was taken away still counts"


def test_what_is_sent_to_be_revoked_is_revoked(root: httpx.Client, database: TestDatabase) -> None:
    client_id, key = account(root, "auth:actors:read")
    spare = root.post(f"{ACTORS}/{client_id}/keys", json={"name": "s", "permissions": []}).json()["key"]
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": key}
    token = root.post(TOKEN, data=form).json()["access_token"]
    anonymous = {"authorization": ""}
    wrong = {"token": key, "client_id": client_id, "client_secret": "wrong"}
    for form, name_and_secret in ((wrong, None), ({"token": key}, ("", key)), ({"token": key}, ("robot", "wrong"))):
        refused = root.post(REVOKE, data=form, headers={} if name_and_secret else anonymous, auth=name_and_secret)
        assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    for not_it in (key[:-1], key[:-8] + "00000000", spare[:40] + key[40:]):
        assert root.post(REVOKE, data={"token": not_it}, headers=anonymous).status_code == 200
    assert [me(root, secret).status_code for secret in (key, token, spare)] == [200, 200, 200]
    for _ in range(2):
        assert root.post(REVOKE, data={"token": key}, headers=anonymous).status_code == 200
        assert [me(root, secret).status_code for secret in (key, token, spare)] == [401, 401, 200]
    own = {"token": spare, "client_id": "robot", "client_secret": spare}
    assert root.post(REVOKE, data=own, headers=anonymous).status_code == 200
    assert me(root, spare).status_code == 401
    trail = database.all("SELECT target, details ? 'key' FROM kernel.audit WHERE action = 'auth.oauth_revoke'")
    assert trail == [(client_id, True)] * 2
