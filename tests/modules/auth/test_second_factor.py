"""Authenticator apps and recovery codes."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import pytest

from app.modules.auth.domain.second_factor import Totp, matching_step, recovery_hash, totp
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project

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
    fresh = Totp(SECRET, is_confirmed=True, last_step=0)
    for near in (step - 1, step, step + 1):
        assert matching_step(fresh, totp(SECRET, near), now) == near
    for wrong in (totp(SECRET, step - 2), totp(SECRET, step + 2), "", "12345", "\u0660" * 6):
        assert matching_step(fresh, wrong, now) is None
    assert matching_step(Totp(SECRET, is_confirmed=True, last_step=step), totp(SECRET, step), now) is None
    assert matching_step(Totp(SECRET, is_confirmed=True, last_step=step), totp(SECRET, step - 1), now) is None


def test_recovery_codes_are_read_however_they_are_typed() -> None:
    assert recovery_hash("abcd-efgh") == recovery_hash(" ABCDEFGH ") != recovery_hash("abcd-efgi")


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
    confirmed = client.post(f"{TOTP}/confirm", json={"otp": current(secret)})
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
    assert code(client.get("/auth/v1/verify", params={"permission": "platform:audit:read"})) == (
        403,
        "PERMISSION_DENIED",
    )
    assert client.get("/auth/v1/verify").headers["x-auth-permissions"] == ""
    assert httpx.get(client.base_url.join("/auth/v1/verify")).status_code == 401
