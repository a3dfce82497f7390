"""Sessions of browsers: how they begin, what names them, and when they end."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta

import httpx
import pytest

from app.kernel.actions.compose import make
from app.kernel.callers import Origin
from app.kernel.errors import Unauthenticated
from app.kernel.process import Process
from app.modules.auth.browser import BrowserSignIn
from app.modules.auth.domain.second_factor import InvalidOtp, recovery_hash
from app.modules.auth.domain.sessions import InvalidCredentials, SessionNotFound
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.browser import SESSION, Browser
from tests.support.project import ROOT, Project

USERNAME, PASSWORD = SUPERUSER
HERE = Origin(address="192.0.2.1", user_agent="a browser")


@pytest.fixture(scope="module")
def served(template: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TestDatabase]]:
    database = template.copy()
    project = Project(ROOT, tmp_path_factory.mktemp("browser"), {**database.env, "QUEUE_NAMES": "worked-on"})
    log_in(project, process := project.start("run-all-in-one"))
    yield process.url(), database
    project.end()


@pytest.fixture
def browsers(served: tuple[str, TestDatabase]) -> Iterator[Callable[[], Browser]]:
    with ExitStack() as opened:

        def another() -> Browser:
            made = Browser(served[0])
            opened.callback(made.client.close)
            return made

        yield another


@pytest.fixture
def browser(browsers: Callable[[], Browser]) -> Browser:
    made = browsers()
    made.sign_in(USERNAME, PASSWORD)
    return made


@pytest.fixture
async def sessions(process: Process) -> BrowserSignIn:
    return await make(process, BrowserSignIn)


async def superuser(sessions: BrowserSignIn, second_factor: str = "") -> None:
    """Make the superuser, with a recovery code as its second factor."""
    password_hash = await sessions.reauthenticate.passwords.hash(PASSWORD)
    sql = """
        INSERT INTO auth.actors (id, type, username, username_key, password_hash, is_superuser)
        VALUES (kernel.uuid7(), 'admin', %s, %s, %s, true) RETURNING id
    """
    row = await sessions.db.one(sql, (USERNAME, USERNAME, password_hash))
    assert row is not None
    if second_factor:
        sealed = sessions.second_factor.sealer.seal(b"1" * 20, str(row[0]))
        added = "INSERT INTO auth.totp (actor_id, secret, confirmed_at) VALUES (%s, %s, now())"
        await sessions.db.run(added, (row[0], sealed))
        codes = "INSERT INTO auth.recovery_codes (actor_id, code_hash) VALUES (%s, %s)"
        await sessions.db.run(codes, (row[0], recovery_hash(second_factor)))


async def lives(sessions: BrowserSignIn, token: str) -> bool:
    try:
        return bool((await sessions.find(HERE, token, is_active=False)).name)
    except SessionNotFound:
        return False


async def test_the_database_has_only_the_hash_of_a_token(sessions: BrowserSignIn) -> None:
    await superuser(sessions)
    token = (await sessions.sign_in(HERE, USERNAME, PASSWORD)).token
    assert len(token) >= 43  # 256 bits
    [(stored,)] = await sessions.db.all("SELECT browser_token FROM auth.sessions", ())
    assert len(stored) == 32
    assert token.encode() not in stored
    assert await lives(sessions, token)
    assert not await lives(sessions, stored.hex())


async def test_each_sign_in_and_each_proof_makes_another_token(sessions: BrowserSignIn) -> None:
    await superuser(sessions)
    first, second = [(await sessions.sign_in(HERE, USERNAME, PASSWORD)).token for _ in range(2)]
    proven = (await sessions.confirm(HERE, first, PASSWORD, None)).token
    assert len({first, second, proven}) == 3
    assert [await lives(sessions, token) for token in (first, second, proven)] == [False, True, True]
    with pytest.raises(SessionNotFound):
        await sessions.confirm(HERE, first, PASSWORD, None)


async def test_a_second_factor_is_asked_for_after_the_password_and_not_instead_of_it(sessions: BrowserSignIn) -> None:
    await superuser(sessions, "aaaaa-bbbbb-ccccc-ddddd")
    with pytest.raises(InvalidCredentials):
        await sessions.sign_in(HERE, USERNAME, "wrong")
    step = await sessions.sign_in(HERE, USERNAME, PASSWORD)
    assert not step.is_complete
    assert not await lives(sessions, step.token)
    assert PASSWORD not in step.token
    with pytest.raises(InvalidOtp):
        await sessions.second_step(HERE, step.token, "000000")
    for forged in ("", "x", step.token[:-4] + "AAAA", step.token[4:]):
        with pytest.raises(Unauthenticated):
            await sessions.second_step(HERE, forged, "aaaaa-bbbbb-ccccc-ddddd")
    done = await sessions.second_step(HERE, step.token, "aaaaa-bbbbb-ccccc-ddddd")
    assert await lives(sessions, done.token)
    with pytest.raises(InvalidOtp):  # each code is valid once
        await sessions.second_step(HERE, step.token, "aaaaa-bbbbb-ccccc-ddddd")


@pytest.mark.parametrize("later_s", [290, 310])
async def test_a_second_step_takes_five_minutes_at_most(
    sessions: BrowserSignIn, later_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await superuser(sessions, "aaaaa-bbbbb-ccccc-ddddd")
    step = await sessions.sign_in(HERE, USERNAME, PASSWORD)
    now = sessions.keyring.now()
    monkeypatch.setattr(sessions.keyring, "now", lambda: now + later_s)
    if later_s < 300:
        assert (await sessions.second_step(HERE, step.token, "aaaaa-bbbbb-ccccc-ddddd")).is_complete
    else:
        with pytest.raises(SessionNotFound):
            await sessions.second_step(HERE, step.token, "aaaaa-bbbbb-ccccc-ddddd")


async def test_a_new_password_ends_a_second_step(sessions: BrowserSignIn) -> None:
    await superuser(sessions, "aaaaa-bbbbb-ccccc-ddddd")
    step = await sessions.sign_in(HERE, USERNAME, PASSWORD)
    await sessions.db.run("UPDATE auth.actors SET password_hash = password_hash || ' '", ())
    with pytest.raises(SessionNotFound):
        await sessions.second_step(HERE, step.token, "aaaaa-bbbbb-ccccc-ddddd")


async def test_codes_are_limited_like_passwords(sessions: BrowserSignIn) -> None:
    await superuser(sessions, "aaaaa-bbbbb-ccccc-ddddd")
    step = await sessions.sign_in(HERE, USERNAME, PASSWORD)
    for _ in range(10):
        with pytest.raises(InvalidOtp):
            await sessions.second_step(HERE, step.token, "000000")
    with pytest.raises(InvalidOtp):  # locked: the right one is refused like a wrong one, and not used up
        await sessions.second_step(HERE, step.token, "aaaaa-bbbbb-ccccc-ddddd")
    await sessions.db.run("DELETE FROM auth.limits", ())
    assert (await sessions.second_step(HERE, step.token, "aaaaa-bbbbb-ccccc-ddddd")).is_complete


async def test_people_move_the_idle_limit_and_streams_do_not(sessions: BrowserSignIn) -> None:
    await superuser(sessions)
    token = (await sessions.sign_in(HERE, USERNAME, PASSWORD)).token
    limit = "SELECT idle_expires_at, expires_at FROM auth.sessions"
    earlier = "UPDATE auth.sessions SET rotated_at = now() - interval '2 minutes', idle_expires_at = now() + '1 hour'"
    await sessions.db.run(earlier, ())
    [before] = await sessions.db.all(limit, ())
    await sessions.find(HERE, token, is_active=False)
    assert await sessions.db.all(limit, ()) == [before]
    await sessions.find(HERE, token, is_active=True)
    [after] = await sessions.db.all(limit, ())
    assert after[0] - before[0] > timedelta(hours=1)
    assert after[0] <= after[1] == before[1]


@pytest.mark.parametrize("limit", ["idle_expires_at", "expires_at"])
async def test_a_session_ends_at_its_limits(sessions: BrowserSignIn, limit: str) -> None:
    await superuser(sessions)
    token = (await sessions.sign_in(HERE, USERNAME, PASSWORD)).token
    assert await lives(sessions, token)
    await sessions.db.run(f"UPDATE auth.sessions SET {limit} = now()", ())  # type: ignore[arg-type]
    assert not await lives(sessions, token)


async def test_a_service_account_cannot_sign_in(sessions: BrowserSignIn) -> None:
    await superuser(sessions)
    await sessions.db.run("UPDATE auth.actors SET type = 'service_acc'", ())
    with pytest.raises(InvalidCredentials):
        await sessions.sign_in(HERE, USERNAME, PASSWORD)


async def test_unknown_wrong_disabled_and_locked_are_refused_alike(sessions: BrowserSignIn) -> None:
    await superuser(sessions)
    said = set[str]()
    for name, password, before in [
        ("nobody", PASSWORD, ""),
        (USERNAME, "wrong", ""),
        (USERNAME, PASSWORD, "UPDATE auth.actors SET is_active = false"),
        (USERNAME, PASSWORD, "UPDATE auth.actors SET is_active = true"),
    ]:
        if before:
            await sessions.db.run(before, ())  # type: ignore[arg-type]
        if before.endswith("true"):
            await sessions.db.run("UPDATE auth.limits SET hits = 10 WHERE key LIKE 'login:actor:%%'", ())
        with pytest.raises(InvalidCredentials) as refused:
            await sessions.sign_in(HERE, name, password)
        said.add(f"{refused.value.code} {refused.value}")
    assert len(said) == 1


def test_a_planted_cookie_is_worth_nothing_before_and_after_the_sign_in(browsers: Callable[[], Browser]) -> None:
    browser = browsers()
    browser.plant("planted")
    assert browser.get("/console/me").headers["location"].startswith("/console/sign-in")
    browser.plant("planted")
    assert browser.sign_in(USERNAME, PASSWORD).status_code == 303
    assert browser.session not in ("", "planted")
    assert browser.get("/console/me").status_code == 200
    other = browsers()
    for planted in ("planted", browser.token):
        other.plant(planted)
        assert other.get("/console/me").status_code == 303


def test_a_cookie_is_for_this_host_only_and_out_of_reach_of_scripts(browsers: Callable[[], Browser]) -> None:
    browser = browsers()
    browser.get("/console/sign-in")
    answer = browser.post("/console/sign-in", username=USERNAME, password=PASSWORD)
    set_by = {line.partition("=")[0]: line for line in answer.headers.get_list("set-cookie")}
    _, *flags = set_by[SESSION].split("; ")
    assert flags == ["Path=/", "HttpOnly", "SameSite=Strict"]  # without Secure: plain HTTP in APP_ENV=test
    assert "Domain" not in answer.headers["set-cookie"]


def test_signing_out_ends_the_session_on_the_server(browser: Browser) -> None:
    token = browser.session
    assert browser.post("/console/sign-out").headers["location"] == "/console/sign-in"
    assert not browser.session
    browser.plant(token)
    assert browser.get("/console/me").status_code == 303


def test_signing_out_everywhere_ends_the_other_sessions(browser: Browser, browsers: Callable[[], Browser]) -> None:
    other = browsers()
    other.sign_in(USERNAME, PASSWORD)
    assert other.get("/console/me").status_code == 200
    browser.post("/console/sign-out", everywhere="1")
    assert other.get("/console/me").status_code == 303


@pytest.mark.parametrize(
    "ended",
    [
        "UPDATE auth.sessions SET ended_at = now()",
        "UPDATE auth.actors SET is_active = false WHERE username = 'root'",
    ],
)
def test_an_ended_session_and_a_disabled_actor_are_out_at_the_next_request(
    browser: Browser, served: tuple[str, TestDatabase], ended: str
) -> None:
    assert browser.get("/console/jobs").status_code == 200
    served[1].run(ended)
    assert browser.get("/console/jobs").headers["location"] == "/console/sign-in?next=%2Fconsole%2Fjobs"
    assert browser.press("platform.pause_queue", name="default").status_code == 303
    served[1].run("UPDATE auth.actors SET is_active = true")
    assert served[1].all("SELECT count(*) FROM kernel.audit WHERE action = 'platform.pause_queue'") == [(0,)]


def test_the_session_of_a_browser_is_in_the_list_and_ends_over_the_api(
    browser: Browser, served: tuple[str, TestDatabase]
) -> None:
    with httpx.Client(base_url=served[0]) as client:
        answer = client.post("/auth/v1/login", json={"username": USERNAME, "password": PASSWORD}).json()
        client.headers["Authorization"] = f"Bearer {answer['session']['access_token']}"
        [(session,)] = served[1].all(
            "SELECT id FROM auth.sessions WHERE browser_token IS NOT NULL AND ended_at IS NULL ORDER BY id DESC LIMIT 1"
        )
        listed = client.get("/auth/v1/me/sessions").json()["items"]
        assert str(session) in [each["id"] for each in listed]
        assert client.delete(f"/auth/v1/me/sessions/{session}").status_code == 204
    assert browser.get("/console/me").status_code == 303


@pytest.mark.parametrize(("ago_s", "is_asked"), [(590, False), (610, True)])
def test_a_dangerous_change_needs_a_proof_of_the_last_ten_minutes(
    browser: Browser,
    browsers: Callable[[], Browser],
    served: tuple[str, TestDatabase],
    ago_s: int,
    is_asked: bool,
) -> None:
    name = f"role {ago_s} {time.time_ns()}"
    served[1].run("UPDATE auth.sessions SET confirmed_at = now() - %s * interval '1 second'", ago_s)
    answer = browser.press("auth.create_role", name=name)
    made = "SELECT count(*) FROM auth.roles WHERE name = %s"
    assert served[1].all(made, name) == [(int(not is_asked),)]
    assert ('name="_password"' in answer.text) is is_asked
    if not is_asked:
        return
    assert name in answer.text  # what was filled in is still there
    assert browser.press("auth.create_role", name=name, _password="wrong").status_code == 422
    assert served[1].all(made, name) == [(0,)]
    before = browser.session
    assert browser.press("auth.create_role", name=name, _password=PASSWORD).status_code == 303
    assert served[1].all(made, name) == [(1,)]
    assert browser.session != before
    assert browser.get("/console/roles").status_code == 200
    old = browsers()
    old.plant(before)
    assert old.get("/console/roles").status_code == 303


def test_what_is_not_dangerous_needs_no_new_proof(browser: Browser, served: tuple[str, TestDatabase]) -> None:
    served[1].run("UPDATE auth.sessions SET confirmed_at = now() - interval '1 hour'")
    assert browser.press("platform.trigger_schedule", name="platform.heartbeat").status_code == 303


def test_a_proof_includes_the_second_factor(browser: Browser, served: tuple[str, TestDatabase]) -> None:
    served[1].run(
        "INSERT INTO auth.totp (actor_id, secret, confirmed_at)"
        " SELECT id, '\\x00', now() FROM auth.actors WHERE username = 'root'"
    )
    served[1].run("UPDATE auth.sessions SET confirmed_at = now() - interval '1 hour'")
    try:
        answer = browser.press("auth.create_role", name="never")
        assert 'name="_code"' in answer.text
        assert served[1].all("SELECT count(*) FROM auth.roles WHERE name = 'never'") == [(0,)]
    finally:
        served[1].run("DELETE FROM auth.totp")
