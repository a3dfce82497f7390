"""The console and the reference in a browser: an operator's walk, and what every page keeps to."""

import base64
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

from app.modules.auth.domain.second_factor import totp
from tests.conftest import required
from tests.support.demo import CHROMIUM, USER, Demo, browser, context, demo, navigation, sign_in
from tests.support.project import ROOT, Project, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = ROOT / "tests/npm/node_modules/axe-core/axe.min.js"
_AXE = """
async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
    .filter(found => ["serious", "critical"].includes(found.impact))
    .map(found => `${found.id}: ${found.nodes.map(node => node.target.join(" ")).slice(0, 3).join(", ")}`)
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, with its history."""
    if not CHROMIUM:
        required("chromium")
    if not AXE.exists():
        required("axe-core (just install-npm)")
    folder = tmp_path_factory.mktemp("console")
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TZ") if key in os.environ}
    with demo(Project(ROOT, folder).python, {**kept, "PYTHONDONTWRITEBYTECODE": "1"}, folder / "demo") as running:
        yield running


@pytest.fixture(scope="module")
def chromium(shown: Demo) -> "Iterator[Browser]":
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def api(shown: Demo) -> Iterator[httpx.Client]:
    """A client that is signed in as the superuser of the demo."""
    with httpx.Client(base_url=shown.url, timeout=20) as client:
        sign_in = {"username": USER, "password": shown.password}
        session = client.post("/auth/v1/login", json=sign_in).json()["session"]
        client.headers["authorization"] = f"Bearer {session['access_token']}"
        yield client


