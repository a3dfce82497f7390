"""What operators do, on a real database in this process."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import pytest

from app.kernel.config import load
from app.kernel.operations import Caller, Origin
from app.kernel.process import Process
from app.modules.platform import wiring
from app.processes import sections
from tests.conftest import TestDatabase
from tests.kernel.queue.conftest import Bench, bench  # noqa: F401 - a fixture
from tests.support.project import ROOT

NOBODY = UUID("0190b3a0-0000-7000-8000-000000000001")
OPERATOR = Caller(origin=Origin(request_id="by-an-operator"))


@dataclass
class Operator:
    """The use cases of operators."""

    jobs: wiring.JobControl
    queues: wiring.QueueControl
    dead_letters: wiring.DeadLetterControl
    schedules: wiring.ScheduleControl
    events: wiring.EventControl
    test: TestDatabase

    def audited(self) -> list[tuple]:
        return self.test.all("SELECT action, target FROM kernel.audit WHERE request_id = 'by-an-operator' ORDER BY id")


@pytest.fixture
async def operator(bench: Bench) -> AsyncIterator[Operator]:  # noqa: F811
    settings = load(ROOT, sections(), {"APP_ENV": "test", **bench.test.env})
    async with Process("test", settings, ROOT).opened() as p:
        yield Operator(
            await p.use(wiring.jobs),
            await p.use(wiring.queues),
            await p.use(wiring.dead_letters),
            await p.use(wiring.schedules),
            await p.use(wiring.events),
            bench.test,
        )
