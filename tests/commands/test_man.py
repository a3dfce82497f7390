"""`app man` and `app cheat`: what a person reads who has nothing else at hand."""

import re
import subprocess
import sys

import pytest

from app.commands.cheat import CHANGE, LOOK
from app.commands.man import STATUSES
from app.kernel.product import NAME, VERSION
from tests.commands.terminal import terminal
from tests.conftest import program
from tests.documentation.blocks import problem
from tests.support.command_tree import LEAVES
from tests.support.project import ROOT, Project


@pytest.fixture(scope="module")
def page() -> str:
    """The page in the language of man."""
    command = [sys.executable, "-m", NAME, "man"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_the_page_in_the_wheel_is_current(page: str) -> None:
    committed = (ROOT / f"docs/{NAME}.1").read_text()
    [date] = re.findall(r'^\.TH \w+ 1 "(\d{4}-\d\d-\d\d)"', committed)
    assert committed == re.sub(r"\d{4}-\d\d-\d\d", date, page, count=1), "run `just man`"


@pytest.mark.parametrize(
    "check", [["mandoc", "-T", "lint"], ["man", "--warnings", "-E", "UTF-8", "-l", "-"]], ids=["mandoc", "groff"]
)
def test_the_page_has_no_warnings(page: str, check: list[str]) -> None:
    program(check[0])
    done = subprocess.run(check, input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert check[0] == "man" or done.stdout == ""


def test_the_page_has_every_command_with_its_options_and_every_status(page: str) -> None:
    program("mandoc")
    command = ["mandoc", "-T", "utf8", "-O", "width=200"]
    shown = subprocess.run(command, input=page, capture_output=True, text=True, check=True).stdout
    text = re.sub(".\b", "", shown)
    assert text.startswith(f"{NAME.upper()}(1)")
    assert VERSION in text
    for name in LEAVES:
        assert re.search(rf"^ +{NAME} {name}( |$)", text, re.MULTILINE), name
    assert "--password-file" in text
    assert f"{NAME} auth create-superuser --username root --password-file /run/secrets/root" in text
    documented = re.findall(r"^\| (\d+) \| ", (ROOT / "docs/operating.md").read_text(), re.MULTILINE)
    assert list(map(str, STATUSES)) == documented


def test_the_cheat_sheet_has_ten_commands_that_exist_on_one_screen(cli: Project) -> None:
    found = [*LOOK, *CHANGE]
    assert len(found) == 10
    assert [why for line in found if (why := problem(line.split(), whole=True))] == []
    with terminal(cli, "cheat") as shown:
        assert shown.wait() == 0
    lines = shown.seen.splitlines()
    assert len(lines) < 24  # and the prompt
    assert max(map(len, lines)) < 80
    listed = [line.partition("  ")[0] for line in (line.strip() for line in lines) if line.startswith(f"{NAME} ")]
    assert listed[:10] == [f"{NAME} {command}" for command in found]
