"""The entrypoint of the command line: lazily loaded commands, and exit statuses of errors.

`--help` is printed without Typer, because the import of Typer takes longer than the rest.
"""

import gc
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from app.kernel.product import NAME, VERSION
from app.modules import modules
from app.signals import heed_while_loading
from app.streams import CannotWrite, open_streams

if TYPE_CHECKING:
    from typer.core import TyperGroup

COMMANDS = {
    "backup": (".commands.backup", "Take, check and restore backups of the database."),
    "capacity": (".commands.capacity", "Compute what a load needs."),
    "cheat": (".commands.cheat", "Show the ten commands of a bad night."),
    "completion": (".commands.completion", "Print the completion script of bash, zsh or fish."),
    "config": (".commands.config", "Show, explain and validate settings."),
    "db": (".commands.db", "Open a shell on the database."),
    "demo": (".commands.demo", "Run everything under a fake load, to look at."),
    "doctor": (".commands.doctor", "Check everything, and say what to do."),
    "health": (".commands.health", "Check the health of the local process."),
    "man": (".commands.man", "Print the manual page."),
    "migrate": (".commands.migrate", "Create, apply and roll back migrations."),
    "status": (".commands.status", "Show whether the deployment is well, and what to do."),
    "support-bundle": (".commands.support_bundle", "Write a redacted archive for a report."),
    "systemd": (".commands.systemd", "Generate units for systemd."),
}

EXAMPLES = f"""\
  {NAME} run-all-in-one                          everything in one process
  {NAME} auth create-superuser --username root   the first account
  {NAME} migrate status                          the state of the schema
  {NAME} config explain postgres.host            a setting and its source
  {NAME} cheat                                   the ten commands of a bad night
  eval "$({NAME} completion bash)"               completion with Tab"""

_OPTIONS = {
    "--version": "Show the version and exit.",
    "-h, --help": "Show this message and exit.",
}

_ROOT_HELP: tuple[list[str], ...] = ([], ["-h"], ["--help"])


def table() -> dict[str, tuple[str, str]]:
    """Return the Python module and the summary of every command, without loading them."""
    from app.processes import PROCESSES

    found = {name: (".commands.run", spec.help) for name, spec in PROCESSES.items()}
    for module in modules():
        found |= {name: (".commands.once", summary) for name, summary in module.groups().items()}
    return dict(sorted({**found, **COMMANDS}.items()))


def root_help() -> str:
    """Return the help of `app`."""
    commands = {name: summary.strip().splitlines()[0] for name, (_, summary) in table().items()}
    processes = {name: summary for name, summary in commands.items() if name.startswith("run-")}
    others = {name: summary for name, summary in commands.items() if name not in processes}
    width = max(len(name) for name in [*commands, *_OPTIONS])
    parts = [f"Usage: {NAME} [OPTIONS] COMMAND [ARGS]...", "", "  One code base, one command, many processes.", ""]
    for title, rows in (("Processes", processes), ("Commands", others), ("Options", _OPTIONS)):
        parts += [f"{title}:", *(f"  {name:<{width}}  {summary}" for name, summary in rows.items()), ""]
    return "\n".join([*parts, "Examples:", EXAMPLES])


