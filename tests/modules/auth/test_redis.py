"""Two processes under load on Redis with a replica and Sentinel, while it is frozen, killed, full, flushed and back.

Slower, never wrong: a session that was ended is not accepted, no limit is exceeded, and no request waits twice.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import pytest

from app.modules.auth.domain.limits import REFUSED_FROM
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project, Running, eventually
from tests.support.valkey import Valkey, sentinel, servers

TIMEOUT_S = 1.0
LOGIN, LOGOUT, ME = "/auth/v1/login", "/auth/v1/logout", "/auth/v1/me"
IN_FLIGHT = 4
"""Attempts that may be pending when Redis is lost: two hashes in each of two processes."""

REQUESTS_AT_ONCE = 2
"""To one process: one of the load, and one of the test."""


@dataclass
class Load:
    """Requests of one session to all processes, whose memory is emptied ten times a second."""

    urls: list[str]
    token: str
    conninfo: str
    answers: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, url: str) -> None:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {self.token}"}, timeout=20) as client:
            while not self.ended.wait(0.01):
                started = time.monotonic()
                self.answers[client.get(ME).status_code] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def forget(self) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            while not self.ended.wait(0.1):
                connection.execute("NOTIFY kernel_cache")

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.ask, args=(url,)) for url in self.urls]
        threads.append(threading.Thread(target=self.forget))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join(30)


@pytest.fixture
def valkeys(tmp_path: Path) -> Iterator[list[Valkey]]:
    """A primary, its replica and a Sentinel."""
    with servers() as found:
        found.append(Valkey(tmp_path / "primary"))
        found.append(Valkey(tmp_path / "replica", ["--replicaof", f"127.0.0.1 {found[0].port}"]))
        found.append(sentinel(tmp_path / "sentinel", found[0]))
        yield found


def degraded(process: Running) -> dict[str, str]:
    answer = httpx.get(f"{process.url()}/ready", timeout=10)
    assert answer.status_code == 200
    return answer.json().get("degraded", {})


def test_whatever_becomes_of_redis_answers_stay_right(
    project: Project, database: TestDatabase, valkeys: list[Valkey]
) -> None:
    primary, replica, watcher = valkeys
    project.env["REDIS_URL"] = f"redis+sentinel://127.0.0.1:{watcher.port}/main"
    project.env["REDIS_TIMEOUT"] = f"{TIMEOUT_S:g}s"
    running = [project.start("run-auth-http") for _ in range(2)]
    root = log_in(project, running[0])
    urls = [process.ready() for process in running]
    user = {"username": "user", "password": SUPERUSER[1]}
    assert root.post("/auth/v1/actors", json={"type": "user", **user}).status_code == 201
    load = Load(urls, root.headers["authorization"].removeprefix("Bearer "), database.conninfo)
    client = httpx.Client(timeout=30)
    project.clients.append(client)
    delays: dict[str, float] = {}
    guesses: Counter[int] = Counter()

    def lost() -> bool:
        return all("redis" in degraded(process) for process in running)

    def used() -> bool:
        return not any(degraded(process) for process in running)

    def revoke(phase: str) -> None:
        """End a session in one process; the other one remembers it until then."""
        session = client.post(f"{urls[0]}{LOGIN}", json=user).json()["session"]
        headers = {"authorization": f"Bearer {session['access_token']}"}
        for url in urls:
            assert client.get(f"{url}{ME}", headers=headers).status_code == 200
        assert client.post(f"{urls[0]}{LOGOUT}", headers=headers).status_code == 204
        started = time.monotonic()
        assert client.get(f"{urls[0]}{ME}", headers=headers).status_code == 401, phase
        while client.get(f"{urls[1]}{ME}", headers=headers).status_code != 401:
            assert time.monotonic() - started < 3, phase
        delays[phase] = time.monotonic() - started

    def guess(count: int) -> None:
        for number in range(count):
            given = {"username": "victim", "password": f"wrong {time.monotonic()}"}
            guesses[client.post(f"{urls[number % 2]}{LOGIN}", json=given).status_code] += 1

    def flush() -> None:
        replica.thaw()
        replica.ask("FLUSHALL")

    def fill() -> None:
        replica.ask("CONFIG", "SET", "maxmemory", "1mb", "maxmemory-policy", "noeviction")

    phases: list[tuple[str, Callable[[], object], Callable[[], bool]]] = [
        ("at first", lambda: None, used),
        ("failed over", primary.kill, lambda: used() and "master" in str(replica.ask("ROLE"))),
        ("frozen", replica.freeze, lost),
        ("back and flushed", flush, used),
        ("full", fill, lost),
        ("killed", replica.kill, lost),
    ]
    with load.running():
        for phase, change, settled in phases:
            change()
            revoke(f"{phase}, at once")
            guess(6)
            eventually(settled)
            revoke(phase)
    assert set(load.answers) == {200}
    assert load.answers[200] > 100
    assert guesses[401] <= REFUSED_FROM + IN_FLIGHT
    assert guesses[401] + guesses[429] == sum(guesses.values())
    assert guesses[401] >= REFUSED_FROM
    print(load.answers, f"slowest {load.slowest_s:.3f} s", guesses, {k: round(v * 1000) for k, v in delays.items()})
    for process in running:
        told = [line for line in process.messages() if line.startswith("Redis at")]
        kinds = ["available" in line for line in told]
        assert kinds == [number % 2 == 1 for number in range(len(kinds))], "one line for each change"
        metrics = httpx.get(f"{process.url()}/metrics", timeout=10).text
        assert 'redis_client_available{server="main of ' in metrics
        waited = re.findall(
            r'^redis_client_operation_duration_seconds_count{.*outcome="failed".*} (\S+)', metrics, re.MULTILINE
        )
        assert sum(map(float, waited)) <= REQUESTS_AT_ONCE * kinds.count(False), "a request waited for Redis twice"
        assert 'cache_lookups_total{cache="auth.callers.redis",outcome="hit"}' in metrics
