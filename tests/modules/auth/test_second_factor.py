"""Authenticator apps and recovery codes."""

import base64
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import formatdate

import httpx
import pytest

from app.modules.auth.domain.second_factor import (
    Totp,
    matching_step,
    new_recovery_code,
    new_secret,
    recovery_hash,
    totp,
)
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project, eventually

SECRET = b"12345678901234567890"
LOGIN, TOTP = "/auth/v1/login", "/auth/v1/me/totp"
USERNAME, PASSWORD = SUPERUSER


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_one_time_passwords_are_those_of_the_standard(seconds: int, expected: str) -> None:
    assert totp(SECRET, seconds // 30) == expected[-6:]  # RFC 6238, appendix B, has eight digits


def test_a_password_works_one_step_early_or_late_and_never_twice() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    step = int(now.timestamp()) // 30
    fresh, used = (Totp(SECRET, is_confirmed=True, last_step=last, now=now) for last in (0, step))
    for near in (step - 1, step, step + 1):
        assert matching_step(fresh, totp(SECRET, near)) == near
    for wrong in (totp(SECRET, step - 2), totp(SECRET, step + 2), "", "12345", "\u0660" * 6):
        assert matching_step(fresh, wrong) is None
    assert matching_step(used, totp(SECRET, step)) is None
    assert matching_step(used, totp(SECRET, step - 1)) is None


SPACES = ["\n", "\t", "\u00a0", "\u2009", "\u200b", "\ufeff", "\u2066"]
SPELLINGS = ["{0} {1}", " {0}{1}", *(f"{{0}}{space}{{1}}{space}" for space in SPACES)]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_password_is_read_however_it_is_typed(spelling: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    step = int(now.timestamp()) // 30
    right = totp(SECRET, step)
    wide = right.translate({48 + n: 0xFF10 + n for n in range(10)})
    for digits in (right, wide):
        assert matching_step(Totp(SECRET, True, 0, now), spelling.format(digits[:3], digits[3:])) == step
    for wrong in (f"{right}0", f"{right[:3]}-{right[3:]}", f"{right[:3]}.{right[3:]}", right[:5], f"+{right}"):
        assert matching_step(Totp(SECRET, True, 0, now), wrong) is None


def test_recovery_codes_are_read_however_they_are_typed() -> None:
    assert recovery_hash("abcd-efgh") == recovery_hash(" ABCDEFGH ") != recovery_hash("abcd-efgi")
    assert recovery_hash("abcd-efgh") == recovery_hash("abcd efgh\u200b\n") == recovery_hash("ab cd - ef gh")


def test_secrets_and_recovery_codes_are_all_the_system_s_random_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: bytes(range(size)))
    assert new_secret() == bytes(range(20))
    # 120 bits: enough that a plain hash of it cannot be searched
    assert base64.b32decode(new_recovery_code().replace("-", "").upper()) == bytes(range(15))


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def sign_in(client: httpx.Client, otp: str | None = None) -> httpx.Response:
    return client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD} | ({"otp": otp} if otp else {}))


