"""Whatever can be guessed is counted before it is looked at, in all processes together."""

import base64
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress

import httpx
import psycopg
import pytest

from app.kernel.errors import RateLimited
from app.modules.auth.domain.limits import (
    LOCKED_FROM,
    REFUSED_FROM,
    REFUSED_FROM_ADDRESS,
    SPRAYED_FROM,
    Limit,
    limit_of_name,
    limit_of_password,
)
from app.modules.auth.domain.second_factor import totp
from app.modules.auth.postgres.limits import Limits
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.kernel.queue.conftest import Bench, bench
from tests.support.project import Project, eventually

__all__ = ["bench"]

USERNAME, PASSWORD = SUPERUSER
LOGIN, ME, TOKEN = "/auth/v1/login", "/auth/v1/me", "/oauth/token"
TOTP = f"{ME}/totp"
GUESSES = 40
REFUSED = {401, 429, 503}  # 503: on a slow machine the wait for a turn was too long
Ask = Callable[[httpx.Client, str], httpx.Response]


@pytest.fixture
def pair(project: Project, database: TestDatabase) -> list[httpx.Client]:
    """Clients of two processes, signed in as the superuser to both."""
    running = [project.start("run-auth-http", env={"HTTP_SERVER_TRUSTED_PROXIES": "127.0.0.1"}) for _ in range(2)]
    first = log_in(project, running[0])
    second = project.client(running[1].ready())
    second.headers = first.headers
    first.timeout = second.timeout = httpx.Timeout(60)
    return [first, second]


def forget(database: TestDatabase) -> None:
    database.run("DELETE FROM auth.limits")


def guessed(pair: list[httpx.Client], ask: Ask, wrong: Callable[[int], str], right: str) -> list[httpx.Response]:
    """Return the answers to many wrong guesses side by side, through both processes, and to the right one among them.

    The right one is sent when as many were answered as may be evaluated; an answer of 429 says that they were, too.
    """
    with ThreadPoolExecutor(GUESSES + 1) as threads:
        guesses = [threads.submit(ask, pair[number % 2], wrong(number)) for number in range(GUESSES)]
        answered = as_completed(guesses)
        for _ in range(LOCKED_FROM):
            next(answered)
        return [guess.result() for guess in [*guesses, threads.submit(ask, pair[0], right)]]


def code(answer: httpx.Response) -> str:
    return answer.json().get("code", "") if answer.content else ""


def enrolled(client: httpx.Client) -> tuple[bytes, list[str]]:
    pending = client.post(TOTP, json={"current_password": PASSWORD})
    assert pending.status_code == 200, pending.text
    secret = base64.b32decode(pending.json()["secret"])
    confirmed = client.post(f"{TOTP}/confirm", json={"otp": otp(secret)})
    assert confirmed.status_code == 200, confirmed.text
    return secret, confirmed.json()["recovery_codes"]


def of_superuser(database: TestDatabase) -> str:
    """Return the key under which failures of the superuser are counted."""
    return limit_of_name(USERNAME, database.all("SELECT id FROM auth.actors WHERE username = %s", USERNAME)[0][0])


