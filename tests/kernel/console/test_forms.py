"""Fields of every type in forms, and the command that does the same."""

import shlex
from dataclasses import dataclass, field
from enum import Enum
from inspect import getclosurevars
from typing import Annotated, Any, Literal

import typer
from typer.testing import CliRunner

from app.kernel.actions import Action, Database, Doc, change, declared
from app.kernel.actions.commands import add_commands
from app.kernel.actions.operation import ActionOperation
from app.kernel.console.command_line import command_of
from app.kernel.console.forms import Form


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Part:
    name: str


@dataclass(frozen=True)
class Made:
    limit: Annotated[int, Doc("Limit.")]
    class_: Annotated[str, Doc("Class.")]
    tags: Annotated[list[str], Doc("Tags.")]
    part: Annotated[Part, Doc("Part.")]
    colour: Annotated[Colour, Doc("Colour.")] = Colour.RED
    size: Annotated[Literal[1, 2], Doc("Size.")] = 1
    is_on: Annotated[bool, Doc("Whether it is on.")] = True
    number: Annotated[int | None, Doc("Number.")] = None
    more: Annotated[list[str], Doc("More.")] = field(default_factory=list)


class Things:
    @change("x.make_thing", POST="/x/v1/things", command="x make")
    async def make(self, db: Database, made: Made) -> None:
        """Make a thing."""


TEXTS = {
    "limit": "3",
    "class": "a b",
    "tags": "it's\r\n\r\nb",
    "part": '{"name": "p"}',
    "colour": "blue",
    "size": "2",
    "is_on": "false",
}
GIVEN = Made(3, "a b", ["it's", "b"], Part("p"), Colour.BLUE, 2, is_on=False)


def form() -> tuple[Action, Form]:
    [(name, action, signature)] = declared(Things)
    assert isinstance(action, Action)
    none: Any = None
    return action, Form(ActionOperation(action, getattr(Things, name), signature, none, none))


def test_a_form_has_a_field_for_each_type_and_its_default_as_a_hint() -> None:
    asked = {each.name: each for each in form()[1].asked}
    assert {name: each.kind for name, each in asked.items()} == {
        "limit": "number",
        "class": "text",
        "tags": "lines",
        "part": "json",
        "colour": "select",
        "size": "select",
        "is_on": "select",
        "number": "number",
        "more": "lines",
    }
    assert (asked["colour"].options, asked["colour"].hint) == (("red", "blue"), "Colour. Default: red.")
    assert (asked["size"].options, asked["size"].hint) == (("1", "2"), "Size. Default: 1.")
    assert asked["is_on"].hint == "Whether it is on. Default: true."


def test_the_command_of_a_form_gives_the_same_input() -> None:
    action, found = form()
    assert found.decode(TEXTS) == GIVEN
    command = command_of(action, found, TEXTS, "")
    assert command == (
        """app x make --limit 3 --class 'a b' --tags '["it'"'"'s", "b"]' --part '{"name": "p"}' """
        "--colour blue --size 2 --no-is-on"
    )
    things, given = typer.Typer(), []

    @things.callback()
    def _several() -> None: ...

    def run_once(_: str, work: Any) -> Any:
        given.append(getclosurevars(work).nonlocals["wanted"].given)
        return None, None

    add_commands(things, "x", [Things], run_once)
    done = CliRunner().invoke(things, shlex.split(command)[2:])
    assert done.exit_code == 0, done.output
    assert given == [GIVEN]