def current(secret: bytes, offset: int = 0) -> str:
    return totp(secret, int(time.time()) // 30 + offset)


def enrol(client: httpx.Client, database: TestDatabase) -> tuple[bytes, list[str]]:
    pending = client.post(TOTP, json={"current_password": PASSWORD})
    assert pending.status_code == 200, pending.text
    secret = base64.b32decode(pending.json()["secret"])
    otp = current(secret)
    confirmed = client.post(f"{TOTP}/confirm", json={"otp": f"{otp[:3]} {otp[3:]}"})
    assert confirmed.status_code == 200, confirmed.text
    database.run("UPDATE auth.totp SET last_step = 0")  # as if time had passed
    return secret, confirmed.json()["recovery_codes"]


def test_a_second_factor_is_enrolled_asked_for_and_removed(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    assert code(client.post(TOTP, json={"current_password": "wrong"})) == (401, "INVALID_CREDENTIALS")
    assert code(client.post(f"{TOTP}/confirm", json={"otp": "123456"})) == (409, "NO_SECOND_FACTOR")
    pending = client.post(TOTP, json={"current_password": PASSWORD}).json()
    assert pending["otpauth_uri"].startswith("otpauth://totp/app%3Aroot?secret=")
    assert code(client.post(f"{TOTP}/confirm", json={"otp": "000000"})) == (401, "INVALID_CREDENTIALS")
    assert sign_in(client).status_code == 200, "an unconfirmed second factor must not lock anybody out"

    secret, recovery = enrol(client, database)
    assert len(set(recovery)) == 10
    assert code(client.post(TOTP, json={"current_password": PASSWORD})) == (409, "SECOND_FACTOR_EXISTS")
    assert code(sign_in(client)) == (401, "OTP_REQUIRED")
    wrong = client.post(LOGIN, json={"username": USERNAME, "password": "wrong", "otp": current(secret)})
    assert code(wrong) == (401, "INVALID_CREDENTIALS")
    assert code(sign_in(client, "000000")) == (401, "INVALID_CREDENTIALS")

    otp = current(secret)
    assert sign_in(client, otp).status_code == 200
    assert code(sign_in(client, otp)) == (401, "INVALID_CREDENTIALS"), "replayed"
    assert sign_in(client, recovery[0].upper()).status_code == 200
    assert code(sign_in(client, recovery[0])) == (401, "INVALID_CREDENTIALS"), "replayed"

    remove = {"current_password": PASSWORD}
    assert code(client.request("DELETE", TOTP, json=remove)) == (401, "OTP_REQUIRED")
    assert code(client.request("DELETE", TOTP, json=remove | {"otp": "000000"})) == (401, "INVALID_CREDENTIALS")
    assert client.request("DELETE", TOTP, json=remove | {"otp": recovery[1]}).status_code == 204
    assert sign_in(client).status_code == 200
    stored = str(database.all("SELECT t::text FROM auth.totp t UNION ALL SELECT c::text FROM auth.recovery_codes c"))
    trail = str(database.all("SELECT a::text FROM kernel.audit a"))
    for shown in (base64.b32encode(secret).decode(), *recovery, otp, PASSWORD):
        assert shown not in stored + trail


def test_of_many_sign_ins_with_one_password_at_once_one_succeeds(project: Project, database: TestDatabase) -> None:
    running = project.start("run-auth-http")
    client = log_in(project, running)
    secret, recovery = enrol(client, database)
    for once in (current(secret), recovery[0]):
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda otp: sign_in(client, otp).status_code, [once] * 6))
        assert sorted(answers) == [200, 401, 401, 401, 401, 401]


