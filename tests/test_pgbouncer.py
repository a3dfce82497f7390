"""All processes behind a PgBouncer in transaction mode with few connections, under load and while it goes away."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.chaos.deployment import with_chaos_module
from tests.conftest import postgres_binaries, program
from tests.support.debian import debian_server
from tests.support.mixed import MixedLoad
from tests.support.outages import OUTAGES, Fleet, Outage, endure
from tests.support.pgbouncer import PgBouncer, pgbouncer
from tests.support.project import ROOT, Project
from tests.support.proxy import proxy_to

POOLED = 6  # sessions of the server, for seven pools of four
LOAD_S = 45.0  # `just pgbouncer` takes ten minutes
BACK_S = 4.0  # two on a machine that does nothing else
_OF_APP = "FROM pg_stat_activity WHERE datname = 'app' AND usename = 'app'"


@dataclass
class Deployment:
    """All processes, and what is between them and the server."""

    project: Project
    fleet: Fleet
    pooler: PgBouncer

    def mixed(self) -> MixedLoad:
        return MixedLoad(self.fleet, self.project)

    def sessions(self) -> list[tuple]:
        """Return how many sessions of the server came through PgBouncer, and which ones went round it."""
        servers = len([row for row in self.pooler.tell("SHOW SERVERS") if row[2] == "app"])
        direct = self.fleet.execute(f"SELECT split_part(application_name, '@', 1), count(*) {_OF_APP} GROUP BY 1")
        return [servers, *direct]


@contextmanager
def behind_pgbouncer(folder: Path) -> Iterator[Deployment]:
    with (
        debian_server(postgres_binaries()) as server,
        pgbouncer(server, default_pool_size=POOLED) as pooler,
        proxy_to("127.0.0.1", pooler.port) as proxy,
    ):
        project = with_chaos_module(Project(ROOT, folder), folder / "project")
        try:
            ours = {"CHAOS_JOURNAL": str(folder), "QUEUE_NAMES": "default,narrow", "QUEUE_CONCURRENCY": "5"}
            ours |= {"POSTGRES_POOL_QUEUE": "200"}
            fleet = Fleet.start(project, server, proxy, **pooler.direct, **ours)
            second = project.start("run-event-consumer")  # the first one has a queue of its own
            second.ready()
            # the others would only cost time
            fleet.execute("UPDATE kernel.schedules SET paused_at = now() WHERE name > 'chaos.tick_04'")
            yield Deployment(project, fleet, pooler)
            assert second.stop() == 0
        finally:
            project.end()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    program("pgbouncer")
    with behind_pgbouncer(tmp_path_factory.mktemp("pgbouncer")) as found:
        yield found


def test_mixed_load_through_a_small_pool_has_no_error(deployment: Deployment) -> None:
    load = deployment.mixed().run(LOAD_S)
    assert load.wrong == []
    rare = {what: count for what, count in load.done.items() if count < 10 and not what.startswith("app ")}
    assert rare == {}
    assert load.done["app migrate up"] > 1
    [through, *_] = deployment.sessions()
    assert 1 < through <= POOLED
    exposed = httpx.get(deployment.fleet.url("run-cron-manager") + "/metrics").text
    for port, most in ((deployment.fleet.server.port, "97.0"), (deployment.fleet.proxy.port, "1000.0")):
        assert f'db_server_connections{{server="127.0.0.1:{port}",state="max"}} {most}\n' in exposed


@contextmanager
def reloaded(fleet: Fleet, pooler: PgBouncer) -> Iterator[None]:
    """It reads its configuration anew."""
    assert pooler.process is not None
    os.kill(pooler.process.pid, signal.SIGHUP)
    yield


@contextmanager
def paused(fleet: Fleet, pooler: PgBouncer) -> Iterator[None]:
    """An operator pauses it, and resumes it after a while."""
    pooler.tell("PAUSE")
    yield
    pooler.tell("RESUME")


@contextmanager
def killed(fleet: Fleet, pooler: PgBouncer) -> Iterator[None]:
    """It is killed, and started again after a while."""
    pooler.end(signal.SIGKILL)
    yield
    pooler.start()


@contextmanager
def without_server(fleet: Fleet, pooler: PgBouncer) -> Iterator[None]:
    """The server behind it is stopped, and started again after a while."""
    with OUTAGES["stopped"](fleet):
        yield


@pytest.mark.parametrize("incident", [reloaded, paused, killed, without_server])
def test_after_an_incident_every_process_serves_as_after_an_outage(deployment: Deployment, incident: Outage) -> None:
    pooler = deployment.pooler
    verdict = endure(deployment.fleet, lambda fleet: incident(fleet, pooler), 3.5, 10)
    assert verdict.dead == []
    assert verdict.lost == []
    assert {process: s for process, s in verdict.back_s.items() if s > BACK_S} == {}
    expected = 200 if incident is reloaded else 503
    assert set(verdict.ready_meanwhile.values()) == {expected}, verdict.ready_meanwhile
    statuses = {answer.rpartition(" ")[2] for answer in verdict.answers}
    assert statuses <= ({"200", "201"} if incident is reloaded else {"200", "201", "503"}), verdict.answers
    assert verdict.answers["/auth/v1/roles 201"] > 0
