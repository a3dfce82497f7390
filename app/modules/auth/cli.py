"""Commands of auth."""

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.console import Json, group, print_json, run_once
from app.kernel.errors import Invalid

if TYPE_CHECKING:
    from app.kernel.process import Process
    from app.modules.auth.usecases.create_superuser import Superuser

_LONGEST = 4096

_app = group("Actors, passwords and keys.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.callback()
def _group() -> None:
    """Actors, passwords and keys."""


@_app.command()
def create_superuser(
    username: Annotated[str, typer.Option(help="Name to sign in with.")],
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    password_file: Annotated[Path | None, typer.Option(help="Read the password from a file.")] = None,
    no_input: Annotated[bool, typer.Option("--no-input", help="Never ask; fail instead.")] = False,
    as_json: Json = False,
) -> None:
    """Create an actor who may do everything. Safe to repeat: an existing superuser is left as it is.

    \b
    Examples:
      app auth create-superuser --username root
      app auth create-superuser --username root --password-file /run/secrets/root
      pwgen -s 24 1 | app auth create-superuser --username root --password-stdin
    """
    password = _password(password_stdin, password_file, no_input)

    async def work(p: "Process") -> "Superuser":
        from app.modules.auth import wiring

        return await (await p.use(wiring.create_superuser))(username, password)

    made = run_once("auth create-superuser", work)
    if as_json:
        print_json(made)
    elif made.created:
        typer.echo(f"created the superuser {made.username} ({made.id})")
    else:
        typer.echo(f"the superuser {made.username} exists already ({made.id}); nothing was changed")


def _password(from_stdin: bool, file: Path | None, no_input: bool) -> str:
    if from_stdin and file is not None:
        raise typer.BadParameter("give one of --password-stdin and --password-file", param_hint="--password-stdin")
    try:
        if from_stdin:
            return _line(sys.stdin.buffer.read(_LONGEST), "stdin")
        if file is not None:
            with file.open("rb") as opened:
                return _line(opened.read(_LONGEST), str(file))
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror}") from None
    if no_input or not sys.stdin.isatty():
        raise typer.BadParameter(
            "no terminal to ask on; give --password-stdin or --password-file", param_hint="--password-stdin"
        )
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise Invalid("the passwords differ; nothing was changed")
    return password


def _line(content: bytes, source: str) -> str:
    try:
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Invalid(f"the password from {source} is not UTF-8 text") from None
    if not password or "\n" in password:
        raise Invalid(f"{source} must hold the password in one line")
    return password
