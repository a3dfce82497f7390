"""The queue over HTTP, as its operators see it: on a process that works on another queue than the one they look at."""

import json
from collections.abc import Iterator
from typing import Any, get_origin

import httpx
import pytest

from app.kernel.actions import Action, declared
from app.kernel.http.routes import input_names
from app.kernel.paging import Page
from app.modules import modules
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import ROOT, Project, eventually

API = "/platform/v1"
NOBODY = "0190b3a0-0000-7000-8000-000000000001"
FAILED = """[{"attempt": 1, "at": "2026-11-22T10:00:00+00:00", "error": "RuntimeError: not today"}]"""


@pytest.fixture(scope="module")
def served(
    template: TestDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, TestDatabase]]:
    """A client signed in as the superuser, for all tests of this file."""
    database = template.copy()
    project = Project(ROOT, tmp_path_factory.mktemp("served"), {**database.env, "QUEUE_NAMES": "worked-on"})
    yield log_in(project, project.start("run-all-in-one")), database
    project.end()


@pytest.fixture
def client(served: tuple[httpx.Client, TestDatabase]) -> httpx.Client:
    return served[0]


@pytest.fixture
def database(served: tuple[httpx.Client, TestDatabase]) -> TestDatabase:
    for table in ("jobs", "finished_jobs", "dead_letters", "queues", "events", "subscriptions"):
        served[1].run(f"DELETE FROM kernel.{table}")
    return served[1]


def job(database: TestDatabase, state: str = "scheduled") -> str:
    [(made,)] = database.all(
        "INSERT INTO kernel.jobs"
        " (id, queue, task, payload, state, rank, attempt, max_attempts, timeout_s, errors, run_at)"
        """ VALUES (kernel.uuid7(), 'default', 'greet', '{"name": "you"}', %s, 0, 1, 3, 10, %s, now() + '1 hour')"""
        " RETURNING id",
        state,
        FAILED,
    )
    return str(made)


def dead_letter(database: TestDatabase, unique_key: str | None = None) -> str:
    [(made,)] = database.all(
        "INSERT INTO kernel.dead_letters"
        " (id, queue, task, payload, reason, attempt, max_attempts, timeout_s, unique_key, errors, created_at)"
        """ VALUES (kernel.uuid7(), 'default', 'greet', '{"name": "you"}', 'failed', 3, 3, 10, %s, %s, now())"""
        " RETURNING id",
        unique_key,
        FAILED,
    )
    return str(made)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_jobs(client: httpx.Client, database: TestDatabase) -> None:
    scheduled, leased = job(database), job(database, "leased")
    listed = client.get(f"{API}/jobs").json()
    assert listed["next_cursor"] is None
    assert listed["items"][1].keys() == {
        "id", "queue", "task", "state", "attempt", "max_attempts", "run_at", "schedule", "event_id", "created_at",
        "finished_at",
    }  # fmt: skip
    assert ids(client.get(f"{API}/jobs", params={"state": "leased", "queue": "default", "task": "greet"})) == [leased]
    first = client.get(f"{API}/jobs", params={"limit": 1}).json()
    assert ids(client.get(f"{API}/jobs", params={"limit": 1, "cursor": first["next_cursor"]})) == [scheduled]
    for wrong in ({"state": "sleeping"}, {"limit": 0}, {"limit": 101}, {"queue": ""}, {"cursor": "x"}, {"x": 1}):
        assert client.get(f"{API}/jobs", params=wrong).status_code == 422, wrong
    shown = client.get(f"{API}/jobs/{scheduled}").json()
    assert (shown["payload"], shown["lease"], shown["trace_id"]) == ({"name": "redacted"}, None, None)
    assert client.post(f"{API}/jobs/{scheduled}/reveal").json() == {**shown, "payload": {"name": "you"}}
    assert shown["errors"] == [{"attempt": 1, "at": "2026-11-22T10:00:00Z", "error": "RuntimeError: not today"}]

    assert client.post(f"{API}/jobs/{scheduled}/retry").json() == {
        "id": scheduled, "state": "ready", "cancel_requested_at": None
    }  # fmt: skip
    assert code(client.post(f"{API}/jobs/{leased}/retry")) == (409, "JOB_RUNNING")
    asked = client.post(f"{API}/jobs/{leased}/cancel").json()
    assert asked["state"] == "leased"
    assert asked["cancel_requested_at"].endswith("Z")
    assert client.post(f"{API}/jobs/{scheduled}/cancel").json()["state"] == "cancelled"
    assert code(client.post(f"{API}/jobs/{scheduled}/cancel")) == (409, "JOB_ENDED")
    assert code(client.post(f"{API}/jobs/{scheduled}/retry")) == (409, "JOB_ENDED")
    for path in (f"{API}/jobs/{NOBODY}/retry", f"{API}/jobs/{NOBODY}/cancel"):
        assert code(client.post(path)) == (404, "JOB_NOT_FOUND")
    assert code(client.get(f"{API}/jobs/{NOBODY}")) == (404, "JOB_NOT_FOUND")
    assert client.get(f"{API}/jobs/1").status_code == 422
    actor = client.get("/auth/v1/me").json()["actor"]["id"]
    noted = client.get(f"{API}/audit", params={"target": scheduled}).json()["items"]
    assert [(e["action"], e["actor_id"]) for e in noted] == [
        ("platform.cancel_job", actor),
        ("platform.retry_job", actor),
        ("platform.reveal_job", actor),
    ]
    again = f"{API}/jobs/{scheduled}/run-again"
    assert client.post(again, json={"payload": {"name": "me"}}).json().keys() == {"id", "origin_id", "is_edited"}
    assert client.post(again, json={}).json()["origin_id"] == scheduled
    for wrong_body in ({"payload": []}, {"payload": "{}"}, {"arguments": {}}, {"id": scheduled}):
        assert client.post(again, json=wrong_body).status_code == 422, wrong_body
    assert code(client.post(f"{API}/jobs/{leased}/run-again", json={})) == (409, "JOB_UNFINISHED")
    assert code(client.post(f"{API}/jobs/{NOBODY}/run-again", json={})) == (404, "JOB_NOT_FOUND")
    assert len(ids(client.get(f"{API}/jobs", params={"text": '"ME"', "state": "ready"}))) == 1


