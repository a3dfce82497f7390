"""The skeleton, end to end."""

from app.kernel.actions.compose import queues
from app.kernel.backup import QUEUE
from app.processes import PROCESSES
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


def test_only_a_process_with_a_backup_agent_works_on_the_queue_of_backups_and_needs_what_its_jobs_need() -> None:
    for name, spec in PROCESSES.items():
        consumed = {
            queue
            for service in spec.services
            if service.name == "consumer"
            for kind in service.needs()
            for queue in queues(kind)
        }
        has_agent = any(service.name == "backup agent" for service in spec.services)
        assert (QUEUE in consumed) == has_agent, name
        assert name != "run-backup-agent" or consumed == {QUEUE}
        assert (name == "run-event-consumer") <= ("default" in consumed)


def test_a_backup_agent_without_a_target_says_that_it_does_nothing(project: Project, database: TestDatabase) -> None:
    process = project.start("run-backup-agent", env={"BACKUP_TARGET": ""})
    process.ready()
    assert "backup.target is not set: no backup is taken, and no WAL is stored" in process.messages()
    assert process.stop() == 0
