"""The console as a browser without scripts sees it, and what it refuses."""

import html
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest

from app.kernel.actions import Action, declared, read
from app.kernel.actions.operation import ActionOperation
from app.kernel.console.command_line import command_of
from app.kernel.console.cookies import Cookies, ForgedRequest, check_csrf, check_same_origin, csrf_of
from app.kernel.console.live import CSRF
from app.kernel.console.pages import Pages, Reading
from app.kernel.console.requests import ROOT as CONSOLE
from app.kernel.console.requests import local
from app.kernel.paging import Page
from app.kernel.product import NAME
from app.kernel.queue import InvalidDeclaration
from app.modules import modules
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.browser import Browser
from tests.support.project import ROOT, Project

PASSWORD = SUPERUSER[1]
SCRIPT = """<script>alert(1)</script>"'><img src=x onerror=alert(1)>"""
Visit = Callable[..., Browser]


@pytest.fixture(scope="module")
def served(template: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TestDatabase]]:
    database = template.copy()
    project = Project(ROOT, tmp_path_factory.mktemp("console"), {**database.env, "QUEUE_NAMES": "worked-on"})
    client = log_in(project, process := project.start("run-all-in-one"))
    fill(database)
    made = client.post("/auth/v1/actors", json={"type": "user", "username": "visitor", "password": PASSWORD})
    assert made.status_code == 201, made.text
    yield process.url(), database
    project.end()


@pytest.fixture
def visit(served: tuple[str, TestDatabase]) -> Iterator[Visit]:
    """Open a browser that is signed in: as the superuser, or as one who holds some permissions."""
    with ExitStack() as opened:

        def made(*permissions: str, is_superuser: bool = False) -> Browser:
            browser = Browser(served[0])
            opened.callback(browser.client.close)
            if not is_superuser:
                served[1].run("DELETE FROM auth.actor_permissions")
                for permission in permissions:
                    sql = "INSERT INTO auth.actor_permissions SELECT id, %s FROM auth.actors WHERE username = 'visitor'"
                    served[1].run(sql, permission)
            answer = browser.sign_in(SUPERUSER[0] if is_superuser else "visitor", PASSWORD)
            assert answer.headers.get("location") == "/console/me", answer.text
            return browser

        yield made


@pytest.fixture
def root(visit: Visit) -> Browser:
    return visit(is_superuser=True)


def fill(database: TestDatabase) -> None:
    """Put a row into each list, with a script in each text."""
    database.run(
        "INSERT INTO kernel.dead_letters"
        " (id, queue, task, payload, reason, attempt, max_attempts, timeout_s, errors, created_at)"
        " VALUES (kernel.uuid7(), %s, %s, to_jsonb(%s::text), %s, 1, 1, 10,"
        " jsonb_build_array(jsonb_build_object('attempt', 1, 'at', now(), 'error', %s::text)), now())",
        *[SCRIPT] * 5,
    )
    database.run(
        "INSERT INTO kernel.jobs"
        " (id, queue, task, payload, state, rank, attempt, max_attempts, timeout_s, errors, run_at)"
        " VALUES (kernel.uuid7(), %s, %s, to_jsonb(%s::text), 'scheduled', 0, 1, 3, 10, '[]', now() + '1 hour')",
        *[SCRIPT] * 3,
    )
    database.run("INSERT INTO kernel.queues (name) VALUES (%s)", SCRIPT)
    database.run("INSERT INTO auth.roles (id, name) VALUES (kernel.uuid7(), %s)", SCRIPT)


def operations(kinds: Iterable[type[Any]]) -> list[ActionOperation]:
    """Return the actions of features without their objects: they can be looked at, not run."""
    none: Any = None
    found = [(kind, *each) for kind in kinds for each in declared(kind) if isinstance(each[1], Action)]
    return [ActionOperation(cast("Action", a), getattr(kind, name), s, none, none) for kind, name, a, s in found]


async def denied(*_: object) -> None: ...


DERIVED = Pages(operations(kind for module in modules() for kind in module.feature_classes()), denied)
PRESSES = {name: press.operation.action for name, press in DERIVED.presses.items()}
PAGES = [slug for slug, reading in DERIVED.by_slug.items() if not reading.key]


