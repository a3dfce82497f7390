"""Commands of auth."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.once import run_once
from app.kernel.cli import Json, can_ask, group, print_json, print_table
from app.kernel.errors import Invalid, Refusal

if TYPE_CHECKING:
    from app.kernel.process import Process
    from app.modules.auth.domain.keys import ListedKey
    from app.modules.auth.keys import Rotated
    from app.modules.auth.usecases.create_superuser import Superuser
    from app.modules.auth.usecases.reset_password import Reset
    from app.modules.auth.usecases.reset_second_factor import WithoutSecondFactor

PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")]
PasswordFile = Annotated[Path | None, typer.Option(help="Read the password from a file.")]
NoInput = Annotated[bool, typer.Option("--no-input", help="Never ask; fail instead.")]

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
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    no_input: NoInput = False,
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
        from app.kernel.operations import operator
        from app.modules.auth import wiring

        return await (await p.use(wiring.recovery)).create_superuser(operator(), username, password)

    made = run_once("auth create-superuser", work)
    if as_json:
        print_json(made)
    elif made.created:
        typer.echo(f"created the superuser {made.username} ({made.id})")
    else:
        typer.echo(f"the superuser {made.username} exists already ({made.id}); nothing was changed")


@_app.command()
def reset_password(
    username: Annotated[str, typer.Option(help="Whose password.")],
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Set a new password for an actor. Ends all of its sessions, and lifts the lock of failed sign-ins.

    \b
    Examples:
      app auth reset-password --username root
    """
    password = _password(password_stdin, password_file, no_input)

    async def work(p: "Process") -> "Reset":
        from app.kernel.operations import operator
        from app.modules.auth import wiring

        return await (await p.use(wiring.recovery)).reset_password(operator(), username, password)

    done = run_once("auth reset-password", work)
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.username} has a new password; {done.sessions_ended} sessions ended")


@_app.command()
def reset_second_factor(
    username: Annotated[str, typer.Option(help="Whose second factor.")], as_json: Json = False
) -> None:
    """Remove the second factor of an actor who has lost it. Ends all of its sessions; the password stays.

    Make sure who asks: afterwards the password alone is enough.

    \b
    Examples:
      app auth reset-second-factor --username ann
    """

    async def work(p: "Process") -> "WithoutSecondFactor":
        from app.kernel.operations import operator
        from app.modules.auth import wiring

        return await (await p.use(wiring.reset_second_factor))(operator(), username)

    done = run_once("auth reset-second-factor", work)
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.username} has no second factor any more; {done.sessions_ended} sessions ended")


@_app.command()
def unlock(username: Annotated[str, typer.Option(help="Whose name is locked.")], as_json: Json = False) -> None:
    """Lift the lock that failed sign-ins have put on a name. Safe to repeat.

    \b
    Examples:
      app auth unlock --username root
    """

    async def work(p: "Process") -> bool:
        from app.kernel.operations import operator
        from app.modules.auth import wiring

        return await (await p.use(wiring.recovery)).unlock(operator(), username)

    unlocked = run_once("auth unlock", work)
    if as_json:
        print_json({"username": username, "unlocked": unlocked})
    else:
        typer.echo(f"{username} can sign in again" if unlocked else f"{username} was not locked")


_keys = group("Signing keys.")
_app.add_typer(_keys, name="keys")


@_keys.command("list")
def list_keys(as_json: Json = False) -> None:
    """List the signing keys, newest first. The newest one signs, the others verify until their tokens have expired.

    \b
    Examples:
      app auth keys list
    """

    async def work(p: "Process") -> "list[ListedKey]":
        from app.kernel.actions.compose import make
        from app.modules.auth.keyring import Keyring

        return await (await make(p, Keyring)).listed()

    found = run_once("auth keys list", work)
    if as_json:
        print_json({"items": found})
    else:
        rows = [(k.kid, k.algorithm, f"{k.created_at:%Y-%m-%d %H:%M:%S}Z", "yes" if k.signs else "") for k in found]
        print_table(("key", "algorithm", "created at", "signs"), rows)


@_keys.command("rotate")
def rotate_keys(as_json: Json = False) -> None:
    """Sign with a new key. Running processes follow within half a minute; tokens of the former key stay valid.

    \b
    Examples:
      app auth keys rotate
    """

    async def work(p: "Process") -> "Rotated":
        from app.kernel.actions.compose import Operations, operations
        from app.modules.auth.keys import SigningKeys

        return await Operations(await operations(p, [SigningKeys]))("auth.rotate_keys")

    rotated = run_once("auth keys rotate", work)
    if as_json:
        print_json(rotated)
    else:
        typer.echo(f"the new key {rotated.kid} signs; {len(rotated.forgotten)} old keys were forgotten")


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
    """Return the password that a file holds, or stdin."""
    source = "stdin" if file is None else str(file)
    try:
        with open(0, "rb", closefd=False) if file is None else file.open("rb") as opened:
            content = opened.read(_LONGEST + 1)
    except OSError as error:
        kind = Refusal if file is None else Invalid
        raise kind(f"cannot read the password from {source}: {error.strerror}") from None
    return _line(content, source)


def _line(content: bytes, source: str) -> str:
    try:
        password = content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise Invalid(f"the password from {source} is not UTF-8 text") from None
    if not password or "\n" in password:
        raise Invalid(f"{source} must hold the password in one line")
    return password
