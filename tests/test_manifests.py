"""The declarations of all modules, and what is said of wrong ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pytest

from app.kernel.actions import Database, Doc, Transaction, change, read, task
from app.kernel.actions.columns import Column, Columns
from app.kernel.config import Settings
from app.kernel.module import Feature, Module
from app.kernel.paging import Page
from app.kernel.queue import InvalidDeclaration, Schedule, Task
from app.modules import MODULES, modules
from app.processes import PROCESSES, new_process, sections
from tests.support.manifests import problems
from tests.support.project import Project

TASK = Task[None]("tests.forgotten")
SCHEDULES = (Schedule(TASK, cron="* * * * *"),)


def test_the_declarations_of_all_modules_are_right() -> None:
    providers = new_process("check", Settings("test")).providers
    found = problems(modules(), providers, sections(), PROCESSES)
    assert not found, "\n".join(found)


@dataclass(frozen=True, slots=True)
class Ref:
    """A thing."""

    name: str
    size: Annotated[int, Doc("Size of the thing.")] = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A row."""

    name: str
    columns: ClassVar[Columns] = (Column("name"), Column("sise"))


@dataclass(frozen=True, slots=True)
class NoReturn:
    """A method without a return type."""

    @read("tests.no_return", GET="/no")
    async def get(self, db: Database):
        """Get."""


@dataclass(frozen=True, slots=True)
class NoDataclass:
    """A method with an input that is no dataclass."""

    @read("tests.no_dataclass", GET="/no")
    async def get(self, db: Database, limit: int) -> None:
        """Get."""


@dataclass(frozen=True, slots=True)
class TwoInputs:
    """A method with two inputs."""

    @read("tests.two_inputs", GET="/no")
    async def get(self, db: Database, ref: Ref, row: Row) -> None:
        """Get."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A feature in which everything is wrong."""

    port: int

    @read("other.list", GET="/things/{id}", permission="tests:things:read", command="things list")
    async def list(self, db: Database, ref: Ref) -> None:
        """List."""

    @change("tests.add", POST="/things", command="health")
    async def add(self, tx: Transaction, ref: Ref) -> None: ...

    @change("tests.add", POST="/things", count="tests.count")
    async def again(self, tx: Transaction) -> None:
        """Add."""

    @change("tests.go", PUT="go", command="run-auth-http go", confirm="Go {far}?", message="gone {name} {nowhere}")
    async def go(self, tx: Transaction, ref: Ref) -> None:
        """Go."""

    @read("tests.rows", command="run-auth-http rows")
    async def rows(self, db: Database) -> Page[Row]:
        """List."""

    @read("tests.refs", command="run-auth-http refs")
    async def refs(self, db: Database) -> Page[Ref]:
        """List."""

    @task(Task[None]("tests.work"))
    async def work(self) -> None:
        """Work."""

    @task(Task[None]("tests.work"))
    async def more(self) -> None:
        """Work."""


