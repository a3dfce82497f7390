"""Shell blocks and commands of the documentation.

A block without a mark is run as it stands. A comment on the line before it says otherwise:

    <!-- not run: REASON -->     its commands are parsed, and must exist with these options
    <!-- until Ctrl-C -->        runs in a terminal of its own while the blocks after it run
    <!-- after Ctrl-C -->        is run when that has been stopped
    <!-- test -->                is run by .ci/run, because it is the whole suite
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import Exit
from typer._click.exceptions import ClickException

from app.cli import command
from app.kernel.product import NAME
from tests.support.command_tree import NODES
from tests.support.project import ROOT

_FENCE = re.compile(r"^(?:<!-- (.+?) -->\n)? *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_COMMENT = re.compile(r"(?m)(^|\s)#.*$")
_BEFORE = {"sudo", "exec", "time", "env", "--", "!", "then", "do"}
_PLACEHOLDER = re.compile(r"[A-Z_]{1,}|.*[$…<>].*|\.\.\.")
OF_SAMPLES = {"orders", "run-orders-http"}
"""Commands of the module in docs/modules.md, which are run by its own test."""


@dataclass(frozen=True)
class Block:
    """A shell block: its text, what is said about it, and its place."""

    path: str
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def documents() -> list[Path]:
    """Return every document that describes this release; the changelog describes all of them."""
    skipped = {".venv", "node_modules", ".local"}
    found = (path for path in ROOT.rglob("*.md") if not any(part.startswith(tuple(skipped)) for part in path.parts))
    return sorted(path for path in found if path.name != "CHANGELOG.md")


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a document in any language, in order."""
    text, name = path.read_text(), str(path.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, match.start(3)) + 1, match[2], match[1] or "", match[3])
        for match in _FENCE.finditer(text)
    ]


def spans(path: Path) -> Iterator[str]:
    """Yield what is set as code within the text of a document; in tables, a bar is escaped."""
    for match in _SPAN.finditer(_FENCE.sub("", path.read_text())):
        yield " ".join(match[1].replace("\\|", "|").split())


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words behind `app` of every command of this project in shell text."""
    lexer = shlex.shlex(_COMMENT.sub(r"\1", text.replace("\\\n", " ")), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if "$(" in word:
            yield from commands(word.partition("$(")[2].rpartition(")")[0])
        if set(word) <= set("();<>|&\n"):
            yield from _behind(words)
            words = []
        else:
            words.append(word)


def _behind(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] in _BEFORE or words[0] in ("$", "{") or re.match(r"[A-Z_]+=", words[0])):
        is_sudo, words = words[0] == "sudo", words[1:]
        while is_sudo and words and words[0].startswith("-"):
            words = words[2:]
    if words and (words[0] == NAME or words[0].endswith(f"/{NAME}")):
        yield words[1:]
    elif words[1:3] == ["-m", NAME]:
        yield words[3:]


def problem(words: list[str], *, whole: bool) -> str:
    """Return what is wrong with a command, empty if nothing is; `whole`: it is one that could be run."""
    if not words or words[0] in (*OF_SAMPLES, "..."):
        return ""
    if words[0].startswith("-"):
        return _unknown_options(words, command())
    path: list[str] = []
    while len(path) < len(words):
        choices = words[len(path)].split("|")
        if len(choices) > 1:
            return "".join(problem([*path, choice, *words[len(path) + 1 :]], whole=whole) for choice in choices)
        if " ".join([*path, *choices]) not in NODES:
            break
        path += choices
    name, rest = " ".join(path), words[len(path) :]
    node = NODES.get(name)
    if node is None:
        return f"there is no command {words[0]}"
    if node.is_group and rest and not rest[0].startswith("-") and rest[0] != "...":
        return f"there is no command {name} {rest[0]}"
    if whole and not any(_PLACEHOLDER.fullmatch(word) for word in rest):
        return _misuse(name, rest)
    return _unknown_options(rest, node.command)


def _misuse(name: str, rest: list[str]) -> str:
    try:
        NODES[name].command.make_context(name, list(rest)).close()
    except Exit:
        return ""  # --help, --version
    except ClickException as error:
        return f"{name}: {error.format_message()}"
    return ""


def _unknown_options(words: list[str], found: Any) -> str:
    if found.context_settings.get("ignore_unknown_options"):
        return ""
    known = {option for p in found.params for option in (*p.opts, *p.secondary_opts)} | {"-h", "--help", "--version"}
    given = [word.partition("=")[0] for word in words if word.startswith("-") and word != "--"]
    return "; ".join(f"{found.name} has no option {option}" for option in given if option not in known)
