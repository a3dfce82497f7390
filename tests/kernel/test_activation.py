"""Socket activation: the socket stays open while a process restarts, so no client is refused."""

import os
import signal
import time

from tests.conftest import TestDatabase, log_in
from tests.support.activation import Activation, listening
from tests.support.load import Load
from tests.support.project import Project

RESTARTS = int(os.environ.get("RELOADS", "2"))


def test_restarts_of_a_process_on_an_inherited_socket_refuse_and_lose_nothing(
    project: Project, database: TestDatabase
) -> None:
    with Activation(listening(), names="http") as activation:
        started = [project.start("run-auth-http", env={"PROCESS_DRAIN_DELAY": "200ms"}, activation=activation)]
        client = log_in(project, started[0])
        assert started[0].url() == f"http://127.0.0.1:{activation.sockets[0].getsockname()[1]}"

        def restart() -> None:
            for _ in range(RESTARTS):
                time.sleep(0.5)
                started[-1].signal(signal.SIGTERM)
                assert started[-1].wait() == 0
                started.append(project.start("run-auth-http", activation=activation))
                started[-1].ready()

        load = Load(started[0].url(), client.headers["authorization"].removeprefix("Bearer ")).during(restart)
    assert load.failed == []
    assert load.answered > 50
    found = database.all("SELECT name FROM auth.roles")
    assert len(found) == len(set(found)) == len(load.created)
