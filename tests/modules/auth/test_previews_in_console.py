"""In the console: what a change of a role would do is shown before it is made, and a list is downloaded as CSV."""

import csv
import html
import io
import re

import httpx
import pytest

from tests.conftest import SUPERUSER, log_in
from tests.support.project import Project

ROLES, ACTORS = "/auth/v1/roles", "/auth/v1/actors"


@pytest.fixture
def api(project: Project) -> httpx.Client:
    return log_in(project, project.start("run-all-in-one"))


@pytest.fixture
def console(project: Project, api: httpx.Client) -> httpx.Client:
    """A browser without JavaScript that is signed in to the console."""
    browser = project.client(str(api.base_url))
    browser.follow_redirects = True
    browser.headers["sec-fetch-site"] = "same-origin"
    signed_in = post(browser, browser.get("/console/sign-in"), username=SUPERUSER[0], password=SUPERUSER[1])
    assert "/sign-in" not in str(signed_in.url), signed_in.text
    return browser


def post(browser: httpx.Client, page: httpx.Response, **fields: object) -> httpx.Response:
    """Send the form of a page: its hidden fields and these."""
    form = page.text.partition("<main")[2] or page.text
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form))
    action = re.search(r'<form method="post" action="([^"]+)"', form)
    target = html.unescape(action[1]) if action else str(page.url)
    return browser.post(target, data={name: html.unescape(value) for name, value in hidden.items()} | fields)


def test_a_role_is_changed_after_its_preview_and_the_list_is_downloaded(
    api: httpx.Client, console: httpx.Client
) -> None:
    role = api.post(ROLES, json={"name": "support"}).json()["id"]
    api.put(f"{ROLES}/{role}/permissions", json={"permissions": ["auth:roles:read", "platform:audit:read"]})
    ann = api.post(ACTORS, json={"type": "user", "username": "ann"}).json()["id"]
    api.put(f"{ACTORS}/{ann}/roles", json={"role_ids": [role]})

    press = "/console/press/auth.set_role_permissions"
    form = console.get(press, params={"id": role, "_back": f"/console/roles/{role}"})
    boxes = re.findall(r'name="permissions\[\]" value="([^"]+)"( checked)?', form.text)
    assert {name for name, checked in boxes if checked} == {"auth:roles:read", "platform:audit:read"}
    assert "auth:superuser" not in dict(boxes), "it cannot be granted"
    previewed = post(console, form, **{"permissions[]": ["auth:roles:read", "platform:jobs:read"]})
    text = re.sub(r"<[^>]+>", " ", previewed.text)
    assert re.search(r"Affected count\s+1\s", text), text
    assert re.search(r"ann\s+user\s+yes\s+platform:jobs:read\s+platform:audit:read", text), text
    assert api.get(f"{ROLES}/{role}/permissions").json()["permissions"] == ["auth:roles:read", "platform:audit:read"]
    done = post(console, previewed)
    assert done.url.path == f"/console/roles/{role}"
    assert api.get(f"{ROLES}/{role}/permissions").json()["permissions"] == ["auth:roles:read", "platform:jobs:read"]

    # what replaces something begins with what there is
    roles = console.get("/console/press/auth.set_actor_roles", params={"id": ann})
    assert re.search(rf'name="role_ids\[\]" value="{role}" checked', roles.text)
    direct = console.get("/console/press/auth.set_actor_permissions", params={"id": ann})
    assert " checked" not in direct.text
    offered = re.findall(r'name="permissions\[\]" value="([^"]+)"', direct.text)
    assert "platform:jobs:read" in offered
    assert "auth:superuser" not in offered
    refused = post(console, direct, **{"permissions[]": ["auth:superuser"]})
    assert (refused.status_code, "cannot be granted" in refused.text) == (422, True)
    assert api.get(f"{ACTORS}/{ann}/permissions").json()["direct"] == []

    deleted = console.get("/console/press/auth.delete_role", params={"id": role})
    assert "platform:jobs:read" in deleted.text, "who loses what is shown before the question is answered"
    post(console, deleted)
    assert api.get(f"{ROLES}/{role}").status_code == 404

    listed = console.get("/console/audit", params={"action": "auth.set_role_permissions"})
    href = re.search(r'href="([^"]+)" download', listed.text)
    assert href is not None
    downloaded = console.get(html.unescape(href[1]))
    assert downloaded.headers["content-type"].startswith("text/csv")
    assert downloaded.headers["content-disposition"].startswith("attachment")
    _, *rows = csv.reader(io.StringIO(downloaded.text, newline=""))
    assert [row[1:4] for row in rows] == [[SUPERUSER[0], "auth.set_role_permissions", role]] * 2
    assert f'href="/console/actors/{rows[0][9]}"' in listed.text
    export = api.get("/platform/v1/audit.csv", params={"action": "auth.set_role_permissions"})
    assert export.text == downloaded.text
    outside = httpx.get(f"{api.base_url}/console/audit.csv", follow_redirects=False)
    assert outside.status_code != 200