def below(reading: Reading) -> Iterator[Reading]:
    yield reading
    for each in [*([reading.item] if reading.item else []), *reading.sections]:
        yield from below(each)


def test_every_read_and_every_change_for_people_has_its_place() -> None:
    placed = [each for top in DERIVED.by_slug.values() for each in below(top)]
    shown = {each.run.operation.id for each in placed if each.run}
    pressed = [press.operation.id for each in placed for press in each.presses]
    assert sorted(pressed) == sorted(set(pressed)) == sorted(PRESSES)
    found = [each.action for each in operations(kind for module in modules() for kind in module.feature_classes())]
    reads = {each.id for each in found if each.path and not each.changes and not each.public}
    previews = {each.preview for each in found}
    assert reads - shown - previews == {"auth.verify", "platform.export_audit"} & reads  # for proxies; a file
    assert len(shown) > 20


def test_buttons_of_rows_are_shown(root: Browser) -> None:
    text = root.get(f"{CONSOLE}/schedules").text
    assert set(re.findall(rf'action="{CONSOLE}/press/([a-z_.]+)"', text)) == {
        "platform.trigger_schedule",
        "platform.resume_schedule",
    }
    assert f"{NAME} schedules trigger platform.heartbeat" in text


@pytest.mark.parametrize("action", sorted(PRESSES))
def test_a_press_without_the_permission_is_refused_and_has_no_button(
    visitor: Browser, superuser: Browser, served: tuple[str, TestDatabase], action: str
) -> None:
    permission = PRESSES[action].permission
    given = {"id": "0190b3a0-0000-7000-8000-000000000001", "name": "default"}
    if not permission:
        assert visitor.get(f"{CONSOLE}/press/{action}", **given).status_code in (200, 404)
        return
    assert visitor.get(f"{CONSOLE}/press/{action}", **given).status_code == 403
    visitor.get(f"{CONSOLE}/me")
    answer = visitor.press(action, **given, _confirmed="1", _counted="1", _password=PASSWORD)
    assert answer.status_code == 403, answer.text
    assert superuser.get(f"{CONSOLE}/press/{action}", **given).status_code in (200, 404)


@pytest.fixture(scope="module")
def visitor(served: tuple[str, TestDatabase]) -> Iterator[Browser]:
    """Somebody without a permission."""
    served[1].run("DELETE FROM auth.actor_permissions")
    browser = Browser(served[0])
    browser.sign_in("visitor", PASSWORD)
    yield browser
    browser.client.close()


@pytest.fixture(scope="module")
def superuser(served: tuple[str, TestDatabase]) -> Iterator[Browser]:
    browser = Browser(served[0])
    browser.sign_in(*SUPERUSER)
    yield browser
    browser.client.close()


def test_who_only_reads_sees_the_rows_and_no_button_of_a_change(visit: Visit) -> None:
    reads = {name for module in modules() for name in module.permissions if name.endswith(":read")}
    browser = visit(*sorted(reads))
    for name, reading in DERIVED.by_slug.items():
        if reading.key or not reading.may(reads.__contains__) or name == "me":
            continue
        answer = browser.get(f"{CONSOLE}/{name}")
        assert answer.status_code == 200, name
        assert f"{CONSOLE}/press/" not in answer.text
    nobody = visit()
    for name in set(PAGES) - {"me"}:
        answer = nobody.get(f"{CONSOLE}/{name}")
        assert answer.status_code == 403
        assert f'href="{CONSOLE}/{name}"' not in answer.text


def test_the_overview_links_to_the_pages_that_may_be_seen(visit: Visit) -> None:
    for permissions in ((), ("platform:queues:read",)):
        text = visit("platform:overview:read", *permissions).get(f"{CONSOLE}/overview").text
        assert 'id="now-queues"' in text
        assert (f'href="{CONSOLE}/queues"' in text) == bool(permissions)