def test_queues(client: httpx.Client, database: TestDatabase) -> None:
    job(database)
    [default] = [q for q in client.get(f"{API}/queues").json()["items"] if q["name"] == "default"]
    assert default == {
        "name": "default", "paused_at": None, "paused_until": None, "pause_reason": None, "paused_by": None,
        "concurrency": None, "scheduled": 1, "ready": 0, "waiting": 0, "leased": 0, "dead": 0, "oldest_ready_s": None,
        "done_in_minute": 0, "done_in_hour": 0,
    }  # fmt: skip
    paused = client.post(f"{API}/queues/default/pause").json()
    assert paused.keys() == {"name", "paused_at", "paused_until", "pause_reason", "concurrency", "is_used"}
    assert paused["paused_at"]
    for body, status in (
        ({"seconds": 7200, "reason": "mail is down"}, 200), ({}, 200), ({"seconds": 0.5}, 422), ({"reason": ""}, 422),
        ({"seconds": 366 * 86400 + 1}, 422), ({"until": "2026-11-22T10:00:00Z"}, 422), ({"until": "2026-11-22"}, 422),
    ):  # fmt: skip
        assert client.post(f"{API}/queues/default/pause", json=body).status_code == status, body
    assert client.post(f"{API}/queues/default/pause", content=b"seconds=1").status_code == 415
    as_json = {"Content-Type": "application/json"}
    assert client.post(f"{API}/queues/default/pause", headers=as_json).status_code == 200
    assert client.put(f"{API}/queues/default/concurrency", headers=as_json).status_code == 400  # it needs a body
    assert client.post(f"{API}/queues/default/resume").json()["paused_at"] is None
    limited = client.put(f"{API}/queues/default/concurrency", json={"concurrency": 5})
    assert limited.json()["concurrency"] == 5
    assert client.put(f"{API}/queues/default/concurrency", json={"concurrency": None}).json()["concurrency"] is None
    wrong: list[Any] = [{"concurrency": 0}, {"concurrency": "5"}, {}, {"concurrency": 5, "name": "other"}]
    for body in wrong:
        assert client.put(f"{API}/queues/default/concurrency", json=body).status_code == 422, body
    missing = client.put(f"{API}/queues/defualt/concurrency", json={"concurrency": 5})
    assert (missing.status_code, missing.json()["code"]) == (404, "QUEUE_NOT_FOUND")
    assert missing.json()["detail"] == "there is no queue defualt; did you mean default?"
    names = ("two%20words", "a%0Ab", "%C3%A9", "", "%ED%A0%80", "%FF")
    for name, status in (*((name, 404) for name in names), ("a%00b", 400), ("x" * 129, 422)):
        assert client.post(f"{API}/queues/{name}/pause").status_code == status, name