def otp(secret: bytes) -> str:
    return totp(secret, int(time.time()) // 30)


def change(client: httpx.Client, guess: str, **more: str) -> httpx.Response:
    return client.put(f"{ME}/password", json={"current_password": guess, "new_password": "a much better one"} | more)


def sign_in(client: httpx.Client, password: str, username: str = USERNAME, **more: str) -> httpx.Response:
    return client.post(LOGIN, json={"username": username, "password": password} | more)


def test_guesses_side_by_side_do_not_outrun_a_limit(pair: list[httpx.Client], database: TestDatabase) -> None:
    def wrong(number: int) -> str:
        return f"not this one {number}"

    for ask in (change, sign_in):
        answers = guessed(pair, ask, wrong, PASSWORD)
        assert {answer.status_code for answer in answers} <= REFUSED, ask
        locked = database.all("SELECT hits, pending FROM auth.limits WHERE key = %s", of_superuser(database))
        assert LOCKED_FROM <= locked[0][0] <= REFUSED_FROM
        assert locked[0][1] == 0
        if ask is change:
            assert Counter(map(code, answers))["INVALID_CREDENTIALS"] <= LOCKED_FROM
        forget(database)

    # the first one-time password is guessed, too
    pending = pair[0].post(TOTP, json={"current_password": PASSWORD}).json()
    secret = base64.b32decode(pending["secret"])
    answers = guessed(pair, lambda c, g: c.post(f"{TOTP}/confirm", json={"otp": g}), "{:06}".format, otp(secret))
    assert Counter(answer.status_code for answer in answers) == {401: LOCKED_FROM, 429: GUESSES + 1 - LOCKED_FROM}
    forget(database)

    secret, recovery = enrolled(pair[0])
    with_otp: list[Ask] = [
        lambda c, g: change(c, PASSWORD, otp=g),
        lambda c, g: sign_in(c, PASSWORD, otp=g),
        lambda c, g: c.request("DELETE", TOTP, json={"current_password": PASSWORD, "otp": g}),
    ]
    for ask, right in zip(with_otp, recovery, strict=False):
        answers = guessed(pair, ask, "{:06}".format, right)
        assert {answer.status_code for answer in answers} <= REFUSED
        forget(database)
    unused = database.all("SELECT count(*) FROM auth.recovery_codes")
    assert unused == [(len(recovery),)], "a guess beyond the limit was looked at"


def test_another_name_does_not_start_the_count_anew(pair: list[httpx.Client]) -> None:
    own = f"/auth/v1/actors/{pair[0].get(ME).json()['actor']['id']}"
    answers: list[int] = []
    for ask in (change, lambda c, g: sign_in(c, g, c.get(ME).json()["actor"]["username"])):
        for number in range(LOCKED_FROM):
            assert pair[0].patch(own, json={"username": f"name-{number}"}).status_code == 200
            answers.append(ask(pair[0], f"not this one {number}").status_code)
    assert answers == [401] * 2 * LOCKED_FROM
    assert change(pair[1], PASSWORD).status_code == 429
    assert code(sign_in(pair[1], PASSWORD, f"name-{LOCKED_FROM - 1}")) == "INVALID_CREDENTIALS"


def test_the_right_password_many_times_at_once_is_no_guess(pair: list[httpx.Client], database: TestDatabase) -> None:
    sign_in(pair[0], "not this one")
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda number: sign_in(pair[number % 2], PASSWORD).status_code, range(24)))
    assert set(answers) <= {200, 503}, "one actor's sign-ins wait for each other, and no longer than for a lock"
    assert Counter(answers)[200] > LOCKED_FROM
    kept = database.all("SELECT split_part(key, ':', 2), hits, pending FROM auth.limits WHERE hits <> 0 ORDER BY key")
    assert kept == [("address", 1, 0), ("password", 1, 0), ("password", 1, 0)], "the failure, and the name it was for"


def from_address(client: httpx.Client, address: str, path: str, **sent: dict[str, str]) -> httpx.Response:
    return client.post(path, headers={"x-forwarded-for": address, "authorization": ""}, **sent)  # type: ignore[arg-type]


def test_one_password_for_many_names_is_noticed_and_refused(pair: list[httpx.Client], database: TestDatabase) -> None:
    for _ in range(3):  # a name counts once
        assert sign_in(pair[0], "Winter-2026!", "ann").status_code == 401
    forget(database)

    def spray(number: int) -> httpx.Response:
        body = {"username": f"name-{number}", "password": "Winter-2026!"}
        return from_address(pair[number % 2], f"198.51.100.{number}", LOGIN, json=body)

    with ThreadPoolExecutor(SPRAYED_FROM + 10) as threads:
        answers = Counter(answer.status_code for answer in threads.map(spray, range(SPRAYED_FROM + 10)))
    assert answers == {401: SPRAYED_FROM, 429: 10}
    noticed = "SELECT count FROM kernel.audit WHERE action = 'auth.password_spraying'"
    assert database.all(noticed) == [(1,)]
    refused = sign_in(pair[1], "Winter-2026!", "name-0")
    assert (refused.status_code, code(refused)) == (429, "RATE_LIMITED")
    assert 3000 < int(refused.headers["retry-after"]) <= 3600
    assert sign_in(pair[1], PASSWORD).status_code == 200
    stored = str(database.all("SELECT l::text FROM auth.limits l") + database.all("SELECT a::text FROM kernel.audit a"))
    assert "Winter" not in stored
    database.run("UPDATE auth.limits SET started_at = now() - interval '61 minutes'")
    assert sign_in(pair[1], "Winter-2026!", "name-0").status_code == 401