def command() -> "TyperGroup":
    """Return the command line as a Typer group that loads a command when it is run or completed."""
    import typer
    from typer.core import TyperCommand, TyperGroup
    from typer.main import get_command

    names = table()

    class Lazy(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for name, (_, summary) in names.items():
                self.commands[name] = TyperCommand(name, help=summary, rich_markup_mode=None)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name, stub, rest = super().resolve_command(ctx, args)
            if name is None or stub is None:
                return name, stub, rest
            real = get_command(import_module(names[name][0], __package__).typer_app(name))
            real.name = name
            _add_version(real, next(param for param in self.params if param.name == "version"))
            return name, real, rest

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if ctx.resilient_parsing and not args:  # completing the first word; avoids Typer's import of pydantic
                return []
            return super().parse_args(ctx, args)

        def invoke(self, ctx: Any) -> Any:
            with _interruption():
                return super().invoke(ctx)

        def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the signature is Typer's
            formatter.write(root_help() + "\n")

    help_options = {"help_option_names": ["-h", "--help"]}
    root = typer.Typer(cls=Lazy, rich_markup_mode=None, add_completion=False, context_settings=help_options)

    @root.callback()
    def callback(  # pyright: ignore[reportUnusedFunction]
        version: Annotated[
            bool,
            typer.Option("--version", callback=_show_version, is_eager=True, help=_OPTIONS["--version"]),
        ] = False,
    ) -> None:
        """One code base, one command, many processes."""

    return get_command(root)  # pyright: ignore[reportReturnType]


@contextmanager
def _interruption() -> Generator[None]:
    """Say that a command was interrupted: Typer ends it with the status alone."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise


def _add_version(command: Any, option: Any) -> None:
    """Add --version to a command and to all below it."""
    from copy import copy

    option = copy(option)
    option.expose_value = False
    command.params.append(option)
    for below in getattr(command, "commands", {}).values():
        _add_version(below, option)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{VERSION}\n")
        sys.exit(0)


def main() -> NoReturn:
    """Run the command line and exit with its status (sysexits.h)."""
    open_streams()
    if sys.argv[1:2] and sys.argv[1].startswith("run-"):
        heed_while_loading()
    else:
        for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            os.environ.pop(variable, None)  # what a command starts, such as psql, does not speak for its unit
        gc.set_threshold(100_000)  # what is imported is no garbage; to look for it so often costs a command a tenth
    status = _translated(lambda: _run(sys.argv[1:]))
    sys.exit(status or _translated(sys.stdout.flush))


def _run(arguments: list[str]) -> None:
    is_completing = f"_{NAME.upper()}_COMPLETE" in os.environ
    if not is_completing and arguments in _ROOT_HELP:
        stream, status = (sys.stdout, 0) if arguments else (sys.stderr, 2)
        stream.write(root_help() + "\n")
        sys.exit(status)
    _show_version(arguments == ["--version"])
    if is_completing:
        from typer._completion_classes import completion_init

        completion_init()
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    command().main(arguments, prog_name=NAME, color=False if plain else None)


def _translated(run: Callable[[], object]) -> int:
    """Run a function; print an error in one line; return the exit status."""
    try:
        run()
    except SystemExit as asked:
        return asked.code if isinstance(asked.code, int) else 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost handler
        return _reported(error)
    return 0


def _reported(error: Exception) -> int:
    """Print an error; return the exit status."""
    status = 0 if isinstance(error, CannotWrite) and error.reader_left else _status(error)  # as head does
    hint: str = getattr(error, "hint", "")
    if isinstance(error, OSError) and error.filename is not None:  # a read-only folder, a full disk
        status, hint = 1, f"{NAME} doctor --only disk --only permissions"
        error = RuntimeError(f"{error.filename}: {error.strerror}")
    if status is None:
        import traceback

        traceback.print_exception(error)
        sys.stderr.write(f"{NAME}: an internal error; please report it with the lines above\n")
        sys.stderr.write(f"hint: {NAME} support-bundle\n")
        return 70
    if status:
        from app.kernel.text import printable

        sys.stderr.write(printable(f"{NAME}: {error}\n"))
        sys.stderr.writelines(printable(f"hint: {line}\n") for line in hint.splitlines())
    return status


def _status(error: Exception) -> int | None:
    """Return the exit status of an expected error. The imports here make completion faster."""
    from app.kernel.backup import BackupRunning
    from app.kernel.config import Misconfigured, StoresUnavailable
    from app.kernel.errors import (
        Conflict,
        Denied,
        Invalid,
        NotFound,
        RateLimited,
        Refusal,
        Unauthenticated,
        Unavailable,
    )
    from app.kernel.queue import InvalidDeclaration
    from app.kernel.sockets import WrongSocket

    statuses: dict[type[Exception], int] = {
        StoresUnavailable: 69,
        Misconfigured: 78,
        InvalidDeclaration: 78,
        WrongSocket: 78,
        Invalid: 65,
        NotFound: 67,
        RateLimited: 75,
        BackupRunning: 75,
        Unavailable: 69,
        Conflict: 73,
        Denied: 77,
        Unauthenticated: 77,
        Refusal: 1,
        CannotWrite: 1,
    }
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), None)
