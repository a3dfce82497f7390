"""What a sign-in costs the database: statements, and how often it takes a connection from the pool."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.kernel.actions.compose import operations
from app.kernel.actions.operation import Call
from app.kernel.callers import Caller, Origin
from app.kernel.config import load
from app.kernel.db import postgres
from app.kernel.identifiers import uuid7
from app.kernel.process import Process
from app.modules.auth.domain.sessions import InvalidCredentials
from app.modules.auth.passwords import Passwords
from app.modules.auth.sign_in import Credentials, LoggedIn, SignIn
from app.processes import new_process, sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT

PASSWORD = "correct horse battery staple"
NOT_COUNTED = {"BEGIN", "COMMIT", "SELECT 1"}  # the last one probes a connection that was idle for a second


@dataclass
class Cost:
    """What was asked of the database since."""

    statements: list[str] = field(default_factory=list)
    checkouts: int = 0

    def clear(self) -> None:
        self.statements.clear()
        self.checkouts = 0


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Cost:
    cost = Cost()
    execute, take = postgres._Queries._execute, postgres.PostgresDatabase._alive

    async def counted_execute(self: Any, sql: Any, parameters: Any) -> Any:
        if sql not in NOT_COUNTED:
            cost.statements.append(sql)
        return await execute(self, sql, parameters)

    async def counted_take(self: Any, urgent: bool) -> Any:
        cost.checkouts += 1
        return await take(self, urgent)

    monkeypatch.setattr(postgres._Queries, "_execute", counted_execute)
    monkeypatch.setattr(postgres.PostgresDatabase, "_alive", counted_take)
    return cost


@pytest.fixture
async def process(database: TestDatabase) -> AsyncIterator[Process]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with new_process("run-auth-http", settings).opened() as p:
        yield p


class Client:
    """Signs in within this process."""

    def __init__(self, login: Any, cost: Cost) -> None:
        self._login = login
        self._cost = cost

    async def sign_in(self, username: str, password: str, address: str = "198.51.100.1") -> LoggedIn:
        self._cost.clear()
        caller = Caller(origin=Origin(address))
        return await self._login(Call(caller), Credentials(username, password))


@pytest.fixture
async def client(process: Process, database: TestDatabase, cost: Cost) -> Client:
    [login] = [operation for operation in await operations(process, [SignIn]) if operation.id == "auth.login"]
    hashed = await process.made[Passwords].hash(PASSWORD)
    database.run(
        "INSERT INTO auth.actors (id, type, username, username_key, password_hash)"
        " VALUES (%s, 'user', 'ann', 'ann', %s)",
        uuid7(),
        hashed,
    )
    return Client(login, cost)


async def test_a_sign_in_costs_six_statements_and_three_checkouts(client: Client, cost: Cost) -> None:
    for _ in range(2):
        assert (await client.sign_in("ann", PASSWORD)).actor.username == "ann"
        assert len(cost.statements) <= 6, cost.statements
        assert cost.checkouts <= 3


async def test_an_unknown_name_costs_what_a_wrong_password_costs(client: Client, cost: Cost) -> None:
    costs = []
    for number, username in enumerate(("ann", "nobody", "<>")):
        with pytest.raises(InvalidCredentials):  # elsewhere: the audit trail counts refusals of one address together
            await client.sign_in(username, "not this one", f"198.51.100.{number}")
        costs.append((list(cost.statements), cost.checkouts))
    assert costs[0][0]
    assert costs[0] == costs[1] == costs[2]
