"""`app man`: the manual page, generated from the commands. `just man` writes that of the wheel."""

import inspect
import os
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import typer

from app.kernel.cli import single
from app.kernel.product import NAME, VERSION

_LONGEST_LINE = 66  # 80 with escaped hyphens
STATUSES = {
    0: "done, or stopped as asked",
    1: "a check or an operation failed",
    2: "a mistake in the command line",
    65: "bad data",
    67: "no such thing",
    69: "something is unavailable",
    70: "an internal error",
    73: "it exists already, or the state does not allow it",
    75: "try again later",
    77: "not allowed",
    78: "configuration",
    130: "interrupted",
}
ENVIRONMENT = {
    "APP_ENV": "local (the default), test, staging or production: the file of settings that overrides the defaults.",
    "SECTION_KEY": f"Overrides the setting section.key; '{NAME} config show' lists all.",
    "SECTION_KEY_FILE": "Names a file with the value.",
    "NO_COLOR": "Plain text on terminals, as TERM=dumb.",
}


def man() -> None:
    """Print the manual page of all commands, for man or mandoc.

    \b
    Examples:
      app man | man -l -
      app man > /usr/local/share/man/man1/app.1
    """
    typer.echo("\n".join(page()))


def page() -> Iterator[str]:
    """Yield the lines of the page in the language of man(7)."""
    from app.cli import table

    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or datetime.now(UTC).timestamp()), UTC)
    yield f'.TH {NAME.upper()} 1 "{made:%Y-%m-%d}" "{NAME} {VERSION}" "User Commands"'
    yield ".SH NAME"
    yield f"{NAME} \\- one code base, one command, many processes"
    yield ".SH SYNOPSIS"
    yield f".B {NAME}"
    yield "[\\-\\-version] [\\-\\-help] COMMAND [ARGUMENT ...]"
    commands = {name: _loaded(name, module) for name, (module, _) in table().items()}
    for title, is_process in (("PROCESSES", True), ("COMMANDS", False)):
        yield f".SH {title}"
        for name, command in commands.items():
            if name.startswith("run-") == is_process:
                yield from _command(f"{NAME} {name}", command)
    yield ".SH EXIT STATUS"
    yield from _list({str(status): text for status, text in STATUSES.items()})
    yield ".SH ENVIRONMENT"
    yield from _list(ENVIRONMENT)
    yield ".SH SEE ALSO"
    yield from _wrapped("The folder docs of the project: operating.md, runbooks.md and the others in README.md.")


def _loaded(name: str, module: str) -> Any:
    return typer.main.get_command(import_module(module, NAME).typer_app(name))


def _command(path: str, command: Any) -> Iterator[str]:
    """Yield a command, or the commands of a group."""
    if subcommands := getattr(command, "commands", None):
        for name, found in subcommands.items():
            yield from _command(f"{path} {name}", found)
        return
    ctx = typer.Context(command, info_name=path)
    yield f".SS {_quoted(' '.join([path, *command.collect_usage_pieces(ctx)]))}"
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\nExamples:\n")
    for number, paragraph in enumerate(part for part in text.split("\n\n") if part.strip()):
        if number:
            yield ".PP"
        yield from _wrapped(paragraph.replace("\b", ""))
    yield from _list(dict(filter(None, (parameter.get_help_record(ctx) for parameter in command.params))))
    if examples:
        yield from (".PP", "Examples:", ".PP", ".RS 4", ".EX")
        yield from (_text(line.strip()) for line in examples.splitlines())
        yield from (".EE", ".RE")


def _list(rows: dict[str, str]) -> Iterator[str]:
    for title, text in rows.items():
        yield ".TP"
        yield f".B {_text(title)}"
        yield from _wrapped(text or title)


def _wrapped(text: str) -> Iterator[str]:
    yield from map(_text, textwrap.wrap(text, _LONGEST_LINE, break_long_words=False, break_on_hyphens=False))


def _text(text: str) -> str:
    """Return text without a meaning in roff."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{plain}" if plain[:1] in (".", "'") else plain


def _quoted(text: str) -> str:
    return '"' + _text(text).replace('"', "\\(dq") + '"'


typer_app = single(man)
