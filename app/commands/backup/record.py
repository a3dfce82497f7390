"""`app backup record`."""

from typing import TYPE_CHECKING

import typer

from app.commands.backup.running import with_server
from app.kernel.cli import Json, NoInput, print_json
from app.kernel.text import exact

if TYPE_CHECKING:
    from app.kernel.backup.engine import Engine
    from app.kernel.backup.observing import Observed


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(record)


def record(as_json: Json = False, no_input: NoInput = False) -> None:  # noqa: ARG001 - it never asks
    """Record what pgBackRest or the provider of the database has stored, so that alerts and the console know of it.

    The schedule platform.backup does this with backup.engine managed, and run-backup-agent every minute.

    \b
    Examples:
      app backup record
    """
    from app.kernel.backup import TargetUnavailable

    found = with_server("record", lambda engine, _, conninfo: _record(engine, conninfo))
    if as_json:
        print_json({"backup": found.backup, "wal": found.wal, "problem": found.problem or None})
    else:
        typer.echo(
            f"newest backup: {found.backup.id}, {exact(found.backup.finished_at)}" if found.backup else "no backup"
        )
        typer.echo(f"WAL is stored until {exact(found.wal.stored_at)}" if found.wal else "no WAL is stored")
    if found.problem:
        raise TargetUnavailable(found.problem)


def _record(engine: "Engine", conninfo: str) -> "Observed":
    from app.kernel.backup.observing import observe
    from app.kernel.errors import Denied

    if engine.name == "builtin":
        raise Denied("backup.engine is builtin: what it stores is recorded where it is stored")
    return observe(conninfo, engine)
