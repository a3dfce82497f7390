"""What happens to requests while the database is away, frozen, or busy."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import psycopg
import pytest

from tests.conftest import Holder, TestDatabase, log_in
from tests.support.project import Project, eventually

OUTAGE_S = 20.0
BOUND_S = 3.0


@contextmanager
def stopped(holder: Holder) -> Iterator[None]:
    """The server is stopped, cleanly, and started again."""
    holder.stop()
    yield
    holder.start()


@contextmanager
def frozen(holder: Holder) -> Iterator[None]:
    """Every process of the server stands still: connections stay open, nothing answers."""
    postmaster = psutil.Process(holder.server.postmaster())
    everything = [postmaster, *postmaster.children(recursive=True)]
    for process in everything:
        process.send_signal(signal.SIGSTOP)
    yield
    for process in everything:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("outage", [stopped, frozen])
def test_an_outage_is_answered_503_within_bounds_and_heals_by_itself(
    cli: Project, own_database: TestDatabase, own_holder: Holder, outage
) -> None:
    cli.env |= own_database.env
    running = cli.start("run-auth-http")
    client = log_in(cli, running)
    url, headers = running.url(), dict(client.headers)
    seen: Counter[int | str] = Counter()
    slowest = Counter[str]()
    without_retry_after: list[str] = []
    finished, during = threading.Event(), threading.Event()

    def load() -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=10) as mine:
            while not finished.is_set():
                for path in ("/auth/v1/me", "/health", "/ready"):
                    started = time.monotonic()
                    answer = mine.get(path)
                    took_ms = round((time.monotonic() - started) * 1000)
                    slowest[path] = max(slowest[path], took_ms)
                    if during.is_set() and path != "/health":
                        seen[f"{path} {answer.status_code}"] += 1
                    if path == "/health" and answer.status_code != 200:
                        seen["bad health"] += 1
                    if answer.status_code == 503 and "retry-after" not in answer.headers:
                        without_retry_after.append(path)
                    elif answer.status_code not in (200, 503):
                        seen[f"unexpected {path} {answer.status_code}"] += 1

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    with outage(own_holder):
        eventually(lambda: httpx.get(f"{url}/ready", timeout=10).status_code == 503, BOUND_S)
        during.set()
        time.sleep(OUTAGE_S)  # the length of the outage, not a wait for something
        during.clear()
    eventually(lambda: client.get("/auth/v1/me").status_code == 200, 10)
    eventually(lambda: client.get("/ready").status_code == 200, 10)
    finished.set()
    for thread in threads:
        thread.join(20)
    assert running.popen.poll() is None
    assert seen.keys() == {"/auth/v1/me 503", "/ready 503"}, seen
    assert without_retry_after == []
    assert slowest["/auth/v1/me"] < BOUND_S * 1000, slowest
    assert slowest["/ready"] < BOUND_S * 1000, slowest
    assert slowest["/health"] < 1000, slowest
    assert running.stop() == 0


def test_an_exhausted_pool_is_answered_fast_and_health_still_answers(project: Project, database: TestDatabase) -> None:
    project.env |= {"POSTGRES_POOL_SIZE": "2", "POSTGRES_POOL_QUEUE": "2"}
    running = project.start("run-auth-http")
    client = log_in(project, running)
    url, headers = running.url(), dict(client.headers)
    answers: list[tuple[int, float]] = []

    def ask() -> None:
        started = time.monotonic()
        answer = httpx.get(f"{url}/auth/v1/me", headers=headers, timeout=10)
        answers.append((answer.status_code, time.monotonic() - started))

    with psycopg.connect(database.conninfo) as blocker:
        blocker.execute("LOCK TABLE auth.sessions IN ACCESS EXCLUSIVE MODE")
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) >= 10)
        started = time.monotonic()
        assert httpx.get(f"{url}/health").status_code == 200
        assert time.monotonic() - started < 0.5
        for thread in threads:
            thread.join(20)
        blocker.rollback()
    assert {status for status, _ in answers} == {503}
    assert sum(took < 1 for _, took in answers) >= 14, "more than the pool and its queue had to wait"
    assert max(took for _, took in answers) < BOUND_S
    eventually(lambda: client.get("/auth/v1/me").status_code == 200)