def test_what_is_wrong_is_said_with_its_place() -> None:
    module = Module(
        "tests",
        "Wrong.",
        permissions={"other:things:read": "See."},
        features=(Feature("test_manifests:Broken"), Feature("test_manifests:Brokn", "health", "Wrong.")),
        settings="setings:Settings",
        schedules="test_manifests:SCHEDULES",
    )
    right = Module(**{name: getattr(module, name) for name in ("package", "summary", "permissions", "schedules")},
                   features=module.features[:1], commands={"run-auth-http": "Wrong."}, serves=False)  # fmt: skip
    here = "tests.test_manifests.Broken"
    assert [line for line in problems([module], {}, [], []) if "names" in line] == [
        "the manifest of the module tests names 'test_manifests:Brokn', but test_manifests.py has no Brokn",
        "the manifest of the module tests names 'setings:Settings', but there is no setings.py",
    ]
    assert problems([right], {}, [], PROCESSES) == [
        "the manifest of the module tests names 'cli:typer_app', but there is no cli.py",
        "tests: the permission 'other:things:read' is not tests:<resource>:<action>",
        f"{here}.list: the id 'other.list' does not begin with 'tests' and a full stop",
        f"{here}.list: the permission 'tests:things:read' is not among the permissions of tests",
        f"{here}.list: the command 'things list' needs a feature of that group: Feature(..., 'things')",
        f"{here}.list: {{id}} of the path is no field of its input",
        f"{here}.list: the field name of Ref has no Doc",
        f"{here}.add: the command 'health' needs a feature of that group: Feature(..., 'health')",
        f"{here}.add: the command 'health' needs a group and a verb",
        f"{here}.add: it has no docstring, which is its summary in OpenAPI and its help",
        f"{here}.add: the field name of Ref has no Doc",
        f"{here}.again: count names 'tests.count', which is no action",
        f"{here}.go: the command 'run-auth-http go' needs a feature of that group: Feature(..., 'run-auth-http')",
        f"{here}.go: the path 'go' does not begin with /",
        f"{here}.go: confirm names {{far}}, which is no field",
        f"{here}.go: message names {{nowhere}}, which is no field",
        f"{here}.go: the field name of Ref has no Doc",
        f"{here}.rows: the command 'run-auth-http rows' needs a feature of that group: Feature(..., 'run-auth-http')",
        f"{here}.rows: the column 'sise' of Row is of no field",
        f"{here}.refs: the command 'run-auth-http refs' needs a feature of that group: Feature(..., 'run-auth-http')",
        f"{here}.refs: Ref has no columns, which its command lists",
        "tests: say serves=True, as it has a route",
        f"{here}.port needs int, which nothing provides",
        "tests: no @task runs tests.forgotten, which tests.forgotten enqueues",
        "tests: the group 'run-auth-http' is taken by app.processes",
        f"{here}.again: the id 'tests.add' is taken by {here}.add",
        f"{here}.again: the route 'POST /things' is taken by {here}.add",
        f"{here}.more: the task or subscriber 'tests.work' is taken by {here}.work",
    ]


class NotMade:
    """A feature class that is no dataclass."""

    @read("tests.not_made")
    async def get(self, db: Database) -> None:
        """Get."""


def test_a_template_of_no_action_or_with_a_wrong_syntax_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "orders" / "console"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "orders.get_ordre.html").write_text("{% extends 'item.html' %}\n{% block record %}")
    monkeypatch.syspath_prepend(tmp_path)
    said = problems([Module("orders", "Wrong.", serves=False)], {}, [], [])
    assert said[0] == "orders: the template console/orders.get_ordre.html is named after no action"
    assert said[1].startswith("orders: the template console/orders.get_ordre.html, line 2: Unexpected end of template")
    assert len(said) == 2


def test_a_feature_that_is_no_dataclass_is_said_with_its_place() -> None:
    module = Module("tests", "Wrong.", features=(Feature("test_manifests:NotMade"),), serves=False)
    assert problems([module], {}, [], []) == ["tests.test_manifests.NotMade is no dataclass, so it cannot be made"]


def test_a_method_that_no_adapter_could_call_is_said_with_its_place() -> None:
    names = ("NoReturn", "NoDataclass", "TwoInputs")
    module = Module("tests", "Wrong.", features=tuple(Feature(f"test_manifests:{name}") for name in names))
    assert problems([module], {}, [], []) == [
        "tests.test_manifests.NoReturn.get: it needs a return type, such as None",
        "tests.test_manifests.NoDataclass.get: limit must be a dataclass or a list, not <class 'int'>",
        "tests.test_manifests.TwoInputs.get: there can be only one input, not ref and row",
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"platform"', '"platfrm"', "MODULES names 'platfrm', but platfrm/__init__.py has no MODULE = Module(...)"),
        ('"platform"', '"platform", "kernel"', "MODULES names 'kernel', but kernel/__init__.py has no MODULE"),
    ],
)
def test_a_name_in_modules_that_is_no_module_is_said_in_one_line(
    cli: Project, tmp_path: Path, old: str, new: str, said: str
) -> None:
    copied = cli.copy(tmp_path / "copy")
    path = copied.root / "app/modules/__init__.py"
    path.write_text(path.read_text().replace(old, new))
    done = copied.app("--help")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (78, "", 1)
    assert said in done.stderr


def test_a_file_of_a_manifest_that_fails_to_import_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "importing").mkdir()
    (tmp_path / "importing/failing.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidDeclaration, match=r"there is no nothing\.py"):
        Module("importing", "").load("nothing:X")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        Module("importing", "").load("failing:X")


def test_every_module_has_a_manifest_of_its_name() -> None:
    assert [module.name for module in modules()] == list(MODULES)