def test_dead_letters(client: httpx.Client, database: TestDatabase) -> None:
    letters = [dead_letter(database, f"key {number}") for number in range(4)]
    listed = client.get(f"{API}/dead-letters", params={"queue": "default", "task": "greet", "limit": 4}).json()["items"]
    assert sorted(letter["id"] for letter in listed) == sorted(letters)
    assert listed[0].keys() == {
        "id", "queue", "task", "reason", "attempt", "schedule", "event_id", "created_at", "died_at",
        "cause",
    }  # fmt: skip
    shown = client.get(f"{API}/dead-letters/{letters[0]}").json()
    assert (shown["payload"], shown["errors"][0]["error"]) == ({"name": "redacted"}, "RuntimeError: not today")
    revealed = client.post(f"{API}/dead-letters/{letters[0]}/reveal").json()
    assert revealed == {**shown, "payload": {"name": "you"}}
    [cause] = client.get(f"{API}/dead-letter-causes").json()["items"]
    assert (cause["count"], cause["cause"], cause["reason"]) == (4, shown["cause"], "failed")
    assert client.post(f"{API}/dead-letters/{letters[0]}/retry").json()["state"] == "ready"
    assert code(client.post(f"{API}/dead-letters/{letters[0]}/retry")) == (404, "DEAD_LETTER_NOT_FOUND")
    successor = dead_letter(database, "key 0")
    assert code(client.post(f"{API}/dead-letters/{successor}/retry")) == (409, "JOB_EXISTS")
    assert client.delete(f"{API}/dead-letters/{letters[1]}").status_code == 204
    assert code(client.delete(f"{API}/dead-letters/{letters[1]}")) == (404, "DEAD_LETTER_NOT_FOUND")
    assert code(client.get(f"{API}/dead-letters/{letters[1]}")) == (404, "DEAD_LETTER_NOT_FOUND")
    assert client.post(f"{API}/dead-letters/purge", json={}).status_code == 422
    assert client.post(f"{API}/dead-letters/retry", json={"task": "greet"}).json() == {
        "retried_count": 2, "conflict_count": 1, "next_cursor": None
    }  # fmt: skip
    before = {"died_before": "2000-01-01T00:00:00Z"}
    purged = client.post(f"{API}/dead-letters/purge", json=before).json()
    assert (purged.keys(), purged["deleted_count"]) == ({"deleted_count", "next_cursor", "purge_id"}, 0)
    started = client.post(f"{API}/canaries", json={"all": True})
    assert code(started) == (409, "JOB_EXISTS")
    purged = client.post(f"{API}/dead-letters/purge", json={"all": True}).json()
    assert purged["deleted_count"] == 1
    undo = f"{API}/dead-letter-purges/{purged['purge_id']}/undo"
    assert client.post(undo, json={}).json() == {"restored_count": 1, "taken_count": 1, "next_cursor": None}
    assert code(client.post(undo, json={})) == (404, "PURGE_NOT_FOUND")
    for wrong in ({"rate": 0}, {"rate": 1e9}, {"rate": 0.01}, {"rate": "10"}, {"max_failed": -1}, {"max_failed": 1001}):
        assert client.post(f"{API}/canaries", json={"all": True, **wrong}).status_code == 422, wrong
    dead_letter(database)
    canary = client.post(f"{API}/canaries", json={"all": True, "rate": 500}).json()
    assert (canary["state"], canary["released"], canary["total"]) == ("trying", 1, 2)
    assert code(client.post(f"{API}/canaries", json={"all": True})) == (409, "CANARY_RUNNING")
    assert ids(client.get(f"{API}/canaries"))[0] == canary["id"]
    assert client.post(f"{API}/canaries/{canary['id']}/stop").json()["state"] == "stopped"
    assert client.get(f"{API}/canaries/{canary['id']}").json()["ended_at"]


def test_schedules(client: httpx.Client, database: TestDatabase) -> None:
    path = f"{API}/schedules/platform.heartbeat"
    items = client.get(f"{API}/schedules").json()["items"]
    [heartbeat] = [schedule for schedule in items if schedule["name"] == "platform.heartbeat"]
    assert heartbeat.keys() == {
        "name", "task", "queue", "spec", "misfire", "overlap", "next_fire_at", "last_fire_at", "fired_count",
        "skipped_count", "paused_at", "paused_until", "pause_reason", "last_outcome", "last_finished_at", "late_s",
    }  # fmt: skip
    assert (heartbeat["name"], heartbeat["spec"]) == ("platform.heartbeat", "* * * * * UTC")
    triggered = client.post(f"{path}/trigger").json()
    assert triggered["name"] == "platform.heartbeat"
    assert client.get(f"{API}/jobs/{triggered['job_id']}").json()["schedule"] == "platform.heartbeat"
    assert client.post(f"{path}/pause").json()["paused_at"]
    assert client.post(f"{path}/resume").json() == {
        "name": "platform.heartbeat", "paused_at": None, "paused_until": None, "pause_reason": None
    }  # fmt: skip
    for act in ("trigger", "pause", "resume"):
        assert code(client.post(f"{API}/schedules/nothing/{act}")) == (404, "SCHEDULE_NOT_FOUND")


