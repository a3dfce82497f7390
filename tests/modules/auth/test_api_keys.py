"""API keys of service accounts."""

from uuid import uuid4

import httpx
import pytest

from app.modules.auth.domain.api_keys import new_secret, parsed
from tests.conftest import TestDatabase, log_in
from tests.support.project import Project, eventually

ACTORS, ME = "/auth/v1/actors", "/auth/v1/me"


def test_a_mistyped_key_is_noticed_by_its_checksum() -> None:
    key_id = uuid4()
    made = new_secret(key_id)
    assert parsed(made.key) == (key_id, made.secret_hash)
    assert made.key not in repr(made)
    for position in (5, 40, 80, len(made.key) - 1):
        other = "0" if made.key[position] != "0" else "1"
        assert parsed(made.key[:position] + other + made.key[position + 1 :]) is None
    for wrong in ("", "app_", made.key[:-1], made.key + "0", made.key.upper()):
        assert parsed(wrong) is None


@pytest.fixture
def root(project: Project) -> httpx.Client:
    return log_in(project, project.start("run-auth-http"))


def account(root: httpx.Client, *permissions: str) -> str:
    made = root.post(ACTORS, json={"type": "service_acc", "username": "robot"}).json()
    root.put(f"{ACTORS}/{made['id']}/permissions", json={"permissions": list(permissions)})
    return made["id"]


def get(root: httpx.Client, path: str, key: str) -> httpx.Response:
    return httpx.get(root.base_url.join(path), headers={"authorization": f"Bearer {key}"})


def test_a_key_may_do_what_both_it_and_its_account_may(root: httpx.Client, database: TestDatabase) -> None:
    robot = account(root, "auth:actors:read", "auth:roles:read")
    wanted = {"name": "reports", "permissions": ["auth:actors:read", "platform:audit:read"], "expires_in_days": 1}
    made = root.post(f"{ACTORS}/{robot}/keys", json=wanted)
    assert made.status_code == 201, made.text
    key = made.json()["key"]
    me = get(root, ME, key).json()
    assert (me["actor"]["username"], me["session_id"]) == ("robot", None)
    assert me["permissions"] == ["auth:actors:read"]
    assert get(root, ACTORS, key).status_code == 200
    assert get(root, "/auth/v1/roles", key).status_code == 403
    root.put(f"{ACTORS}/{robot}/permissions", json={"permissions": []})
    assert get(root, ACTORS, key).status_code == 403
    (listed,) = root.get(f"{ACTORS}/{robot}/keys").json()["items"]
    assert listed["name"] == "reports"
    assert listed["last_used_at"] is not None
    secret = key.rpartition("_")[2]
    stored = database.all("SELECT k::text FROM auth.api_keys k") + database.all("SELECT a::text FROM kernel.audit a")
    assert secret not in str(stored) + str(listed)


def test_a_key_ends_with_its_account_its_time_or_its_revocation(root: httpx.Client, database: TestDatabase) -> None:
    robot = account(root)
    keys = [root.post(f"{ACTORS}/{robot}/keys", json={"name": f"k{n}", "permissions": []}).json() for n in range(2)]
    assert [get(root, ME, key["key"]).status_code for key in keys] == [200, 200]
    assert root.delete(f"{ACTORS}/{robot}/keys/{keys[0]['id']}").status_code == 204
    assert root.delete(f"{ACTORS}/{robot}/keys/{keys[0]['id']}").json()["code"] == "API_KEY_NOT_FOUND"
    assert [get(root, ME, key["key"]).status_code for key in keys] == [401, 200]
    root.post(f"{ACTORS}/{robot}/disable")
    assert get(root, ME, keys[1]["key"]).json()["code"] == "INVALID_TOKEN"
    root.post(f"{ACTORS}/{robot}/enable")
    assert get(root, ME, keys[1]["key"]).status_code == 200
    database.run("UPDATE auth.api_keys SET expires_at = now()")
    eventually(lambda: get(root, ME, keys[1]["key"]).status_code == 401)  # remembered for a minute, unless notified


def test_only_service_accounts_have_keys_and_nobody_gives_one_more_than_they_hold(
    root: httpx.Client, project: Project
) -> None:
    robot = account(root)
    own = root.get(ME).json()["actor"]["id"]
    wanted = {"name": "k", "permissions": []}
    assert root.post(f"{ACTORS}/{own}/keys", json=wanted).json()["code"] == "NO_SERVICE_ACCOUNT"
    assert (
        root.post(ACTORS, json={"type": "service_acc", "username": "r2", "password": "a good password"}).status_code
        == 422
    )
    unknown = root.post(f"{ACTORS}/{robot}/keys", json={"name": "k", "permissions": ["no:such:thing"]})
    assert unknown.json()["code"] == "INVALID_PERMISSION"
    root.put(f"{ACTORS}/{robot}/permissions", json={"permissions": ["auth:actors:write"]})
    key = root.post(f"{ACTORS}/{robot}/keys", json={"name": "k", "permissions": ["auth:actors:write"]}).json()["key"]
    mine = httpx.Client(base_url=root.base_url, headers={"authorization": f"Bearer {key}"})
    project.clients.append(mine)
    assert (
        mine.post(f"{ACTORS}/{robot}/keys", json={"name": "k2", "permissions": ["auth:actors:write"]}).status_code
        == 201
    )
    more = mine.post(f"{ACTORS}/{robot}/keys", json={"name": "k3", "permissions": ["platform:audit:read"]})
    assert (more.status_code, more.json()["code"]) == (403, "PERMISSION_DENIED")
    assert mine.post(f"{ACTORS}/{own}/disable").status_code == 403
