"""Passwords: which are taken, how they are compared, and what becomes of them."""

import base64
import functools
import re
import statistics
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString

import httpx
import psycopg
import pytest
from argon2 import PasswordHasher
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from app.modules.auth.domain.actors import WeakPassword
from app.modules.auth.domain.second_factor import totp
from app.modules.auth.passwords import Passwords
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project, eventually

USERNAME, PASSWORD = SUPERUSER
LOGIN, ME = "/auth/v1/login", "/auth/v1/me"
TOTP = f"{ME}/totp"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    hashing = Passwords(1, ["Acme", "acme-cloud"])
    yield hashing
    hashing.close()


COMPOSITIONS = ["zqmxwvkj", "ZQMXWVKJ", "91730462858", "    x    ", "\u5bc6\u7801" * 4, "\U0001f40e" * 8, "-._~!@#$"]


@pytest.mark.parametrize("password", [*COMPOSITIONS, "x" * 64, "x" * 256])
def test_passwords_of_any_composition_are_taken(passwords: Passwords, password: str) -> None:
    assert passwords.checked(password, "ann") == password


def test_three_thousand_of_the_most_used_passwords_are_refused(passwords: Passwords) -> None:
    long_enough = [password for password in FREQUENCY_LISTS["passwords"] if len(password) >= 8]
    assert len(long_enough) > 3000
    for password in (*long_enough, long_enough[0].upper()):
        with pytest.raises(WeakPassword):
            passwords.checked(password, "ann")


def test_words_that_anybody_would_guess_do_not_count(passwords: Passwords) -> None:
    for guessable in ("Acme-2026!", "ACMEacmeACME", "acme-cloud-acme", "my-acme-", "cloudACME"):
        with pytest.raises(WeakPassword, match="besides the names"):
            passwords.checked(guessable, "ann")
    assert passwords.checked("acme, horse and cart", "ann")


def test_the_words_are_those_of_the_settings(project: Project) -> None:
    root = log_in(project, project.start("run-auth-http", env={"AUTH_PASSWORD_WORDS": "Initech, tps"}))
    answer = root.put(f"{ME}/password", json={"current_password": PASSWORD, "new_password": "initech-tps-1"})
    assert (answer.status_code, answer.json()["code"]) == (422, "WEAK_PASSWORD")


def log_in_with(client: httpx.Client, password: str, username: str = USERNAME) -> httpx.Response:
    return client.post(LOGIN, json={"username": username, "password": password})


def test_an_unknown_name_takes_as_long_as_a_wrong_password(project: Project) -> None:
    client = log_in(project, project.start("run-auth-http"))
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(7):
        for known, name in ((True, USERNAME), (False, f"nobody-{number}")):
            started = time.perf_counter()
            assert log_in_with(client, "not this one", name).status_code == 401
            took[known].append(time.perf_counter() - started)
    known, unknown = statistics.median(took[True]), statistics.median(took[False])
    assert known / 2 < unknown < known * 2


def test_a_password_is_compared_as_it_was_typed_and_whole(project: Project) -> None:
    client = log_in(project, project.start("run-auth-http"))
    new = " P\u00e4ssphrase with Spaces " + "x" * 232
    assert len(new) == 256
    changed = client.put(f"{ME}/password", json={"current_password": PASSWORD, "new_password": new})
    assert changed.status_code == 204, changed.text
    for other in (
        new[:-1],
        new[:-1] + "y",
        new[:72],
        new.swapcase(),
        new.strip(),
        new + "x",
        new.replace("\u00e4", "a"),
    ):
        assert log_in_with(client, other).status_code == 401, other
    assert log_in_with(client, new).status_code == 200
    assert log_in_with(client, unicodedata.normalize("NFD", new)).status_code == 200, "the same text, typed elsewhere"


def test_a_password_made_with_weaker_parameters_is_hashed_anew_when_it_is_used(
    project: Project, database: TestDatabase
) -> None:
    client = log_in(project, project.start("run-auth-http"))
    weaker = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    database.run("UPDATE auth.actors SET password_hash = %s", weaker)

    def stored() -> str:
        return database.all("SELECT password_hash FROM auth.actors")[0][0]

    assert log_in_with(client, "not this one").status_code == 401
    assert stored() == weaker
    assert log_in_with(client, PASSWORD).status_code == 200
    renewed = stored()
    today = PasswordHasher()
    assert re.match(rf"\$argon2id\$v=19\$m={today.memory_cost},t={today.time_cost},p={today.parallelism}\$", renewed)
    assert log_in_with(client, PASSWORD).status_code == 200
    assert stored() == renewed, "hashed anew although its parameters are today's"