def test_events(client: httpx.Client, database: TestDatabase) -> None:
    database.run("INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES ('greeter', 'test.moved')")
    database.run(
        "INSERT INTO kernel.events (id, type, version, payload, published_at)"
        " SELECT (lpad(to_hex(n), 8, '0') || '-0000-7000-8000-000000000000')::uuid, 'test.moved', 1, '{}',"
        " '2026-11-22T10:00:00Z'::timestamptz + n * interval '1 s'"
        " FROM generate_series(0, 2999) n"
    )
    listed = client.get(f"{API}/events", params={"type": "test.moved", "to": "2026-11-22T10:00:02Z"}).json()["items"]
    assert {event["published_at"] for event in listed} == {"2026-11-22T10:00:01Z", "2026-11-22T10:00:00Z"}
    assert listed[0].keys() == {"id", "type", "version", "published_at", "trace_id"}
    assert ids(client.get(f"{API}/events", params={"from": "2026-11-23T00:00:00+00:00"})) == []
    for wrong in ({"from": "2026-11-22T10:00:00"}, {"from": "yesterday"}, {"from_": "2026-11-22T10:00:00Z"}):
        assert client.get(f"{API}/events", params=wrong).status_code == 422, wrong

    wanted: dict[str, object] = {"subscriber": "greeter", "from": "2026-11-22T10:00:00Z"}
    chunk = client.post(f"{API}/events/replay", json=wanted).json()
    assert (chunk["enqueued_count"], chunk["next_from"]) == (2000, "2026-11-22T10:33:19Z")
    rest = client.post(f"{API}/events/replay", json={**wanted, "cursor": chunk["next_cursor"]}).json()
    assert rest == {"enqueued_count": 1000, "next_from": None, "next_cursor": None}
    counted = "SELECT count(*), count(DISTINCT event_id) FROM kernel.jobs WHERE task = 'greeter'"
    assert database.all(counted) == [(3000, 3000)]
    unknown = client.post(f"{API}/events/replay", json={**wanted, "subscriber": "nobody"})
    assert code(unknown) == (404, "SUBSCRIBER_NOT_FOUND")
    assert "greeter" in unknown.json()["detail"]
    for change in ({"from": "2026-11-22"}, {"from": None}, {"to": "2026-11-22T09:00:00Z"}, {"cursor": "x"}):
        assert client.post(f"{API}/events/replay", json={**wanted, **change}).status_code == 422, change


def lists() -> dict[str, set[str]]:
    """Return the paths of all lists, and the names of what they take."""
    found: dict[str, set[str]] = {}
    for kind in (kind for module in modules() for kind in module.feature_classes()):
        for _, action, signature in declared(kind):
            is_list = get_origin(signature.returns) is Page
            if isinstance(action, Action) and action.path and not action.changes and is_list:
                found[action.path] = input_names(signature.input)
    return found