def test_a_name_that_could_not_be_counted_for_a_password_is_counted_later(
    pair: list[httpx.Client], database: TestDatabase
) -> None:
    guess = "Winter-2026!"
    assert sign_in(pair[0], "another one", "ann").status_code == 401
    with psycopg.connect(database.conninfo) as held:
        held.execute("SELECT FROM auth.limits WHERE key LIKE 'login:address:%%' FOR UPDATE", ())
        assert sign_in(pair[0], guess, "ann").status_code == 503
    assert sign_in(pair[1], guess, "ann").status_code == 401
    counted = "SELECT hits, pending FROM auth.limits WHERE key LIKE 'login:password:______' AND hits <> 0"
    assert database.all(counted) == [(1, 0), (1, 0)]


async def test_a_try_that_one_limit_refuses_counts_under_none(bench: Bench) -> None:
    limits, full = Limits(), Limit("full", 1)
    others = [Limit("a", 5), full, Limit("p", 5, once_for="ann")]
    first = await limits.reserve(bench.db, [full])
    with pytest.raises(RateLimited):
        await limits.reserve(bench.db, others)
    assert await bench.rows("SELECT key FROM auth.limits WHERE hits <> 0") == [("full",)]
    await limits.give_back(bench.db, first)
    tried = await limits.reserve(bench.db, others)
    assert [tried.tallies[limit.key].pending for limit in others] == [1, 1, 1]
    assert await bench.rows("SELECT hits FROM auth.limits WHERE key = 'p:ann'") == [(1,)]


async def test_tries_that_are_not_decided_do_not_pass_the_bound_from_which_a_name_is_locked(bench: Bench) -> None:
    limits, name = Limits(), [Limit("name", 4, locks_from=2)]
    tried = [await limits.reserve(bench.db, name) for _ in range(2)]
    with pytest.raises(RateLimited):
        await limits.reserve(bench.db, name)
    for one in tried:
        await limits.fail(bench.db, one)
    locked = [await limits.reserve(bench.db, name) for _ in range(2)]
    assert [one.tallies["name"].failed for one in locked] == [2, 2]
    with pytest.raises(RateLimited):
        await limits.reserve(bench.db, name)


def test_what_is_kept_of_a_failed_password_does_not_tell_what_it_was() -> None:
    key = limit_of_password(b"a secret", "pa\u0308ssword")
    assert key == limit_of_password(b"a secret", "p\u00e4ssword")
    assert len({key, limit_of_password(b"another", "p\u00e4ssword"), limit_of_password(b"a secret", "password")}) == 3
    assert len(bytes.fromhex(key.rpartition(":")[2])) * 8 == 24


def test_clients_are_limited_by_address_and_by_name_from_an_address(
    pair: list[httpx.Client], database: TestDatabase
) -> None:
    robot = pair[0].post("/auth/v1/actors", json={"type": "service_acc", "username": "robot"}).json()["id"]
    key = pair[0].post(f"/auth/v1/actors/{robot}/keys", json={"name": "k", "permissions": []}).json()["key"]

    def token(address: str, client_id: str, secret: str = "wrong", number: int = 0) -> httpx.Response:
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
        return from_address(pair[number % 2], address, TOKEN, data=form)

    def guesses(count: int, ask: Callable[[int], httpx.Response]) -> Counter[int]:
        with ThreadPoolExecutor(20) as threads:
            return Counter(answer.status_code for answer in threads.map(ask, range(count)))

    attacker, elsewhere = "198.51.100.1", "198.51.100.2"
    many = guesses(REFUSED_FROM_ADDRESS + 20, lambda n: token(attacker, f"client-{n}", number=n))
    assert many == {401: REFUSED_FROM_ADDRESS, 429: 20}
    one = guesses(REFUSED_FROM + 10, lambda n: token(elsewhere, "robot", number=n))
    assert one == {401: REFUSED_FROM, 429: 10}
    of_one_network = guesses(REFUSED_FROM + 5, lambda n: token(f"2001:db8::{n:x}", "robot", number=n))
    assert of_one_network == {401: REFUSED_FROM, 429: 5}
    limited = token(elsewhere, "robot", key)
    assert (limited.status_code, code(limited)) == (429, "RATE_LIMITED")
    assert 800 < int(limited.headers["retry-after"]) <= 900
    assert token("198.51.100.3", "robot", key).status_code == 200, "one address must not lock a client out of another"
    trail = "SELECT network, count FROM kernel.audit WHERE action = 'auth.oauth_client' ORDER BY id"
    assert [count for _, count in database.all(trail)] == [REFUSED_FROM_ADDRESS, REFUSED_FROM, REFUSED_FROM]
    assert [network for network, _ in database.all(trail)][:2] == [attacker, elsewhere]

    def introspect(number: int) -> httpx.Response:
        return from_address(
            pair[0], f"10.0.{number // 200}.{number % 200}", "/oauth/introspect", data={"token": f"{number}"}
        )

    assert guesses(400, introspect) == {401: 400}
    found = database.all("SELECT count(*), sum(count), max(count) FILTER (WHERE address = '') FROM kernel.audit"
                         " WHERE action = 'auth.oauth_client'")  # fmt: skip
    assert found[0][1] == REFUSED_FROM_ADDRESS + 2 * REFUSED_FROM + 400
    assert 251 <= found[0][0] <= 251 + 20  # as many as were noted at the same moment
    assert found[0][2] >= 100


