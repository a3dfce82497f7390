"""The skeleton, end to end."""

from tests.conftest import TestDatabase, log_in
from tests.support.project import Project, eventually


def test_one_command_serves_everything_a_superuser_signs_in_and_the_heartbeat_runs(
    project: Project, database: TestDatabase
) -> None:
    process = project.start("run-all-in-one")
    client = log_in(project, process)
    me = client.get("/auth/v1/me").json()
    assert me["actor"]["username"] == "root"
    assert me["permissions"] == ["auth:superuser"]
    alive = client.get("/platform/v1/processes").json()["items"]
    assert [(p["name"], p["pid"], p["worker"]) for p in alive] == [("run-all-in-one", process.pid, None)]
    assert 2e7 < alive[0]["memory_bytes"] < 1e9
    assert client.post("/auth/v1/logout").status_code == 204
    assert client.get("/auth/v1/me").json()["code"] == "SESSION_NOT_FOUND"
    assert process.stop() == 0
    assert eventually(lambda: database.all("SELECT count(*) FROM kernel.processes") == [(0,)])
