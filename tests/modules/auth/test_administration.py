"""Actors, roles and permissions over HTTP: what is allowed, what is not, and what survives a race."""

import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.kernel.db.postgres import database
from app.kernel.process import Process
from app.modules.auth.postgres.actors import Actors
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project

ACTORS, ROLES, ME = "/auth/v1/actors", "/auth/v1/roles", "/auth/v1/me"
PASSWORD = "quite a good password"


@pytest.fixture
def root(project: Project) -> httpx.Client:
    """A client signed in as the superuser, to a process of the auth API."""
    return log_in(project, project.start("run-auth-http"))


def actor(root: httpx.Client, username: str, *permissions: str, **more: object) -> dict:
    made = root.post(ACTORS, json={"type": "user", "username": username, "password": PASSWORD, **more})
    assert made.status_code == 201, made.text
    granted = root.put(f"{ACTORS}/{made.json()['id']}/permissions", json={"permissions": list(permissions)})
    assert granted.status_code == 200, granted.text
    return made.json()


def signed_in(project: Project, root: httpx.Client, username: str) -> httpx.Client:
    client = project.client(str(root.base_url))
    answer = client.post("/auth/v1/login", json={"username": username, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    client.headers["Authorization"] = f"Bearer {answer.json()['session']['access_token']}"
    return client


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_actors_are_created_listed_changed_and_stopped(project: Project, root: httpx.Client) -> None:
    made = [actor(root, f"user-{number}") for number in range(5)]
    assert {key: made[0][key] for key in ("type", "username", "is_active", "is_superuser")} == {
        "type": "user", "username": "user-0", "is_active": True, "is_superuser": False
    }  # fmt: skip
    assert code(root.post(ACTORS, json={"type": "user", "username": "USER-1"})) == (409, "USERNAME_EXISTS")
    assert code(root.post(ACTORS, json={"type": "user", "username": "a b"})) == (422, "INVALID_USERNAME")
    assert code(root.post(ACTORS, json={"type": "user", "username": "new", "password": "12345678"})) == (
        422,
        "WEAK_PASSWORD",
    )
    assert code(root.post(ACTORS, json={"type": "robot", "username": "new"})) == (422, "INVALID_INPUT")
    assert code(root.post(ACTORS, json={"type": "user", "username": "new", "id": made[0]["id"]})) == (
        422,
        "INVALID_INPUT",
    )
    assert code(root.get(f"{ACTORS}/{'0' * 8}-0000-7000-8000-{'0' * 12}")) == (404, "ACTOR_NOT_FOUND")

    first = root.get(ACTORS, params={"limit": 2, "type": "user"}).json()
    second = root.get(ACTORS, params={"limit": 4, "type": "user", "cursor": first["next_cursor"]}).json()
    assert [a["username"] for a in first["items"] + second["items"]] == [f"user-{n}" for n in (4, 3, 2, 1, 0)]
    assert second["next_cursor"] is None
    assert [a["username"] for a in root.get(ACTORS, params={"q": "SER-3"}).json()["items"]] == ["user-3"]
    composed, decomposed = (unicodedata.normalize(form, "Zoë-9") for form in ("NFC", "NFD"))
    actor(root, composed)
    for q in (composed, decomposed, "ZOË", decomposed.upper(), " zoë ", "\uff19", "\uff5a\uff4f"):
        assert [a["username"] for a in root.get(ACTORS, params={"q": q}).json()["items"]] == [composed], q
    for wrong in ({"limit": 101}, {"limit": 0}, {"cursor": "x"}, {"is_active": "maybe"}, {"sort": "id"}):
        assert root.get(ACTORS, params=wrong).status_code == 422, wrong

    path, client = f"{ACTORS}/{made[0]['id']}", signed_in(project, root, "user-0")
    assert root.patch(path, json={"username": "renamed"}).json()["username"] == "renamed"
    assert code(root.patch(path, json={"username": "user-1"})) == (409, "USERNAME_EXISTS")
    assert client.get(ME).json()["actor"]["username"] == "renamed"
    assert len(root.get(f"{path}/sessions").json()["items"]) == 1
    disabled = root.post(f"{path}/disable")
    assert disabled.json() == {"id": made[0]["id"], "sessions_ended": 1}
    assert code(root.post(f"{path}/disable")) == (409, "ACTOR_ALREADY_DISABLED")
    assert code(client.get(ME)) == (401, "SESSION_NOT_FOUND")
    assert [a["id"] for a in root.get(ACTORS, params={"is_active": "false"}).json()["items"]] == [made[0]["id"]]
    assert root.post(f"{path}/enable").json()["is_active"] is True
    assert code(client.get(ME)) == (401, "SESSION_NOT_FOUND"), "enabling must not revive ended sessions"
    again = signed_in(project, root, "renamed")
    assert root.patch(path, json={"password": "another good password"}).status_code == 200
    assert again.get(ME).status_code == 401
    assert root.delete(f"{path}/sessions").json() == {"deleted_count": 0}


async def test_a_part_of_a_username_is_searched_for_among_the_newest_and_the_cursor_goes_on(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.modules.auth.postgres.actors._SEARCHED", 3)
    db = await process.use(database)
    await db.run(
        "INSERT INTO auth.actors (id, type, username, username_key) SELECT ('0000000' || n ||"
        " '-0000-7000-8000-000000000000')::uuid, 'user', 'u' || n, 'u' || n FROM generate_series(1, 7) n"
    )
    pages, last = list[list[str]](), None
    while not pages or last is not None:
        found, last = await Actors().page(db, None, None, "U2", 5, last)
        pages.append([actor.username for actor in found])
    assert pages == [[], ["u2"], []]  # of 7 to 5, 4 to 2, and 1
    found, last = await Actors().page(db, None, None, "u", 2, None)
    assert ([actor.username for actor in found], last) == (["u7", "u6"], found[-1].id)


def test_roles_and_permissions_take_effect_on_the_next_request(project: Project, root: httpx.Client) -> None:
    ann = actor(root, "ann")
    client = signed_in(project, root, "ann")
    assert code(client.get(ACTORS)) == (403, "PERMISSION_DENIED")
    role = root.post(ROLES, json={"name": "support"}).json()
    assert code(root.post(ROLES, json={"name": "support"})) == (409, "ROLE_NAME_EXISTS")
    path, roles_of_ann = f"{ROLES}/{role['id']}", f"{ACTORS}/{ann['id']}/roles"
    assert root.put(f"{path}/permissions", json={"permissions": ["auth:actors:read"]}).status_code == 200
    assert root.put(roles_of_ann, json={"role_ids": [role["id"], role["id"]]}).json()["items"][0]["name"] == "support"
    assert client.get(ACTORS).status_code == 200
    root.put(f"{ACTORS}/{ann['id']}/permissions", json={"permissions": ["auth:roles:read"]})
    assert root.get(f"{ACTORS}/{ann['id']}/permissions").json() == {
        "from_roles": ["auth:actors:read"],
        "direct": ["auth:roles:read"],
        "effective": ["auth:actors:read", "auth:roles:read"],
        "held": [
            {"permission": "auth:actors:read", "is_direct": False, "roles": ["support"]},
            {"permission": "auth:roles:read", "is_direct": True, "roles": []},
        ],
    }
    assert client.get(ME).json()["permissions"] == ["auth:actors:read", "auth:roles:read"]
    for wrong in (["no:such:thing"], ["AUTH:ACTORS:READ"], ["auth:superuser"], ["x"]):
        assert code(root.put(f"{path}/permissions", json={"permissions": wrong})) == (422, "INVALID_PERMISSION")
    catalogue = [p["name"] for p in client.get("/auth/v1/permissions", params={"limit": 100}).json()["items"]]
    assert {"auth:actors:read", "platform:processes:read"} <= set(catalogue)
    assert root.patch(path, json={"name": "helpers"}).json()["name"] == "helpers"
    assert root.put(f"{path}/permissions", json={"permissions": []}).json() == {"permissions": []}
    assert code(client.get(ACTORS)) == (403, "PERMISSION_DENIED")
    assert root.delete(path).status_code == 204
    for answer in (root.get(path), root.delete(path), root.put(roles_of_ann, json={"role_ids": [role["id"]]})):
        assert code(answer) == (404, "ROLE_NOT_FOUND")
    assert root.get(roles_of_ann).json()["items"] == []


def test_nobody_grants_or_gains_what_they_do_not_hold(
    project: Project, root: httpx.Client, database: TestDatabase
) -> None:
    everything_but_audit = ["auth:actors:read", "auth:actors:write", "auth:roles:read", "auth:roles:write"]
    manager = actor(root, "manager", *everything_but_audit)
    strong = actor(root, "strong", "platform:audit:read")
    weak = actor(root, "weak")
    client = signed_in(project, root, "manager")
    root_id = root.get(ME).json()["actor"]["id"]
    own, denied = f"{ACTORS}/{manager['id']}", (403, "PERMISSION_DENIED")
    role = client.post(ROLES, json={"name": "mine"}).json()
    assert (
        client.put(f"{ROLES}/{role['id']}/permissions", json={"permissions": ["auth:actors:read"]}).status_code == 200
    )
    audit = root.post(ROLES, json={"name": "auditors"}).json()
    root.put(f"{ROLES}/{audit['id']}/permissions", json={"permissions": ["platform:audit:read"]})
    attempts = [
        client.put(f"{own}/permissions", json={"permissions": [*everything_but_audit, "platform:audit:read"]}),
        client.put(f"{ACTORS}/{weak['id']}/permissions", json={"permissions": ["platform:audit:read"]}),
        client.put(f"{ROLES}/{role['id']}/permissions", json={"permissions": ["platform:audit:read"]}),
        client.put(f"{own}/roles", json={"role_ids": [audit["id"]]}),
        client.put(f"{ACTORS}/{weak['id']}/roles", json={"role_ids": [audit["id"]]}),
        client.patch(own, json={"is_superuser": True}),
        client.patch(f"{ACTORS}/{weak['id']}", json={"is_superuser": True}),
        client.post(ACTORS, json={"type": "user", "username": "boss", "is_superuser": True}),
        client.patch(f"{ACTORS}/{root_id}", json={"password": "taken over by me"}),
        client.patch(f"{ACTORS}/{strong['id']}", json={"password": "taken over by me"}),
        client.post(f"{ACTORS}/{root_id}/disable"),
        client.delete(f"{ACTORS}/{root_id}/sessions"),
    ]
    assert [code(answer) for answer in attempts] == [denied] * len(attempts)
    assert root.get(f"{ACTORS}/{weak['id']}/permissions").json()["effective"] == []
    noted = database.all("SELECT sum(count) FROM kernel.audit WHERE outcome = 'PERMISSION_DENIED'")
    assert noted == [(len(attempts),)]
    assert (
        client.put(f"{ACTORS}/{weak['id']}/permissions", json={"permissions": ["auth:actors:read"]}).status_code == 200
    )
    assert client.get(ME).json()["permissions"] == everything_but_audit


def test_an_administrator_ends_the_sessions_of_an_actor(project: Project, root: httpx.Client) -> None:
    ann = actor(root, "ann")
    devices = [signed_in(project, root, "ann") for _ in range(3)]
    sessions = f"{ACTORS}/{ann['id']}/sessions"
    one, own = (client.get(ME).json()["session_id"] for client in (devices.pop(), root))
    assert root.delete(f"{sessions}/{one}").status_code == 204
    for gone in (one, own):
        assert code(root.delete(f"{sessions}/{gone}")) == (404, "SESSION_NOT_FOUND")
    assert root.delete(sessions).json() == {"deleted_count": 2}
    assert [code(device.get(ME)) for device in devices] == [(401, "SESSION_NOT_FOUND")] * 2
    assert root.get(ME).status_code == 200
    assert signed_in(project, root, "ann").get(ME).status_code == 200


def test_nobody_changes_their_own_password_without_knowing_it(root: httpx.Client) -> None:
    own = f"{ACTORS}/{root.get(ME).json()['actor']['id']}"
    assert code(root.patch(own, json={"password": "a much better one"})) == (403, "PERMISSION_DENIED")
    username, password = SUPERUSER
    assert root.post("/auth/v1/login", json={"username": username, "password": password}).status_code == 200


def test_the_last_superuser_stays(root: httpx.Client) -> None:
    path = f"{ACTORS}/{root.get(ME).json()['actor']['id']}"
    for answer in (
        root.patch(path, json={"is_superuser": False}),
        root.patch(path, json={"is_active": False}),
        root.post(f"{path}/disable"),
    ):
        assert code(answer) == (409, "LAST_SUPERUSER")
    assert code(root.patch(path, json={"type": "service_acc"})) == (403, "PERMISSION_DENIED")
    assert root.get(ME).json()["actor"]["is_superuser"] is True


def test_of_the_last_two_superusers_only_one_can_go(
    project: Project, root: httpx.Client, database: TestDatabase
) -> None:
    other = project.client(project.start("run-auth-http").ready())
    for round_ in range(5):
        second = actor(root, f"second-{round_}", is_superuser=True)
        ids = [root.get(ME).json()["actor"]["id"], second["id"]]
        other.headers["Authorization"] = signed_in(project, root, f"second-{round_}").headers["Authorization"]
        with ThreadPoolExecutor(2) as threads:
            answers = list(
                threads.map(
                    lambda pair: pair[0].patch(f"{ACTORS}/{pair[1]}", json={"is_superuser": False}),
                    [(root, ids[1]), (other, ids[0])],
                )
            )
        assert Counter(answer.status_code for answer in answers)[200] == 1, [answer.text for answer in answers]
        assert {answer.status_code for answer in answers} <= {200, 401, 403, 409}
        assert database.all("SELECT count(*) FROM auth.actors WHERE is_superuser AND is_active") == [(1,)]
        database.run("UPDATE auth.actors SET is_superuser = username = 'root'")
        username, password = SUPERUSER
        again = root.post("/auth/v1/login", json={"username": username, "password": password}).json()
        root.headers["Authorization"] = f"Bearer {again['session']['access_token']}"


def test_disabling_and_enabling_are_recorded_alike_whichever_way_they_are_done(
    project: Project, root: httpx.Client, database: TestDatabase
) -> None:
    ann = actor(root, "ann")
    path = f"{ACTORS}/{ann['id']}"
    signed_in(project, root, "ann")
    root.patch(path, json={"is_active": False})
    root.patch(path, json={"is_active": True})
    signed_in(project, root, "ann")
    root.post(f"{path}/disable")
    root.post(f"{path}/enable")
    root.post(f"{path}/enable")
    recorded = "SELECT action, details FROM kernel.audit WHERE target = %s AND outcome = 'done' ORDER BY id"
    ways = [entry for entry in database.all(recorded, ann["id"]) if entry[0].endswith("able_actor")]
    assert ways == [("auth.disable_actor", {"sessions_ended": 1}), ("auth.enable_actor", {})] * 2
    root.patch(path, json={"is_active": False, "username": "bob"})
    assert sorted(database.all(recorded, ann["id"])[-2:], key=lambda entry: entry[0]) == [  # both at one time
        ("auth.disable_actor", {"sessions_ended": 0}),
        ("auth.update_actor", {"changed": ["username", "is_active"], "sessions_ended": 0}),
    ]


def test_ending_a_session_of_ones_own_is_recorded(project: Project, root: httpx.Client, database: TestDatabase) -> None:
    actor(root, "ann")
    client = signed_in(project, root, "ann")
    session_id = client.get(ME).json()["session_id"]
    assert client.delete(f"{ME}/sessions/{session_id}").status_code == 204
    assert code(client.get(ME)) == (401, "SESSION_NOT_FOUND")
    recorded = database.all("SELECT action, details FROM kernel.audit WHERE target = %s", session_id)
    assert recorded == [("auth.end_my_session", {})]


def test_the_audit_trail_says_who_did_what_to_whom_and_from_where(project: Project, root: httpx.Client) -> None:
    bob = actor(root, "bob", "auth:actors:read")
    client = signed_in(project, root, "bob")
    root.post("/auth/v1/login", json={"username": "bob", "password": "not this one"})
    root.post(f"{ACTORS}/{bob['id']}/disable", headers={"x-request-id": "the-disabling", "user-agent": "test\t1"})
    platform = project.client(project.start("run-platform-http").ready())
    platform.headers = root.headers
    entries = platform.get("/platform/v1/audit", params={"limit": 50}).json()["items"]
    root_id = root.get(ME).json()["actor"]["id"]
    assert [(e["action"], e["outcome"]) for e in entries if e["target"] == bob["id"]] == [
        ("auth.disable_actor", "done"),
        ("auth.login", "done"),
        ("auth.set_actor_permissions", "done"),
        ("auth.create_actor", "done"),
    ]
    disabling = entries[0]
    assert (disabling["actor_id"], disabling["address"], disabling["request_id"]) == (
        root_id,
        "127.0.0.1",
        "the-disabling",
    )
    assert disabling["user_agent"] == "test?1"
    failed = platform.get("/platform/v1/audit", params={"action": "auth.login", "actor_id": bob["id"]}).json()["items"]
    assert [e["outcome"] for e in failed] == ["INVALID_CREDENTIALS", "done"]
    assert PASSWORD not in str(entries)
    assert client.get(ME).status_code == 401
