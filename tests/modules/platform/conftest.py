"""What operators do, on a real database in this process."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from app.kernel.actions.compose import handlers, make, operations
from app.kernel.actions.operation import ActionOperation, Call
from app.kernel.callers import Caller, Origin
from app.kernel.config import load
from app.kernel.queue import Handler
from app.kernel.queue.canaries import CanaryAdmin
from app.modules import modules
from app.modules.platform.canaries import Canaries
from app.processes import new_process, sections
from tests.conftest import TestDatabase
from tests.kernel.queue.conftest import Bench, bench  # noqa: F401 - a fixture
from tests.support.project import ROOT

NOBODY = UUID("0190b3a0-0000-7000-8000-000000000001")
OPERATOR = Caller(origin=Origin(request_id="by-an-operator"))


class Acting:
    """The actions of one feature, by the names of their methods."""

    def __init__(self, found: list[ActionOperation]) -> None:
        self._found = {operation.method: operation for operation in found}

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        def act(*given: Any) -> Awaitable[Any]:
            caller = given[0] if given and isinstance(given[0], Caller) else OPERATOR
            rest = [argument for argument in given if not isinstance(argument, Caller)]
            return self._found[name](Call(caller), *rest)

        return act


@dataclass
class Operator:
    """The actions of operators."""

    jobs: Acting
    queues: Acting
    dead_letters: Acting
    schedules: Acting
    events: Acting
    canaries: Acting
    steps: CanaryAdmin
    runs_canaries: list[Handler]
    test: TestDatabase

    def audited(self) -> list[tuple]:
        return self.test.all("SELECT action, target FROM kernel.audit WHERE request_id = 'by-an-operator' ORDER BY id")


@pytest.fixture
async def operator(bench: Bench) -> AsyncIterator[Operator]:  # noqa: F811
    settings = load(ROOT, sections(), {"APP_ENV": "test", **bench.test.env})
    [platform] = [module for module in modules() if module.name == "platform"]
    async with new_process("test", settings).opened() as p:
        found = [
            Acting(await operations(p, [kind for kind in platform.feature_classes(group) if kind is not Canaries]))
            for group in ("jobs", "queues", "dead-letters", "schedules", "events")
        ]
        canaries = Acting(await operations(p, [Canaries]))
        yield Operator(*found, canaries, await make(p, CanaryAdmin), await handlers(p, [Canaries]), bench.test)
