"""SIGTERM while a handler runs: its job is finished, or handed back, and never both or neither."""

import signal

import pytest

from app.kernel.queue import Task
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.postgres import PostgresEvents
from tests.chaos.deployment import CONSUMER, Deployment
from tests.chaos.load import database_of
from tests.chaos.module.jobs import GATED, GATED_TX, Work
from tests.support.project import Running, eventually

LONG_LEASE = {"QUEUE_LEASE": "60s"}  # whatever happens here does not happen because a lease has run out


async def begun(deployment: Deployment, task: Task[Work], **env: str) -> Running:
    """Return a worker in the midst of a handler, which goes on when the gate is removed."""
    gate(deployment, closed=True)
    worker = deployment.start(CONSUMER, **LONG_LEASE, **env)
    worker.ready()
    async with database_of(deployment) as db:
        await Queue(PostgresEvents()).enqueue(db, task, Work(1))
    eventually(lambda: [run for run in deployment.runs() if run.kind == task.name])
    return worker


def gate(deployment: Deployment, *, closed: bool) -> None:
    file = deployment.journals / "gate"
    if closed:
        file.touch()
    else:
        file.unlink()


def done(deployment: Deployment) -> tuple[int, int, int]:
    """Return how many effects, finished and unfinished jobs there are."""
    ((found),) = deployment.database.all(
        """
        SELECT (SELECT count(*) FROM chaos.effects), count(*) FILTER (WHERE outcome = 'done'),
            (SELECT count(*) FROM kernel.jobs WHERE task LIKE 'chaos.%%')
        FROM kernel.finished_jobs WHERE task LIKE 'chaos.%%'
        """
    )
    return found


@pytest.mark.parametrize("task", [GATED, GATED_TX], ids=["at_least_once", "tx"])
async def test_a_job_that_ends_within_the_grace_is_finished(deployment: Deployment, task: Task[Work]) -> None:
    worker = await begun(deployment, task)
    worker.signal(signal.SIGTERM)
    eventually(lambda: "SIGTERM: draining" in worker.messages())
    gate(deployment, closed=False)
    assert worker.wait() == 0
    assert done(deployment) == (1, 1, 0)


@pytest.mark.parametrize("task", [GATED, GATED_TX], ids=["at_least_once", "tx"])
async def test_a_job_that_takes_longer_than_the_grace_is_handed_back(deployment: Deployment, task: Task[Work]) -> None:
    worker = await begun(deployment, task, PROCESS_GRACE="500ms")
    worker.signal(signal.SIGTERM)
    worker.wait()
    assert f"1 jobs were cut and handed back: {task.name}" in worker.messages()
    assert done(deployment) == (0, 0, 1)
    sql = "SELECT state, attempt, rescues, lease_token, leased_by FROM kernel.jobs WHERE task = %s"
    assert deployment.database.all(sql, task.name) == [("ready", 0, 0, None, None)]
    another = deployment.start(CONSUMER, **LONG_LEASE)
    eventually(lambda: [run for run in deployment.runs() if run.pid == another.pid])
    gate(deployment, closed=False)
    eventually(lambda: done(deployment) == (1, 1, 0))
    assert another.stop() == 0
    assert [(run.pid, run.effective) for run in deployment.runs()] == [(worker.pid, False), (another.pid, True)]