def test_every_list_pages(client: httpx.Client, database: TestDatabase) -> None:
    for n in range(3):
        job(database)
        dead_letter(database)
        database.run("INSERT INTO kernel.queues (name, paused_at) VALUES (%s, now())", f"q{n}")
        database.run("INSERT INTO kernel.events (id, type, version, payload) VALUES (kernel.uuid7(), 't', 1, '{}')")
        database.run("INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES (%s, 't')", f"s{n}")
        database.run(
            "INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, schedule, created_at)"
            " VALUES (kernel.uuid7(), 'default', 'x', 'done', 1, 'platform.prune', now())"
        )
        database.run(
            "INSERT INTO kernel.errors (fingerprint, kind, type, title, culprit, count, processes, first_seen_at,"
            " last_seen_at, first_release, last_release, samples)"
            " VALUES (%s, 'job', 'T', 't', 'c', 1, '{a}', now(), now(), '1', '1', '[]')",
            f"f{n}",
        )
        database.run(
            "INSERT INTO kernel.processes (id, name, version, host, pid, state, services, started_at, last_seen_at)"
            " VALUES (kernel.uuid7(), 'run-a', '1', 'h', 1, 'ready', '{}', now(), now() + interval '1 hour')"
        )
        assert client.post(
            "/auth/v1/login", json=dict(zip(("username", "password"), SUPERUSER, strict=True))
        ).is_success
    for name in ("bot", "tob"):
        bot = client.post("/auth/v1/actors", json={"type": "service_acc", "username": name}).json()["id"]
    roles = [client.post("/auth/v1/roles", json={"name": f"role {n}"}).json()["id"] for n in range(3)]
    assert client.put(f"/auth/v1/actors/{bot}/roles", json={"role_ids": roles}).is_success
    for n in range(3):
        assert client.post(f"/auth/v1/actors/{bot}/keys", json={"name": f"k{n}", "permissions": []}).status_code == 201
        assert client.post("/auth/v1/keys/rotate").is_success
    actor = client.get("/auth/v1/me").json()["actor"]["id"]
    paths = {path: path.format(id=actor, name="platform.prune") for path in lists()}
    paths |= {"/auth/v1/actors/{id}/keys": f"/auth/v1/actors/{bot}/keys"}
    paths |= {"/auth/v1/actors/{id}/roles": f"/auth/v1/actors/{bot}/roles"}
    lacking = {path for path, names in lists().items() if not {"limit", "cursor"} <= names}
    assert lacking == set()
    assert len(paths) >= 16
    short: list[str] = []
    for template, path in paths.items():
        whole = client.get(path, params={"limit": 100})
        assert whole.status_code == 200, (path, whole.text)
        expected = [json.dumps(_steady(item)) for item in whole.json()["items"][:7]]
        found: list[str] = []
        cursor: dict[str, str] = {}
        while len(found) < len(expected):
            page = client.get(path, params={"limit": 2, **cursor}).json()
            assert len(page["items"]) <= 2
            found += [json.dumps(_steady(item)) for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        if template != "/platform/v1/audit":  # to which signing in adds
            assert found[: len(expected)] == expected, path
        if len(expected) < 3:
            short.append(template)
        for wrong in (
            {"limit": 0},
            {"limit": 101},
            {"limit": "x"},
            {"cursor": ""},
            {"cursor": "?"},
            {"cursor": "é" * 22},
        ):
            assert client.get(path, params=wrong).status_code == 422, (path, wrong)
    # their own tests fill these
    assert set(short) <= {
        f"{API}/{name}" for name in ("dead-letter-causes", "dead-letter-purges", "canaries", "backups")
    }


def _steady(item: dict[str, Any]) -> dict[str, Any]:
    """Return what of an item does not change from one request to the next."""
    return {name: value for name, value in item.items() if not name.endswith(("_s", "_at", "_bytes", "state"))}


def test_who_may_see_may_not_change(client: httpx.Client, database: TestDatabase) -> None:
    made = client.post("/auth/v1/actors", json={"type": "user", "username": "eve", "password": "quite a good one"})
    reads = [
        p["name"]
        for p in client.get("/auth/v1/permissions", params={"limit": 100}).json()["items"]
        if p["name"].endswith(":read")
    ]
    reads = [name for name in reads if name.startswith("platform:")]
    assert len(reads) >= 7
    granted = client.put(f"/auth/v1/actors/{made.json()['id']}/permissions", json={"permissions": reads})
    assert granted.status_code == 200, granted.text
    with httpx.Client(base_url=client.base_url) as eve:
        answer = eve.post("/auth/v1/login", json={"username": "eve", "password": "quite a good one"})
        eve.headers["Authorization"] = f"Bearer {answer.json()['session']['access_token']}"
        letter = dead_letter(database)
        see = ("queues", "jobs", "dead-letters", f"dead-letters/{letter}", "schedules", "events", "audit")
        assert {eve.get(f"{API}/{path}").status_code for path in see} == {200}
        changes = [
            ("POST", "queues/default/pause"),
            ("POST", f"jobs/{NOBODY}/cancel"),
            ("POST", f"dead-letters/{letter}/retry"),
            ("DELETE", f"dead-letters/{letter}"),
            ("POST", "schedules/platform.heartbeat/trigger"),
            ("POST", "events/replay"),
        ]
        assert {code(eve.request(method, f"{API}/{path}")) for method, path in changes} == {(403, "PERMISSION_DENIED")}
    eventually(lambda: database.all("SELECT count(*) FROM kernel.audit WHERE outcome = 'PERMISSION_DENIED'") == [(6,)])
