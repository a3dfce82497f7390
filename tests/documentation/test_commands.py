"""Every command in the documentation exists, with its options."""

from pathlib import Path

import pytest

from app.kernel.product import NAME
from tests.documentation.blocks import blocks, commands, documents, problem, spans
from tests.support.project import ROOT

DOCUMENTS = [str(path.relative_to(ROOT)) for path in documents()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_text_exist(document: str) -> None:
    found = [text for text in spans(ROOT / document) if text.startswith(f"{NAME} ")]
    wrong = {text: why for text in found for words in commands(text) if (why := problem(words, whole=False))}
    assert wrong == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_shell_blocks_exist_and_are_used_correctly(document: str) -> None:
    for block in blocks(ROOT / document):
        assert block.language not in ("bash", "shell", "console", "zsh"), (
            f"{block}: the fence of a shell block is ```sh"
        )
        if block.language == "sh":
            wrong = [why for words in commands(block.text) if (why := problem(words, whole=True))]
            assert wrong == [], str(block)


def test_there_are_documents_with_commands() -> None:
    assert {"README.md", "docs/operating.md", "docs/modules.md", "deploy/README.md"} <= set(DOCUMENTS)
    assert sum(len(list(commands(block.text))) for block in blocks(ROOT / "docs/operating.md")) > 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app health", [["health"]]),
        ("A=1 app health --ready  # app is here", [["health", "--ready"]]),
        ("cd x && app jobs list | head; .venv/bin/app --version", [["jobs", "list"], ["--version"]]),
        ("sudo -u app /opt/app/bin/app migrate up", [["migrate", "up"]]),
        (".venv/bin/python -m app run-all-in-one &", [["run-all-in-one"]]),
        ('app db shell -c "SELECT 1,\n  2"\napp health', [["db", "shell", "-c", "SELECT 1,\n  2"], ["health"]]),
        ("app config \\\n  show", [["config", "show"]]),
        (
            'id=$(app jobs list --json) x="$(app auth keys list)"',
            [["jobs", "list", "--json"], ["auth", "keys", "list"]],
        ),
        ("systemctl status app; chown app app; cat /etc/app; docker run app health", []),
    ],
)
def test_commands_are_found_in_shell_text(text: str, expected: list[list[str]]) -> None:
    assert list(commands(text)) == expected


@pytest.mark.parametrize(
    ("line", "whole", "expected"),
    [
        ("health --ready", True, ""),
        ("health --raedy", False, "health has no option --raedy"),
        ("helth", False, "there is no command helth"),
        ("auth craete-superuser", False, "there is no command auth craete-superuser"),
        ("migrate up|down|status", False, ""),
        ("migrate up|sideways", False, "there is no command migrate sideways"),
        ("auth unlock", False, ""),
        ("auth unlock", True, "auth unlock: Missing option '--username'."),
        ("jobs show ID", True, ""),
        ("run-auth-http --port 70000", True, "must be an integer"),
        ("auth ...", False, ""),
        ("--version", True, ""),
        ("--vresion", False, "has no option --vresion"),
        ("db shell -c x", True, ""),
    ],
)
def test_a_command_that_does_not_exist_or_is_misused_is_found(line: str, whole: bool, expected: str) -> None:
    found = problem(line.split(), whole=whole)
    assert expected in found
    assert bool(expected) == bool(found)


def test_no_two_marks_differ_in_spelling() -> None:
    marks = {(path, block.mark) for path in DOCUMENTS for block in blocks(ROOT / path) if block.mark}
    known = ("not run: ", "until Ctrl-C", "after Ctrl-C", "test")
    assert [(path, mark) for path, mark in marks if not mark.startswith(known)] == []
    assert Path(ROOT / ".ci/run").read_text().count("<!-- test -->") == 1
