"""Actions: what follows from a declaration."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from annotated_types import Len

from app.commands.once import run_once
from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.actions.commands import add_commands
from app.kernel.actions.compose import MissingProvider, Providers, check, handlers, make, operations, value
from app.kernel.actions.operation import ActionOperation, Call
from app.kernel.config import load
from app.kernel.errors import Conflict
from app.kernel.http.openapi import openapi
from app.kernel.process import Process
from app.kernel.product import NAME
from app.kernel.providers import PROVIDERS
from app.kernel.queue import Handler
from app.modules import modules
from app.processes import new_process, sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT

FEATURES = [(module, kind) for module in modules() for kind in module.feature_classes()]


class Taken(Conflict):
    code = "NAME_TAKEN"
    title = "The name is taken"


@dataclass(frozen=True, slots=True)
class Ref:
    """A thing."""

    name: Annotated[str, Len(1, 10), Doc("Name of the thing.")]


class Clock:
    """Something that a provider makes."""

    now = "noon"


@dataclass(frozen=True, slots=True)
class Inner:
    """Something that is made of its fields."""

    clock: Clock


@dataclass(frozen=True, slots=True)
class Things:
    """Things."""

    inner: Inner

    @change("things.add", POST="/things/{name}/add", permission="things:write", raises=(Taken,))
    async def add(self, tx: Transaction, ref: Ref, note: Note) -> str:
        """Add a thing."""
        await tx.run("CREATE TABLE IF NOT EXISTS things (name text)")
        await tx.run("INSERT INTO things VALUES (%s)", (ref.name,))
        if ref.name == "taken":
            raise Taken("there is one")
        note.details["at"] = self.inner.clock.now
        note.recorded = ref.name != "same"
        return ref.name

    @read("things.count", GET="/things/count")
    async def count(self, db: Database, caller: Caller) -> list[str]:
        """Count the things."""
        return [str(await db.one("SELECT count(*) FROM things")), caller.origin.address]

    async def plain(self) -> None:
        """No action."""


@dataclass(frozen=True, slots=True)
class Needy:
    """A feature that nothing can make."""

    inner: Inner
    port: int


@pytest.fixture
async def process(database: TestDatabase) -> AsyncIterator[Process]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    providers: Providers = {**PROVIDERS, Clock: lambda _: value(Clock())}
    async with Process("test", settings, ROOT, providers).opened() as p:
        yield p


def named(found: list[ActionOperation], action_id: str) -> ActionOperation:
    [operation] = [operation for operation in found if operation.id == action_id]
    return operation


async def test_a_change_is_recorded_in_its_transaction_and_a_refused_one_leaves_nothing(
    process: Process, database: TestDatabase
) -> None:
    add = named(await operations(process, [Things]), "things.add")
    assert await add(Call(Caller()), Ref("first")) == "first"
    with pytest.raises(Taken):
        await add(Call(Caller()), Ref("taken"))
    await add(Call(Caller()), Ref("same"))
    assert database.all("SELECT name FROM things") == [("first",), ("same",)]
    assert database.all("SELECT action, target, details FROM kernel.audit") == [("things.add", "first", {"at": "noon"})]


async def test_a_read_is_given_the_database_and_the_caller(process: Process) -> None:
    found = await operations(process, [Things])
    await named(found, "things.add")(Call(Caller()), Ref("one"))
    count = named(found, "things.count")
    caller = Caller()
    assert await count(Call(caller)) == ["(1,)", ""]


async def test_an_action_is_a_method_that_a_test_calls(process: Process) -> None:
    things = Things(Inner(Clock()))
    db = await make(process, Database)
    async with db.begin() as tx:
        note = Note()
        assert await things.add(tx, Ref("mine"), note) == "mine"
    assert note.details == {"at": "noon"}


async def test_what_a_class_needs_is_made_once_and_replaced_by_one_line(process: Process) -> None:
    assert await make(process, Inner) is await make(process, Inner)
    later = type("Later", (Clock,), {"now": "late"})()
    async with Process(
        "test", process.settings, ROOT, {**process.providers, Clock: lambda _: value(later)}
    ).opened() as p:
        assert (await make(p, Inner)).clock is later


def test_what_nothing_provides_is_named_with_class_field_and_type() -> None:
    with pytest.raises(MissingProvider, match=r"test_actions\.Inner\.clock needs Clock, which nothing provides"):
        check(Things, PROVIDERS, sections())
    with pytest.raises(MissingProvider, match=r"test_actions\.Needy\.port needs int, which nothing provides"):
        check(Needy, {**PROVIDERS, Clock: lambda _: value(Clock())}, sections())


@pytest.mark.parametrize(("module", "kind"), FEATURES, ids=[kind.__name__ for _, kind in FEATURES])
def test_every_feature_of_every_module_can_be_made(module: object, kind: type) -> None:
    check(kind, new_process("test", load(ROOT, sections(), {"APP_ENV": "test"})).providers, sections())


async def test_every_schedule_has_what_runs_its_jobs(database: TestDatabase) -> None:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with new_process("test", settings).opened() as p:
        found = await handlers(p, [kind for _, kind in FEATURES])
    scheduled = {schedule.task.name for module in modules() for schedule in module.scheduled()}
    assert scheduled <= {handler.task.name for handler in found if isinstance(handler, Handler)}


async def test_openapi_says_what_an_action_raises_and_what_its_fields_mean(process: Process) -> None:
    document = openapi(await operations(process, [Things]), "things")
    described = document["paths"]["/things/{name}/add"]["post"]
    assert described["operationId"] == "things.add"
    assert described["summary"] == "Add a thing."
    assert "NAME_TAKEN" in described["responses"]["409"]["description"]
    assert described["parameters"][0]["schema"]["description"] == "Name of the thing."
    assert described["security"] == [{"bearer": []}]


class Droppable:
    """What can be dropped."""

    @change("tests.drop", DELETE="/things/{name}", command="things drop")
    async def drop(self, tx: Transaction, ref: Ref) -> None:
        """Drop a thing."""


def test_the_help_of_a_command_without_examples_shows_its_arguments_as_one() -> None:
    things = typer.Typer()
    add_commands(things, "things", [Droppable], run_once)
    [command] = things.registered_commands
    assert f"  {NAME} things drop NAME" in (command.help or "").splitlines()
