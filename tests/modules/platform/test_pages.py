"""The pages of the overview, the timeline and traces, which have templates of their own."""

import json
import re

import httpx

from tests.conftest import SUPERUSER, TestDatabase, make_superuser
from tests.support.backups import GOOD, recorded
from tests.support.project import Project, eventually

NAMES = ("", "timeline", "traces/req-1", "backups", "backups?kind=drill", "backups/status")
HOSTILE = "<script>alert(1)</script>"
POINT = {"requests": 600, "requests_le_0.1": 590, "requests_slower": 10, "requests_failed": 3, "jobs_done": 60}


def sign_in(client: httpx.Client) -> None:
    form = client.get("/console/sign-in").text
    token = re.search(r'name="_csrf" value="([^"]+)"', form)
    assert token
    username, password = SUPERUSER
    answer = client.post(
        "/console/sign-in", data={"_csrf": token[1], "username": username, "password": password, "next": "/console"}
    )
    assert answer.status_code == 200, answer.text


def test_pages_show_what_is_wrong_what_changed_and_what_belongs_to_a_request(
    project: Project, database: TestDatabase
) -> None:
    make_superuser(project)
    url = project.start("run-platform-http").ready()
    headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=url, follow_redirects=True, headers=headers) as client:
        sign_in(client)
        empty = client.get("/console/overview").text
        assert "All is well" in empty
        assert "Nothing has been measured yet" in empty
        for resolution in ("minute", "hour"):
            database.run(
                "INSERT INTO kernel.series"
                " SELECT %s, date_trunc(%s, now()) - n * ('1 ' || %s)::interval, now(), 60, %s, '{}'"
                " FROM generate_series(0, 30) n",
                *[resolution] * 3,
                json.dumps(POINT),
            )
        database.run(
            "INSERT INTO kernel.rollouts (id, name, version, settings) VALUES (kernel.uuid7(), 'x', %s, '{}')", HOSTILE
        )
        for n in range(4):
            database.run(
                "INSERT INTO kernel.dead_letters"
                " (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at, trace_context)"
                " VALUES (kernel.uuid7(), 'q', %s, %s, 1, 1, 1, now(), %s)",
                f"{HOSTILE}{n}",
                HOSTILE,
                f"00-{'a' * 32}-00f067aa0ba902b7-01",
            )
        database.run(
            "INSERT INTO kernel.audit (id, action, outcome, target, request_id, trace_id)"
            " VALUES (kernel.uuid7(), 'platform.pause_queue', 'done', %s, 'req-1', %s)",
            HOSTILE,
            "a" * 32,
        )
        recorded(database, *GOOD, ("backup", "failed", 1), ("drill", "failed", 1))
        database.run("UPDATE kernel.backup_runs SET problem = %s WHERE state = 'failed'", HOSTILE)
        checks = [
            {"name": "rows", "state": "failed", "summary": HOSTILE, "problems": [HOSTILE], "notes": [], "seconds": 1}
        ]
        database.run(
            "UPDATE kernel.backup_runs SET details = %s WHERE kind = 'drill' AND state = 'failed'",
            json.dumps(
                {"rto_s": None, "rpo_s": None, "checks": checks, "restored_lsn": HOSTILE, "server_version": 180004}
            ),
        )
        ((drill,),) = database.all("SELECT id FROM kernel.backup_runs WHERE kind = 'drill' AND state = 'failed'")
        # what the checks found is remembered for a few seconds
        eventually(lambda: "What needs attention" in client.get("/console/overview").text, every=0.5)
        pages = {name: client.get(f"/console/{name}") for name in NAMES}
        pages["run"] = client.get(f"/console/backups/{drill}")
    for name, page in pages.items():
        assert page.status_code == 200, name
        assert "<script>alert" not in page.text
        assert "style=" not in page.text
    overview = pages[""].text
    assert str(pages[""].url).endswith("/console/overview")
    assert "2 more of check dead-letters" in overview
    assert "Runbook: DeadLetters" in overview
    assert overview.count('class="chart"') == 12
    assert 'class="mark"' in overview
    assert "pause queue &lt;script" in pages["timeline"].text
    assert "/console/traces/" + "a" * 32 in pages["timeline"].text
    assert pages["traces/req-1"].text.count("dead letter") >= 4
    backups = pages["backups"].text
    assert "Runbook: DrillFailed" in backups
    assert backups.count('class="chart"') == 2
    assert "app backup create" in backups
    assert "42.5 s" in backups
    assert "<dd>5.0 GB" in backups
    assert "<dd>18.4</dd>" in pages["run"].text
    assert "Runbook: DrillFailed" not in pages["backups?kind=drill"].text
    assert pages["backups?kind=drill"].text.count('id="row-') == 2
    assert pages["run"].text.count("&lt;script&gt;alert") >= 4