def test_guessing_one_time_passwords_locks_the_name(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    secret, _ = enrol(client, database)
    for guess in range(10):
        assert sign_in(client, f"{guess:06}").status_code == 401
    assert code(sign_in(client, current(secret))) == (401, "INVALID_CREDENTIALS")


def test_a_proxy_is_told_whether_and_for_whom_a_request_is(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    me = client.get("/auth/v1/me").json()["actor"]
    answer = client.get("/auth/v1/verify", params={"permission": "platform:audit:read"})
    assert answer.status_code == 200
    assert answer.headers["x-auth-actor-id"] == me["id"]
    assert answer.headers["x-auth-actor-type"] == "admin"
    assert answer.headers["x-auth-permissions"] == "auth:superuser"
    database.run("UPDATE auth.actors SET is_superuser = false")
    wanted = {"permission": "platform:audit:read"}

    def refused() -> tuple[int, str] | None:
        """Return how, or None while the caller of before is remembered: for at most a minute, unless notified."""
        answer = client.get("/auth/v1/verify", params=wanted)
        return code(answer) if answer.is_client_error else None

    assert eventually(refused) == (403, "PERMISSION_DENIED")
    assert client.get("/auth/v1/verify").headers["x-auth-permissions"] == ""
    assert httpx.get(client.base_url.join("/auth/v1/verify")).status_code == 401


def test_the_time_of_a_client_does_not_count(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    secret, _ = enrol(client, database)
    an_hour_ago = time.time() - 3600
    old = {"username": USERNAME, "password": PASSWORD, "otp": totp(secret, int(an_hour_ago) // 30)}
    dated = client.post(LOGIN, json=old, headers={"date": formatdate(an_hour_ago, usegmt=True)})
    assert code(dated) == (401, "INVALID_CREDENTIALS")
    assert code(client.post(LOGIN, json=old | {"time": an_hour_ago})) == (422, "INVALID_INPUT")
    assert sign_in(client, current(secret)).status_code == 200


def test_turning_a_second_factor_on_or_off_ends_the_other_sessions(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    other = project.client(str(client.base_url))
    other.headers["Authorization"] = f"Bearer {sign_in(client).json()['session']['access_token']}"
    secret, recovery = enrol(client, database)
    assert (client.get("/auth/v1/me").status_code, code(other.get("/auth/v1/me"))) == (200, (401, "SESSION_NOT_FOUND"))
    session = sign_in(client, current(secret)).json()["session"]
    other.headers["Authorization"] = f"Bearer {session['access_token']}"
    assert other.get("/auth/v1/me").status_code == 200
    removed = client.request("DELETE", TOTP, json={"current_password": PASSWORD, "otp": recovery[0]})
    assert removed.status_code == 204, removed.text
    assert (client.get("/auth/v1/me").status_code, code(other.get("/auth/v1/me"))) == (200, (401, "SESSION_NOT_FOUND"))


def test_changing_the_password_asks_for_the_second_factor_too(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    secret, _ = enrol(client, database)
    wanted = {"current_password": PASSWORD, "new_password": "a much better one"}
    assert code(client.put("/auth/v1/me/password", json=wanted)) == (401, "OTP_REQUIRED")
    assert code(client.put("/auth/v1/me/password", json=wanted | {"otp": "000000"})) == (401, "INVALID_CREDENTIALS")
    assert database.all("SELECT hits FROM auth.limits WHERE key LIKE 'login:actor:%%'") == [(1,)]
    otp = current(secret)
    assert client.put("/auth/v1/me/password", json=wanted | {"otp": otp}).status_code == 204
    again = wanted | {"current_password": "a much better one", "otp": otp}
    assert code(client.put("/auth/v1/me/password", json=again)) == (401, "INVALID_CREDENTIALS"), "replayed"


def test_a_reset_password_leaves_the_second_factor_which_an_operator_can_remove(
    project: Project, database: TestDatabase
) -> None:
    client = log_in(project, project.start("run-auth-http"))
    secret, _ = enrol(client, database)
    new = {"username": USERNAME, "password": "a much better one"}
    reset = project.app("auth", "reset-password", "--username", USERNAME, "--password-stdin", stdin=new["password"])
    assert reset.returncode == 0, reset.stderr
    assert code(client.post(LOGIN, json=new)) == (401, "OTP_REQUIRED")
    signed_in = client.post(LOGIN, json=new | {"otp": current(secret)})
    assert signed_in.status_code == 200
    client.headers["Authorization"] = f"Bearer {signed_in.json()['session']['access_token']}"

    remove = ("auth", "reset-second-factor", "--username")
    assert project.app(*remove, "nobody").returncode == 67
    removed = project.app(*remove, USERNAME.upper())
    assert removed.stdout == f"removed the second factor of {USERNAME}; 1 sessions ended\n"
    assert client.get("/auth/v1/me").status_code == 401
    assert client.post(LOGIN, json=new).status_code == 200
    assert database.all("SELECT count(*) FROM auth.recovery_codes") == [(0,)]
    again = project.app(*remove, USERNAME)
    assert (again.returncode, again.stderr) == (73, f"app: {USERNAME} has no second factor\n")
    trail = database.all("SELECT count(*) FROM kernel.audit WHERE action = 'auth.reset_second_factor'")
    assert trail == [(1,)]
