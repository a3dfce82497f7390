"""Commands that ask for a password."""

import getpass
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.once import run_once
from app.kernel.actions import Database
from app.kernel.cli import Json, NoInput, can_ask, group, print_json
from app.kernel.errors import Invalid, Refusal
from app.modules.auth.domain.actors import RULES
from app.modules.auth.domain.second_factor import OtpRequired

if TYPE_CHECKING:
    from app.kernel.process import Process

Username = Annotated[str | None, typer.Option(help="Username of the actor.", show_default="asked on a terminal")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")]
PasswordFile = Annotated[Path | None, typer.Option(help="Read the password from a file.")]
Url = Annotated[str | None, typer.Option(help="URL of the API.", show_default="of the local process")]
Export = Annotated[bool, typer.Option("--export", help="Print a line for eval that sets ACCESS_TOKEN.")]

_LONGEST = 4096

_app = group("Manage actors, passwords and keys.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    """Return the group of commands."""
    return _app


@_app.command()
def create_superuser(
    username: Username = None,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Create a superuser. Safe to repeat: an existing superuser stays unchanged.

    \b
    Examples:
      app auth create-superuser
      app auth create-superuser --username root --password-file /run/secrets/root
      pwgen -s 24 1 | app auth create-superuser --username root --password-stdin
    """
    name = _username(username, no_input)
    made = None
    if not password_stdin and password_file is None and can_ask() and not no_input:
        made = _run("auth.find_superuser", name)  # before asking for a password that is not needed
    if made is None:
        password = _password(password_stdin, password_file, no_input, is_new=True)
        made = _run("auth.create_superuser", name, password)
    if as_json:
        print_json(made)
    elif made.created:
        typer.echo(f"created the superuser {made.username} ({made.id})")
    else:
        typer.echo(f"the superuser {made.username} exists already ({made.id}); nothing was changed")


@_app.command()
def reset_password(
    username: Username = None,
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
    name = _username(username, no_input)
    done = _run("auth.reset_password", name, _password(password_stdin, password_file, no_input, is_new=True))
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.username} has a new password; {done.sessions_ended} sessions ended")


@_app.command()
def login(
    username: Username = None,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    url: Url = None,
    export: Export = False,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Sign in to the running process over HTTP, and print the access token.

    It is valid for auth.access_token_ttl (10 minutes). --json prints the whole answer, with the refresh token.

    \b
    Examples:
      app auth login --username root
      eval "$(app auth login --username root --export)"
      app auth login --username ann --url https://api.example.com --json
    """
    from app.modules.auth.remote import places, sign_in

    asked = places(url)
    given = {"username": _username(username, no_input)}
    given["password"] = _password(password_stdin, password_file, no_input, is_new=False)
    try:
        answer = sign_in(asked, given, verified=url is not None)
    except OtpRequired:
        if no_input or not can_ask():
            raise
        answer = sign_in(asked, {**given, "otp": _hidden("One-time password: ")}, verified=url is not None)
    token = str(answer["session"]["access_token"])
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"export ACCESS_TOKEN={shlex.quote(token)}" if export else token)


async def first_account(p: "Process", program: str) -> tuple[str, str] | None:
    """Return how to create the first account, if there is no superuser."""
    from app.kernel.actions.compose import make
    from app.modules.auth.postgres.actors import Actors

    if await Actors().has_superuser(await make(p, Database)):
        return None
    return "Account", f"none yet; in a second terminal:\n{program} auth create-superuser"


def _run(action: str, *given: str) -> Any:
    async def work(p: "Process") -> Any:
        from app.kernel.actions.compose import Operations, operations
        from app.modules.auth.recovery import Credentials, NamedActor, Recovery

        kind = Credentials if len(given) > 1 else NamedActor
        return await Operations(await operations(p, [Recovery]))(action, kind(*given))

    return run_once(action.replace(".", " ").replace("_", "-"), work)


def _username(given: str | None, no_input: bool) -> str:
    if given is not None:
        return given
    if no_input or not can_ask():
        raise typer.BadParameter("no terminal to ask on; give --username", param_hint="--username")
    sys.stderr.write("Username: ")
    sys.stderr.flush()
    if not (typed := sys.stdin.readline().strip()):
        raise Refusal("no username was given; nothing was done")
    return typed


def _password(from_stdin: bool, file: Path | None, no_input: bool, *, is_new: bool) -> str:
    if from_stdin and file is not None:
        raise typer.BadParameter("give one of --password-stdin and --password-file", param_hint="--password-stdin")
    if from_stdin or file is not None:
        return _read(file)
    if no_input or not can_ask():
        raise typer.BadParameter(
            "no terminal to ask on; give --password-stdin or --password-file", param_hint="--password-stdin"
        )
    if is_new:
        sys.stderr.write(f"{RULES}\n")
    password = _hidden("Password: ")
    if is_new and _hidden("Again: ") != password:
        raise Invalid("the passwords differ; nothing was changed")
    return password


def _hidden(prompt: str) -> str:
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise Refusal("nothing was typed; nothing was done") from None


def _read(file: Path | None) -> str:
    """Return the password from a file or stdin."""
    source = "stdin" if file is None else str(file)
    try:
        with open(0, "rb", closefd=False) if file is None else file.open("rb") as opened:
            password = opened.read(_LONGEST + 1).decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        kind = Refusal if file is None else Invalid
        look = "" if file is None else f"ls -l {shlex.quote(str(file))}"
        raise kind(f"cannot read the password from {source}: {error.strerror}", hint=look) from None
    except UnicodeDecodeError:
        raise Invalid(f"the password from {source} is not UTF-8 text") from None
    if not password or "\n" in password:
        raise Invalid(f"{source} must hold the password in one line")
    return password