def test_a_password_does_not_expire(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    database.run("UPDATE auth.actors SET created_at = 'epoch', updated_at = 'epoch', last_active_at = 'epoch'")
    assert log_in_with(client, PASSWORD).status_code == 200


def meanwhile(
    database: TestDatabase, request: Callable[[], httpx.Response], change: str, *held_by: LiteralString
) -> httpx.Response:
    """Return the answer to a request, with a change made while it waits: before it writes, unless said otherwise."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(database.conninfo) as held, ThreadPoolExecutor(1) as thread:
        for statement in held_by or ("SELECT FROM auth.actors FOR UPDATE", "SELECT FROM auth.totp FOR UPDATE"):
            held.execute(statement)
        answer = thread.submit(request)
        eventually(lambda: database.all(waiting) == [(1,)], every=0.01)
        held.execute(change)
        held.commit()
        return answer.result()


@pytest.mark.parametrize("change", ["password_hash = 'another'", "is_active = false"])
def test_what_changes_while_a_password_is_verified_counts(
    project: Project, database: TestDatabase, change: str
) -> None:
    client = log_in(project, project.start("run-auth-http"))
    before = database.all("SELECT count(*) FROM auth.sessions")
    answer = meanwhile(database, lambda: log_in_with(client, PASSWORD), f"UPDATE auth.actors SET {change}")
    assert (answer.status_code, answer.json()["code"]) == (401, "INVALID_CREDENTIALS")
    assert database.all("SELECT count(*) FROM auth.sessions") == before


def test_a_second_factor_that_is_turned_on_while_a_password_is_verified_counts(
    project: Project, database: TestDatabase
) -> None:
    client = log_in(project, project.start("run-auth-http"))
    before = database.all("SELECT count(*) FROM auth.sessions")
    held = "SELECT FROM auth.limits FOR UPDATE"  # after the account was read
    change = "INSERT INTO auth.totp (actor_id, secret, confirmed_at) SELECT id, '', now() FROM auth.actors"
    answer = meanwhile(database, lambda: log_in_with(client, PASSWORD), change, held)
    assert (answer.status_code, answer.json()["code"]) == (401, "INVALID_CREDENTIALS")
    assert database.all("SELECT count(*) FROM auth.sessions") == before


def test_a_password_is_not_changed_by_a_session_that_ends_meanwhile(project: Project, database: TestDatabase) -> None:
    client = log_in(project, project.start("run-auth-http"))
    wanted = {"current_password": PASSWORD, "new_password": "of whoever took it over"}
    ends = "UPDATE auth.sessions SET ended_at = now()"
    answer = meanwhile(database, lambda: client.put(f"{ME}/password", json=wanted), ends)
    assert (answer.status_code, answer.json()["code"]) == (401, "SESSION_NOT_FOUND")
    assert log_in_with(client, PASSWORD).status_code == 200


def test_a_second_factor_is_not_changed_by_a_session_that_ends_meanwhile(
    project: Project, database: TestDatabase
) -> None:
    client = log_in(project, project.start("run-auth-http"))
    current = {"current_password": PASSWORD}
    secret = base64.b32decode(client.post(TOTP, json=current).json()["secret"])
    kept = "SELECT secret, confirmed_at FROM auth.totp"
    before = database.all(kept)
    for method, path in (("POST", TOTP), ("POST", f"{TOTP}/confirm"), ("DELETE", TOTP)):
        body = {"otp": totp(secret, int(time.time()) // 30)} if path != TOTP else current
        request = functools.partial(client.request, method, path, json=body)
        answer = meanwhile(database, request, "UPDATE auth.sessions SET ended_at = now()")
        assert (answer.status_code, answer.json()["code"]) == (401, "SESSION_NOT_FOUND"), (method, path)
        assert database.all(kept) == before
        database.run("UPDATE auth.sessions SET ended_at = NULL")


def test_nobody_can_sign_in_until_an_operator_makes_somebody(project: Project, database: TestDatabase) -> None:
    client = project.client(project.start("run-auth-http").ready())
    assert database.all("SELECT count(*) FROM auth.actors") == [(0,)]
    for name in ("root", "admin", "sa", "app", "test"):
        assert log_in_with(client, name, name).status_code == 401
