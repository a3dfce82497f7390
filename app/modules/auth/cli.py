"""Commands that ask for a password."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.once import run_once
from app.kernel.cli import Json, NoInput, can_ask, group, print_json
from app.kernel.errors import Invalid, Refusal

if TYPE_CHECKING:
    from app.kernel.process import Process

Username = Annotated[str, typer.Option(help="Username of the actor.")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")]
PasswordFile = Annotated[Path | None, typer.Option(help="Read the password from a file.")]

_LONGEST = 4096

_app = group("Manage actors, passwords and keys.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    """Return the group of commands."""
    return _app


@_app.command()
def create_superuser(
    username: Username,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Create a superuser. Safe to repeat: an existing superuser stays unchanged.

    \b
    Examples:
      app auth create-superuser --username root
      app auth create-superuser --username root --password-file /run/secrets/root
      pwgen -s 24 1 | app auth create-superuser --username root --password-stdin
    """
    made = _run("auth.create_superuser", username, _password(password_stdin, password_file, no_input))
    if as_json:
        print_json(made)
    elif made.created:
        typer.echo(f"created the superuser {made.username} ({made.id})")
    else:
        typer.echo(f"the superuser {made.username} exists already ({made.id}); nothing was changed")


@_app.command()
def reset_password(
    username: Username,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Set a new password for an actor. Ends its sessions and unlocks its username.

    \b
    Examples:
      app auth reset-password --username root
    """
    done = _run("auth.reset_password", username, _password(password_stdin, password_file, no_input))
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.username} has a new password; {done.sessions_ended} sessions ended")


def _run(action: str, username: str, password: str) -> Any:
    async def work(p: "Process") -> Any:
        from app.kernel.actions.compose import Operations, operations
        from app.modules.auth.recovery import Credentials, Recovery

        return await Operations(await operations(p, [Recovery]))(action, Credentials(username, password))

    return run_once(action.replace(".", " ").replace("_", "-"), work)


def _password(from_stdin: bool, file: Path | None, no_input: bool) -> str:
    if from_stdin and file is not None:
        raise typer.BadParameter("give one of --password-stdin and --password-file", param_hint="--password-stdin")
    if from_stdin or file is not None:
        return _read(file)
    if no_input or not can_ask():
        raise typer.BadParameter(
            "no terminal to ask on; give --password-stdin or --password-file", param_hint="--password-stdin"
        )
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise Invalid("the passwords differ; nothing was changed")
    return password


def _read(file: Path | None) -> str:
    """Return the password from a file or stdin."""
    source = "stdin" if file is None else str(file)
    try:
        with open(0, "rb", closefd=False) if file is None else file.open("rb") as opened:
            password = opened.read(_LONGEST + 1).decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        kind = Refusal if file is None else Invalid
        raise kind(f"cannot read the password from {source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Invalid(f"the password from {source} is not UTF-8 text") from None
    if not password or "\n" in password:
        raise Invalid(f"{source} must hold the password in one line")
    return password
