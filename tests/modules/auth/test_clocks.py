"""Processes whose clocks are minutes off: the database's clock counts, so nobody notices."""

import base64
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.modules.auth.domain.second_factor import totp
from tests.conftest import SUPERUSER, TestDatabase, log_in, required
from tests.support.project import ROOT, Project

OFF = {"right": "+0", "fast": "+5m", "slow": "-5m"}
LIMITS = {"AUTH_ACCESS_TOKEN_TTL": "60s", "AUTH_SESSION_IDLE": "120s", "AUTH_SESSION_LIFETIME": "180s"}
CREDENTIALS = dict(zip(("username", "password"), SUPERUSER, strict=True))
WITHIN = timedelta(seconds=45)


@pytest.fixture(scope="module")
def database(template: TestDatabase) -> TestDatabase:
    return template.copy()


@pytest.fixture(scope="module")
def processes(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """Auth processes over one database, whose clocks differ; the superuser exists."""
    preload = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None) or required("faketime")
    project = Project(ROOT, tmp_path_factory.mktemp("clocks"), database.env | LIMITS)
    try:
        fake = {"LD_PRELOAD": str(preload), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
        started = {name: project.start("run-auth-http", env={**fake, "FAKETIME": off}) for name, off in OFF.items()}
        log_in(project, started["right"])
        yield {name: project.client(process.ready()) for name, process in started.items()}
    finally:
        project.end()


def sign_in(client: httpx.Client, **more: str) -> dict[str, Any]:
    answer = client.post("/auth/v1/login", json={**CREDENTIALS, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["session"]


def bearer(session: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {session['access_token']}"}


def test_the_clocks_differ(processes: dict[str, httpx.Client]) -> None:
    said = {name: client.get("/health").headers["date"] for name, client in processes.items()}
    at = {name: datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC) for name, date in said.items()}
    assert at["fast"] - at["right"] > timedelta(minutes=4)
    assert at["right"] - at["slow"] > timedelta(minutes=4)


@pytest.mark.parametrize("issuer", OFF)
def test_a_session_of_one_process_is_good_in_every_other(processes: dict[str, httpx.Client], issuer: str) -> None:
    session = sign_in(processes[issuer])
    for name, client in processes.items():
        assert client.get("/auth/v1/me", headers=bearer(session)).status_code == 200, name
    now = datetime.now(UTC)
    expires = datetime.fromisoformat(session["access_token_expires_at"])
    assert timedelta() < expires - now < timedelta(seconds=60) + WITHIN
    assert timedelta() < datetime.fromisoformat(session["refresh_token_expires_at"]) - now < timedelta(seconds=165)


def test_refreshing_at_any_process_rotates_and_a_lost_answer_is_repeated(processes: dict[str, httpx.Client]) -> None:
    def refresh(name: str, token: str) -> dict[str, Any]:
        answer = processes[name].post("/auth/v1/refresh", json={"refresh_token": token})
        assert answer.status_code == 200, (name, answer.text)
        return answer.json()

    token = sign_in(processes["right"])["refresh_token"]
    for first, second in itertools.permutations(OFF, 2):
        rotated = refresh(first, token)
        assert refresh(second, token)["refresh_token"] == rotated["refresh_token"]
        assert processes[first].get("/auth/v1/me", headers=bearer(rotated)).status_code == 200
        token = rotated["refresh_token"]


@pytest.mark.parametrize("name", OFF)
def test_a_process_with_another_clock_ends_what_is_over_and_nothing_else(
    processes: dict[str, httpx.Client], database: TestDatabase, name: str
) -> None:
    def refreshed(change: str) -> str:
        session = sign_in(processes["right"])
        client = processes[name]
        if "rotated_at" in change:
            assert client.post("/auth/v1/refresh", json={"refresh_token": session["refresh_token"]}).status_code == 200
        database.run(f"UPDATE auth.sessions SET {change} WHERE id = '{session['id']}'")
        answer = client.post("/auth/v1/refresh", json={"refresh_token": session["refresh_token"]})
        return answer.json().get("code", "refreshed")

    assert refreshed("rotated_at = now() - interval '11 s'") == "REFRESH_TOKEN_REUSED"
    assert refreshed("rotated_at = now() - interval '1 s'") == "refreshed"
    assert refreshed("idle_expires_at = now() - interval '1 s'") == "REFRESH_TOKEN_EXPIRED"
    assert refreshed("expires_at = now() + interval '20 s'") == "refreshed"


def test_one_time_passwords_and_keys_go_by_the_same_clock(
    processes: dict[str, httpx.Client], database: TestDatabase
) -> None:
    session = sign_in(processes["right"])
    made = processes["fast"].post(
        "/auth/v1/actors", headers=bearer(session), json={"type": "service_acc", "username": "robot"}
    )
    keys = f"/auth/v1/actors/{made.json()['id']}/keys"
    for name, client in processes.items():
        asked = {"name": name, "permissions": [], "expires_in_days": 1}
        key = client.post(keys, headers=bearer(session), json=asked).json()
        left = datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
        assert timedelta(days=1) - WITHIN < left <= timedelta(days=1, seconds=1)
        form = {"grant_type": "client_credentials", "client_id": "robot", "client_secret": key["key"]}
        granted = client.post("/oauth/token", data=form).json()
        assert {c.get("/auth/v1/me", headers=bearer(granted)).status_code for c in processes.values()} == {200}

    proof = {"current_password": SUPERUSER[1]}
    started = processes["slow"].post("/auth/v1/me/totp", headers=bearer(session), json=proof)
    key = base64.b32decode(started.json()["secret"])
    step = int(datetime.now(UTC).timestamp()) // 30
    confirmed = processes["fast"].post(
        "/auth/v1/me/totp/confirm", headers=bearer(session), json={"otp": totp(key, step)}
    )
    assert confirmed.status_code == 200, confirmed.text
    database.run("UPDATE auth.totp SET last_step = 0")  # as if time had passed: a later step may not have begun yet
    assert sign_in(processes["slow"], otp=totp(key, step))
    assert sign_in(processes["fast"], otp=totp(key, step + 1))
