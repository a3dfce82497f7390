"""The operations endpoint: on the port of the API, or on its own, so that the public port has nothing internal."""

import signal

import httpx
import pytest

from app.processes import PROCESSES
from tests.conftest import TestDatabase
from tests.support.debian import free_port
from tests.support.project import Project, Running, eventually

SEPARATE = {"OPERATIONS_EXPOSE": "separate", "OPERATIONS_PORT": "0"}
INTERNAL = ("/metrics", "/docs", "/openapi.json")


def statuses(url: str, *paths: str) -> list[int]:
    return [httpx.get(url + path).status_code for path in paths]


def linked(url: str) -> set[str]:
    """Return the links of the page at /, which the listener must serve."""
    found = {link["href"] for link in httpx.get(url).json()["links"]}
    assert [httpx.get(url + path, follow_redirects=True).status_code for path in found] == [200] * len(found)
    return found


def addresses(running: Running) -> tuple[str, str]:
    return running.url(listener="http"), running.url(listener="operations")


@pytest.mark.parametrize("name", [name for name, spec in PROCESSES.items() if spec.listens == "http_server"])
def test_with_a_separate_operations_endpoint_the_public_port_has_nothing_internal(
    project: Project, database: TestDatabase, name: str
) -> None:
    running = project.start(name, env={**SEPARATE, "PROCESS_DRAIN_DELAY": "2s"})
    public, operations = addresses(running)
    assert public != operations
    eventually(lambda: statuses(public, "/ready") == [200])
    assert statuses(public, *INTERNAL) == [404, 404, 404]
    assert statuses(operations, *INTERNAL) == [200, 200, 200]
    [module] = name.removeprefix("run-").split("-")[:1]
    api = "/platform/v1/queues" if module == "platform" else "/auth/v1/me"
    assert statuses(public, api) == [401]
    assert statuses(operations, api, "/nothing") == [404, 404]
    assert linked(public) == {"/health", "/ready"} | ({"/console"} if name != "run-auth-http" else set())
    assert linked(operations) == {"/health", "/ready", *INTERNAL}
    assert httpx.get(f"{public}/health").json() == {"status": "ok"}
    assert httpx.get(f"{operations}/health").json() == {"status": "ok", "process": name}
    for path in ("/health", "/ready"):
        assert httpx.post(public + path).status_code == 405
    metrics = httpx.get(f"{operations}/metrics").text
    assert 'http_server_connections{listener="http",state="max"}' in metrics
    assert 'http_server_connections{listener="operations",state="max"} 50.0' in metrics
    # app health asks where the details are
    done = project.app("health", "--ready")
    assert f"{name} on port {operations.rpartition(':')[2]}: ready" in done.stdout
    running.signal(signal.SIGTERM)
    eventually(lambda: statuses(public, "/ready") == [503])
    assert httpx.get(f"{public}/ready").json() == {"status": "not ready"}
    answer = httpx.get(f"{operations}/ready")
    assert (answer.status_code, answer.json()["missing"]) == (503, {"process": "stopping"})
    assert running.wait() == 0


def test_by_default_an_api_has_it_on_its_own_port_only(project: Project, database: TestDatabase) -> None:
    running = project.start("run-platform-http", env={"OPERATIONS_PORT": str(free_port())})
    url = running.ready()
    assert statuses(url, *INTERNAL) == [200, 200, 200]
    assert linked(url) == {"/health", "/ready", "/console", *INTERNAL}
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "process": "run-platform-http"}
    assert [line["listener"] for line in running.logs() if "url" in line] == ["http"]


def test_two_processes_of_a_machine_cannot_have_one_operations_port(project: Project, database: TestDatabase) -> None:
    port = str(free_port())
    env = {**SEPARATE, "OPERATIONS_PORT": port}
    project.start("run-auth-http", env=env).url(listener="http")
    done = project.app("run-platform-http", "--port", "0", env=env)
    assert done.returncode == 69
    assert done.stderr.splitlines() == [
        f"app: port {port} on 127.0.0.1 is in use; choose another with operations.port",
        f"hint: export OPERATIONS_PORT={int(port) + 1}",
    ]
