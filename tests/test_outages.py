"""What happens to requests, jobs and schedules while the database is away, frozen, full, read-only, or busy."""

import threading
from collections.abc import Iterator

import httpx
import psycopg
import pytest

from tests.conftest import TestDatabase, log_in, postgres_binaries
from tests.support.debian import debian_server
from tests.support.outages import OUTAGES, Fleet, endure
from tests.support.project import ROOT, Project, eventually
from tests.support.proxy import proxy_to

OUTAGE_S = 4.0
RATE = 12  # a second to each of three APIs; their pools and queues hold 20
BACK_S = 2.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All five processes, through one outage after the other."""
    with debian_server(postgres_binaries()) as server, proxy_to("127.0.0.1", server.port) as proxy:
        project = Project(ROOT, tmp_path_factory.mktemp("fleet"))
        try:
            yield Fleet.start(project, server, proxy)
        finally:
            project.end()


@pytest.mark.parametrize("name", OUTAGES)
def test_after_an_outage_every_process_serves_within_two_seconds_and_nothing_acknowledged_is_lost(
    fleet: Fleet, name: str
) -> None:
    verdict = endure(fleet, OUTAGES[name], OUTAGE_S, RATE)
    assert verdict.dead == []
    assert verdict.lost == []
    assert {process: s for process, s in verdict.back_s.items() if s > BACK_S} == {}
    if name != "forgotten":  # new connections work
        assert set(verdict.ready_meanwhile.values()) == {503}, verdict.ready_meanwhile
        assert verdict.answers["/auth/v1/roles 503"] > 0  # /auth/v1/me is answered from memory for some seconds
    assert {answer.rpartition(" ")[2] for answer in verdict.answers} <= {"200", "201", "503"}, verdict.answers
    assert verdict.answers["/auth/v1/roles 201"] > 0


def test_an_exhausted_pool_is_answered_fast_and_health_still_answers(project: Project, database: TestDatabase) -> None:
    waits = dict.fromkeys(("POSTGRES_POOL_TIMEOUT", "POSTGRES_LOCK_TIMEOUT", "POSTGRES_STATEMENT_TIMEOUT"), "25s")
    project.env |= {"POSTGRES_POOL_SIZE": "2", "POSTGRES_POOL_QUEUE": "2", **waits}
    running = project.start("run-auth-http")
    client = log_in(project, running)
    url, headers = running.url(), dict(client.headers)
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.get(f"{url}/auth/v1/me", headers=headers, timeout=60).status_code)

    with psycopg.connect(database.conninfo) as blocker:
        blocker.execute("LOCK TABLE auth.sessions IN ACCESS EXCLUSIVE MODE")
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) >= 16)
        assert httpx.get(f"{url}/health").status_code == 200
        refused = len(answers)  # at least two requests have a connection; the reporter may wait too
        blocker.rollback()
        for thread in threads:
            thread.join(20)
    assert answers == [503] * refused + [200] * (20 - refused)
    assert refused <= 18
    eventually(lambda: client.get("/auth/v1/me").status_code == 200)