def test_a_try_whose_process_died_counts_until_its_window_ends(
    pair: list[httpx.Client], database: TestDatabase
) -> None:
    name = of_superuser(database)
    database.run("INSERT INTO auth.limits (key, hits, pending) VALUES (%s, %s, %s) ON CONFLICT (key) DO UPDATE"
                 " SET hits = excluded.hits, pending = excluded.pending", name, LOCKED_FROM, LOCKED_FROM)  # fmt: skip
    undecided = sign_in(pair[0], PASSWORD)
    assert (undecided.status_code, code(undecided), undecided.headers["retry-after"]) == (429, "RATE_LIMITED", "1")
    assert change(pair[0], PASSWORD).status_code == 429
    database.run("UPDATE auth.limits SET started_at = now() - interval '16 minutes'")
    assert sign_in(pair[0], PASSWORD).status_code == 200


def test_a_wrong_guess_counts_even_if_its_refusal_cannot_be_noted(
    pair: list[httpx.Client], database: TestDatabase
) -> None:
    kept = "SELECT hits, pending FROM auth.limits WHERE key = %s"
    for number, ask in enumerate((sign_in, change), 1):
        with psycopg.connect(database.conninfo) as held:
            held.execute("LOCK TABLE kernel.audit")
            assert ask(pair[0], "not this one").status_code == 503
        assert database.all(kept, of_superuser(database)) == [(number, 0)]
    with psycopg.connect(database.conninfo) as held:
        held.execute("LOCK TABLE auth.actors")
        assert sign_in(pair[0], PASSWORD).status_code == 503
    assert database.all(kept, of_superuser(database)) == [(2, 0)], "an outage counts as a wrong guess"


def test_a_crowd_of_one_address_does_not_keep_another_from_signing_in(project: Project) -> None:
    running = project.start("run-auth-http", env={"HTTP_SERVER_TRUSTED_PROXIES": "127.0.0.1"})
    url = str(log_in(project, running).base_url)
    answers: list[int] = []

    def guess(number: int) -> None:
        body = {"username": f"invented-{number}", "password": f"not this one {number}"}
        with suppress(httpx.HTTPError):  # the process is killed when the test is over
            answers.append(httpx.post(f"{url}{LOGIN}", json=body, timeout=60).status_code)

    with ThreadPoolExecutor(150) as threads:
        crowd = [threads.submit(guess, number) for number in range(150)]
        eventually(lambda: answers.count(401) >= 3)
        waiting = answers.count(401)
        body = {"username": USERNAME, "password": PASSWORD}
        answer = httpx.post(f"{url}{LOGIN}", json=body, headers={"x-forwarded-for": "198.51.100.1"}, timeout=60)
        before = answers.count(401) - waiting
        running.popen.kill()
    assert all(guess.done() for guess in crowd)
    assert answer.status_code == 200, answer.text
    assert before < 20, f"{before} guesses were evaluated first"
    assert set(answers) <= REFUSED