@pytest.fixture(scope="module")
def codes(shown: Demo, api: httpx.Client) -> list[str]:
    """The recovery codes of the superuser, whose second factor is turned on."""
    pending = api.post("/auth/v1/me/totp", json={"current_password": shown.password}).json()
    otp = totp(base64.b32decode(pending["secret"]), int(time.time()) // 30)
    return api.post("/auth/v1/me/totp/confirm", json={"otp": otp}).json()["recovery_codes"]


@pytest.fixture(scope="module")
def operator(shown: Demo, chromium: "Browser", codes: list[str]) -> "Iterator[Page]":
    """A page of the superuser, signed in with a second factor; whatever goes wrong in it fails the test at the end."""
    page = context(chromium, 1440, "light").new_page()
    problems = watched(page, shown.url)
    signed_in(page, shown, codes)
    yield page
    assert problems == []


def signed_in(page: "Page", shown: Demo, codes: list[str]) -> None:
    sign_in(page, shown.url, USER, shown.password)
    page.get_by_label("One-time code").fill(codes.pop())
    page.get_by_role("button", name="Sign in").click()
    page.locator("nav.side").wait_for()


def watched(page: "Page", url: str) -> list[str]:
    """Return the list to which everything is added that must not happen in a page."""
    problems: list[str] = []
    page.on("console", lambda said: problems.append(f"{page.url}: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    page.on("request", lambda asked: None if asked.url.startswith(url) else problems.append(f"asked {asked.url}"))
    page.add_init_script("""
        addEventListener("securitypolicyviolation", found => console.error(`policy: ${found.violatedDirective}`));
    """)
    return problems


def connect(shown: Demo) -> psycopg.Connection:
    where = shown.variables
    return psycopg.connect(
        host=where["POSTGRES_HOST"], user=where["POSTGRES_USER"], dbname=where["POSTGRES_DB"], autocommit=True
    )


def enqueue(shown: Demo, task: str, queue: str, **payload: Any) -> uuid.UUID:
    """Enqueue a job that has one attempt, like one of the demo that died."""
    sql = """
        INSERT INTO kernel.jobs (id, queue, task, payload, rank, max_attempts, timeout_s)
        SELECT kernel.uuid7(), %s, %s, payload || %s::jsonb, 0, 1, 5 FROM kernel.dead_letters WHERE task = %s LIMIT 1
        RETURNING id
    """
    with connect(shown) as connection:
        [(job,)] = connection.execute(sql, (queue, task, json.dumps(payload), task)).fetchall()
        connection.execute("SELECT pg_notify('kernel_jobs', 'q' || %s::text)", (queue,))
    return job


def test_a_second_factor_is_asked_for(shown: Demo, chromium: "Browser", codes: list[str]) -> None:
    page = context(chromium, 390, "dark").new_page()
    sign_in(page, shown.url, USER, shown.password)
    page.get_by_label("One-time code").fill("000000")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").or_(page.locator(".field.wrong")).first.wait_for()
    assert page.locator("nav.side").count() == 0
    page.goto(f"{shown.url}/console/queues")
    assert "/sign-in" in page.url


def test_a_dead_letter_appears_while_one_looks(shown: Demo, operator: "Page") -> None:
    operator.goto(f"{shown.url}/console/dead-letters")
    job = enqueue(shown, "demo.import_feed", "imports", row=9)
    operator.locator(f"#row-{job}").wait_for(timeout=15_000)


def test_a_canary_goes_first_and_the_rest_follows(shown: Demo, operator: "Page") -> None:
    operator.goto(f"{shown.url}/console/dead-letter-causes")
    card = operator.locator("ul.cards > li", has_text="GatewayUnreachable")
    card.get_by_role("link", name="Retry one first").click()
    operator.locator("main [name=rate]").fill("50")
    press(operator)
    operator.locator("main table tbody a").first.click()
    operator.locator("p.canary .state", has_text="done").wait_for(timeout=30_000)
    with connect(shown) as connection:
        sql = "SELECT count(*) FROM kernel.dead_letters WHERE reason LIKE '%%GatewayUnreachable%%'"
        assert connection.execute(sql).fetchall() == [(0,)]


def test_a_paused_queue_resumes_when_its_pause_expires(shown: Demo, operator: "Page") -> None:
    operator.goto(f"{shown.url}/console/queues")
    row = operator.locator("tr", has_text="search")
    row.get_by_text("Actions").click()
    row.get_by_role("link", name="Pause").click()
    operator.get_by_label("Reason").fill("a test")
    operator.get_by_label(re.compile("For|Seconds")).first.fill("4")
    press(operator)
    row.get_by_text("paused").wait_for(timeout=5_000)
    row.get_by_text("paused").wait_for(state="detached", timeout=20_000)


def test_a_resolved_error_regresses(shown: Demo, operator: "Page") -> None:
    operator.goto(f"{shown.url}/console/errors")
    row = operator.locator("tr", has_text="KeyError: 'sku'")
    row.get_by_text("Actions").click()
    row.get_by_role("link", name="Resolve").or_(row.get_by_role("button", name="Resolve")).first.click()
    if "/press/" in operator.url:
        press(operator)
    row.get_by_text("resolved").wait_for(timeout=10_000)
    enqueue(shown, "demo.import_feed", "imports", row=9)
    row.get_by_text("regressed").wait_for(timeout=30_000)


def press(page: "Page") -> None:
    """Submit the form of a change, and confirm it if it asks."""
    for _ in range(3):
        if "/press/" not in page.url:
            return
        page.locator("main form button[type=submit]").first.click()
        page.wait_for_load_state()
    raise AssertionError(page.locator("main").inner_text())


def test_a_changed_role_bites_in_another_process(
    shown: Demo, operator: "Page", api: httpx.Client, tmp_path: Path
) -> None:
    role = next(each for each in api.get("/auth/v1/roles").json()["items"] if each["name"] == "support")
    robot = api.post("/auth/v1/actors", json={"type": "service_acc", "username": "watcher"}).json()["id"]
    api.put(f"/auth/v1/actors/{robot}/roles", json={"role_ids": [role["id"]]})
    key = api.post(f"/auth/v1/actors/{robot}/keys", json={"name": "k", "permissions": ["auth:actors:read"]}).json()
    project = Project(ROOT, tmp_path, {**shown.variables, "APP_ENV": "local", "LOGGER_FORMAT": "json"})
    try:
        other = project.client(project.start("run-auth-http").ready())
        other.headers["authorization"] = f"Bearer {key['key']}"
        assert other.get("/auth/v1/actors").status_code == 200
        operator.goto(f"{shown.url}/console/roles/{role['id']}")
        operator.locator("main").get_by_role("link", name=re.compile("[Pp]ermissions")).first.click()
        change_permissions(operator)
        eventually(lambda: other.get("/auth/v1/actors").status_code == 403, 5)
    finally:
        project.end()


def change_permissions(page: "Page") -> None:
    page.get_by_label("auth:actors:read").uncheck()
    page.locator("main form button[type=submit]").first.click()
    page.get_by_text("watcher").first.wait_for()
    press(page)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_every_page_keeps_to_itself_and_is_for_everybody(
    shown: Demo, chromium: "Browser", operator: "Page", width: int, scheme: str
) -> None:
    signed = operator.context.storage_state()
    page = context(chromium, width, scheme, storage_state=signed).new_page()
    problems = watched(page, shown.url)
    axe = AXE.read_text()
    places = [*navigation(operator), "/docs", "/docs#platform-pause-queue"]
    assert len(places) > 15
    for place in places:
        answer = page.goto(f"{shown.url}{place}")
        assert answer is None or answer.status == 200, place
        page.evaluate(axe)
        problems += [f"{place} at {width} {scheme}: {found}" for found in page.evaluate(_AXE)]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            problems.append(f"{place} scrolls sideways at {width}")
    assert problems == []


def test_signing_out_everywhere_ends_the_other_browser(
    shown: Demo, chromium: "Browser", operator: "Page", codes: list[str]
) -> None:
    other = context(chromium, 1440, "light").new_page()
    signed_in(other, shown, codes)
    operator.goto(f"{shown.url}/console/queues")
    operator.locator("details.who summary").click()
    operator.get_by_role("button", name="Sign out everywhere").click()
    operator.get_by_label("Username").wait_for()
    other.goto(f"{shown.url}/console/queues")
    assert "/sign-in" in other.url