def test_a_denial_is_recorded(visit: Visit, served: tuple[str, TestDatabase]) -> None:
    visit().press("platform.pause_queue", name="default")
    sql = "SELECT count(*) FROM kernel.audit WHERE action = 'platform.pause_queue' AND outcome = 'PERMISSION_DENIED'"
    assert served[1].all(sql) != [(0,)]


@pytest.mark.parametrize("page", ["sign-in", *PAGES])
def test_pages_have_no_inline_script_or_style_and_are_not_stored(root: Browser, page: str) -> None:
    answer = root.get(f"{CONSOLE}/{page}") if page != "sign-in" else httpx.get(f"{root.url}{CONSOLE}/sign-in")
    assert answer.status_code == 200
    assert is_under_policy(answer.text)
    fields = answer.headers
    assert fields["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in fields["content-security-policy"]
    assert "unsafe" not in fields["content-security-policy"]
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["x-frame-options"] == "DENY"


def test_assets_are_kept_for_a_year_under_names_of_their_content(root: Browser) -> None:
    text = root.get(f"{CONSOLE}/queues").text
    found = re.findall(rf'"({CONSOLE}/assets/[^"]*)"', text)
    assert len(found) >= 5
    for name in found:
        answer = httpx.get(f"{root.url}{name}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert "set-cookie" not in answer.headers
    for wrong in ("nothing.css", "..%2Fsite.py", "console.css"):
        assert httpx.get(f"{root.url}{CONSOLE}/assets/{wrong}").status_code == 404


class Tags(HTMLParser):
    """Finds what the policy of the console forbids: inline scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag in ("style", "img") or (tag == "script" and "src" not in names):
            self.forbidden.append(tag)
        self.forbidden += [name for name in names if name == "style" or name.startswith("on")]


def is_under_policy(text: str) -> bool:
    tags = Tags()
    tags.feed(text)
    return tags.forbidden == []


def is_harmless(text: str) -> bool:
    return "<script>alert" not in text and "<img src=x" not in text and is_under_policy(text)


@pytest.mark.parametrize("page", PAGES)
def test_scripts_in_stored_texts_are_shown_as_text(root: Browser, served: tuple[str, TestDatabase], page: str) -> None:
    served[1].run("UPDATE auth.sessions SET user_agent = %s", SCRIPT)
    text = root.get(f"{CONSOLE}/{page}").text
    assert is_harmless(text)
    if page in ("queues", "jobs", "dead-letters", "roles", "me"):
        assert "&lt;script&gt;alert" in text
    for href in re.findall(r'<th scope="row"><a[^>]* href="([^"]*)"', text)[:1]:
        shown = root.get(html.unescape(href))
        assert shown.status_code == 200, href
        assert is_harmless(shown.text)


def test_scripts_in_every_field_of_every_form_are_shown_as_text(root: Browser) -> None:
    shown = 0
    for action in PRESSES:
        opened = root.get(f"{CONSOLE}/press/{action}").text
        secret = set(re.findall(r'type="password" id="[^"]*" name="([a-z_]+)"', opened))
        names = {html.unescape(name) for name in re.findall(r' name="([a-z_]+)"', opened)} - {"viewport", *secret}
        given = {name: SCRIPT for name in names if not name.startswith("_")}
        given |= {"id": SCRIPT, "name": SCRIPT, "_back": SCRIPT}
        answer = root.get(f"{CONSOLE}/press/{action}", **given)
        assert is_harmless(answer.text), action
        pressed = root.press(action, **given)
        assert is_harmless(pressed.text), action
        shown += "&lt;script&gt;" in answer.text
    assert shown > len(PRESSES) / 2
    for page in PAGES:
        shown_page = root.get(f"{CONSOLE}/{page}").text
        fields = re.findall(r'id="filter-([a-z_]+)"', shown_page)
        texts = 'type="text" id="filter-' in shown_page  # a list of choices shows none that there is not
        refused = root.get(f"{CONSOLE}/{page}", cursor=SCRIPT)
        assert refused.status_code == (422 if DERIVED.by_slug[page].is_list else 200), page
        assert is_harmless(refused.text)
        answer = root.get(f"{CONSOLE}/{page}", **dict.fromkeys(fields, SCRIPT))
        assert is_harmless(answer.text)
        assert not texts or "&lt;script&gt;" in answer.text, page
    assert is_harmless(root.get(f"{CONSOLE}/{quote(SCRIPT, safe='')}").text)


def paused(database: TestDatabase) -> bool:
    return database.all("SELECT count(*) FROM kernel.queues WHERE name = 'worked-on' AND paused_at IS NOT NULL") != [
        (0,)
    ]


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, ""),
        ({}, "forged"),
        ({}, "of another session"),
        ({"Sec-Fetch-Site": "cross-site"}, None),
        ({"Sec-Fetch-Site": "same-site"}, None),
        ({"Sec-Fetch-Site": "none"}, None),
    ],
)
def test_a_forged_request_changes_nothing(
    root: Browser, visit: Visit, served: tuple[str, TestDatabase], headers: dict[str, str], token: str | None
) -> None:
    other = visit(is_superuser=True).token
    given = {"_csrf": other if token == "of another session" else token} if token is not None else {}
    root.get(f"{CONSOLE}/queues")
    own = root.token
    root.client.headers.update(headers)
    assert root.press("platform.pause_queue", name="worked-on", **given).status_code == 403
    assert root.post("/console/sign-out", **given).status_code == 403
    assert not paused(served[1])
    root.client.headers["Sec-Fetch-Site"] = "same-origin"
    assert root.press("platform.pause_queue", name="worked-on", _csrf=own).status_code == 303
    assert paused(served[1])
    served[1].run("UPDATE kernel.queues SET paused_at = NULL WHERE name = 'worked-on'")


def test_a_forged_sign_in_is_refused(served: tuple[str, TestDatabase]) -> None:
    with httpx.Client(base_url=served[0]) as client:
        given = {"username": SUPERUSER[0], "password": PASSWORD}
        assert client.post("/console/sign-in", data=given).status_code == 403
        client.get("/console/sign-in")
        assert client.post("/console/sign-in", data={**given, "_csrf": "x"}).status_code == 403


def scope(**headers: str) -> dict[str, Any]:
    found = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "a.example", **headers}.items()
    ]
    return {"scheme": "http", "headers": found}


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({"origin": "https://a.example"}, False),
        ({"origin": "http://a.example"}, False),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "https://a.example.evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": "https://evil.example", "sec_fetch_site": "same-origin"}, False),
        ({}, False),
    ],
)
def test_browsers_without_fetch_metadata_name_their_origin(headers: dict[str, str], is_refused: bool) -> None:
    try:
        check_same_origin(scope(**headers))
    except ForgedRequest:
        assert is_refused
    else:
        assert not is_refused


def test_the_token_of_forms_is_that_of_one_session() -> None:
    check_csrf("a", csrf_of("a"))
    for token, given in (("a", csrf_of("b")), ("", ""), ("", csrf_of("")), ("a", ""), ("a", "a"), ("a", "ä")):
        with pytest.raises(ForgedRequest):
            check_csrf(token, given)


@pytest.mark.parametrize(("scheme", "may_be_plain"), [("https", True), ("https", False), ("http", False)])
def test_cookies_are_secure_and_of_one_host_outside_a_laptop(scheme: str, may_be_plain: bool) -> None:
    cookies = Cookies.of({**scope(), "scheme": scheme}, may_be_plain=may_be_plain)
    _, text = cookies.put("console", "x")
    assert text.decode() == f"__Host-{NAME}-console=x; Path=/; HttpOnly; SameSite=Strict; Secure"
    planted = Cookies.of({**scope(cookie=f"{NAME}-console=planted"), "scheme": scheme}, may_be_plain=may_be_plain)
    assert planted.get("console") == ""


def test_a_message_is_shown_to_the_session_it_was_made_for_only() -> None:
    cookies = Cookies.of(scope(), may_be_plain=True)
    value = cookies.flash("token", "done", SCRIPT)[1].decode().partition("=")[2].partition(";")[0]
    after = Cookies.of(scope(cookie=f"{NAME}-console-flash={value}"), may_be_plain=True)
    assert after.flashed("token") == ("done", SCRIPT)
    assert after.flashed("other") is None
    for forged in ("", "x", "=", value[:-8], "A" + value[1:]):
        assert Cookies.of(scope(cookie=f"{NAME}-console-flash={forged}"), may_be_plain=True).flashed("token") is None


ELSEWHERE = [
    "https://evil.example",
    "//evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/console//evil.example",
    "/console/../..//evil.example",
    "/console/..",
    "/console/%2e%2E/auth/v1/me",
    "/console\\..\\evil",
    "javascript:alert(1)",
    "console",
    "/consoles",
    "/",
    "",
    "/auth/v1/me",
    " /console/jobs",
    "/console/jobs\r\nset-cookie: a=b",
    "\t//evil.example",
    "http:evil.example",
    "/%2f/evil.example",
    "/console/jobs\N{FULLWIDTH SOLIDUS}",
]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_a_redirect_leads_to_the_console_only(served: tuple[str, TestDatabase], target: str) -> None:
    assert local(target) == CONSOLE
    browser = Browser(served[0])
    try:
        browser.get("/console/sign-in")
        answer = browser.post("/console/sign-in", username=SUPERUSER[0], password=PASSWORD, next=target)
        assert answer.headers["location"] == CONSOLE
    finally:
        browser.client.close()


@pytest.mark.parametrize("target", ["/console", "/console/jobs?state=done&q=a//b", "/console/queues/a%2Fb"])
def test_a_redirect_keeps_an_address_of_the_console(target: str) -> None:
    assert local(target) == target


def test_a_view_is_in_its_address(root: Browser) -> None:
    text = root.get(f"{CONSOLE}/jobs", state="scheduled", recurring="true").text
    assert "<option selected>scheduled</option>" in text
    assert "app jobs list --state scheduled --all" in text.replace(NAME, "app")
    wrong = root.get(f"{CONSOLE}/jobs", state="nonsense")
    assert wrong.status_code == 200
    assert "must be one of" in wrong.text


@pytest.mark.parametrize(
    "text", ["[" * 20_000, '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', '{"a": ' + "9" * 30 + "}"]
)
def test_a_form_takes_the_json_that_a_body_may_have(root: Browser, text: str) -> None:
    answer = root.press("platform.run_job_again", id="0190b3a0-0000-7000-8000-000000000001", payload=text)
    assert answer.status_code == 422
    assert "Payload is not acceptable JSON" in answer.text
    assert root.press("platform.limit_queue", name="worked-on", concurrency=text).status_code == 422


def test_a_batch_is_counted_before_it_is_run(root: Browser, served: tuple[str, TestDatabase]) -> None:
    for _ in range(3):
        served[1].run(
            "INSERT INTO kernel.dead_letters"
            " (id, queue, task, payload, reason, attempt, max_attempts, timeout_s, errors, created_at)"
            " VALUES (kernel.uuid7(), 'batch', 'greet', '{}', 'failed', 1, 1, 10, '[]', now())"
        )
    counted = root.press("platform.purge_dead_letters", queue="batch")
    assert "Delete 3 dead letters?" in counted.text
    count = "SELECT count(*) FROM kernel.dead_letters WHERE queue = 'batch'"
    assert served[1].all(count) == [(3,)]
    done = root.press("platform.purge_dead_letters", queue="batch", _counted="1", _confirmed="1", _count="3")
    assert done.headers["location"] == CONSOLE
    assert "3 dead letters" in root.get(f"{CONSOLE}/dead-letters").text
    assert served[1].all(count) == [(0,)]


def test_a_live_page_gets_what_changes_and_signs_of_life_and_ends_with_its_session(
    root: Browser, served: tuple[str, TestDatabase]
) -> None:
    page = root.get(f"{CONSOLE}/schedules").text
    [href] = re.findall(r'hx-sse:connect="([^"]*)"', page)
    served[1].run("UPDATE kernel.schedules SET skipped_count = skipped_count + 7777 WHERE name = 'platform.heartbeat'")
    received = ""
    with root.client.stream("GET", html.unescape(href)) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        for line in stream.iter_lines():
            received += f"{line}\n"
            if "7,77" in received and "event: live" in received and line == "":
                served[1].run("UPDATE auth.sessions SET ended_at = now() WHERE browser_token IS NOT NULL")
    assert "data: " in received
    assert CSRF not in received
    assert root.token in received
    assert received.rstrip().endswith(ended := "event: end\ndata: the page is no longer shown")
    assert root.client.get(html.unescape(href)).text == f"{ended}\n\n"


def test_a_live_page_ends_when_its_permission_is_revoked(visit: Visit, served: tuple[str, TestDatabase]) -> None:
    browser = visit("platform:queues:read")
    with browser.client.stream("GET", f"{CONSOLE}/live", params={"of": f"{CONSOLE}/queues"}) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        served[1].run("DELETE FROM auth.actor_permissions")
        assert "event: end" in lines


def test_tabs_share_no_addresses_of_another_host(root: Browser) -> None:
    """The commands with curl have the address that the browser has asked, with a token behind it."""
    received = {}
    with ExitStack() as opened:
        streams = {
            host: opened.enter_context(
                root.client.stream("GET", f"{CONSOLE}/live", params={"of": f"{CONSOLE}/actors"}, headers={"Host": host})
            )
            for host in ("other.example", "here.example")
        }
        for host, stream in streams.items():
            received[host] = "".join(iter(stream.iter_lines().__next__, ""))
    for host, text in received.items():
        assert set(re.findall(r"https?://([a-z.]+)/auth", text)) == {host}


def test_a_command_to_copy_has_no_control_characters() -> None:
    reason = "it's \\ \x03\nrm -rf ~\r\x1b[31m\x9b \u2028 \U0001f600"
    press = DERIVED.presses["platform.pause_queue"]
    shown = command_of(press.operation.action, press.form, {"name": "default", "reason": reason}, "")
    assert shown.isprintable()
    words = subprocess.run(
        ["bash", "-c", f"{NAME}() {{ printf '%s\\n' \"${{@: -1}}\"; }}; {shown}"],
        env={"LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert words == f"{reason}\n"


def test_the_index_links_to_the_console(root: Browser) -> None:
    links = [each["href"] for each in httpx.get(root.url, headers={"Accept": "application/json"}).json()["links"]]
    assert CONSOLE in links


def test_refusals_are_pages(root: Browser) -> None:
    assert root.get(f"{CONSOLE}/nothing").status_code == 404
    assert root.get(f"{CONSOLE}/jobs/0190b3a0-0000-7000-8000-000000000001").status_code == 404
    assert root.get(f"{CONSOLE}/jobs/nonsense").status_code == 422
    assert root.post(f"{CONSOLE}/jobs").status_code == 405
    for wrong in ({"cursor": "x"}, {"limit": "0"}):
        refused = root.get(f"{CONSOLE}/jobs", **wrong)
        assert refused.status_code == 422
        assert f'role="alert">{next(iter(wrong))} ' in refused.text
    for of in ("", CONSOLE, "http://[", f"{CONSOLE}/nothing"):
        assert root.get(f"{CONSOLE}/live", of=of).status_code == 404
    assert root.client.get(f"{CONSOLE}/live").status_code == 404
    answer = root.client.post(f"{CONSOLE}/press/platform.pause_queue", json={})
    assert answer.status_code == 415
    assert answer.headers["content-type"].startswith("text/html")


def test_two_pages_of_one_name_are_refused() -> None:
    def listing(path: str) -> type[Any]:
        class Feature:
            @read(f"x.list_{path}", GET=path)
            async def list(self) -> Page[int]:
                """List things."""
                return Page([])

        return Feature

    assert set(Pages(operations([listing("/a/v1/things"), listing("/b/v1/others")]), denied).by_slug) == {
        "things",
        "others",
    }
    for path in ("/b/v1/things", "/b/v1/press"):
        with pytest.raises(InvalidDeclaration, match="two pages"):
            Pages(operations([listing("/a/v1/things"), listing(path)]), denied)
