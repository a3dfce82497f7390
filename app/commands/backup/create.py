"""`app backup create`."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from app.commands.backup.listing import listing_of
from app.commands.backup.running import with_server
from app.kernel.cli import Json, NoInput, print_json
from app.kernel.text import size_text

if TYPE_CHECKING:
    from app.kernel.backup import Backup
    from app.kernel.backup.engine import Engine, Progress


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(create)


def create(as_json: Json = False, no_input: NoInput = False) -> None:  # noqa: ARG001 - it never asks
    """Take a full backup of the database server. It is listed once all of it is stored.

    \b
    Examples:
      app backup create
      app backup create --json
    """
    backup = with_server("create", _create)
    if as_json:
        print_json(listing_of(backup, datetime.now(UTC)))
    else:
        typer.echo(f"{backup.id}: {size_text(backup.size_bytes)}, stored as {size_text(backup.stored_bytes)}")


def _create(engine: "Engine", progress: "Progress", conninfo: str) -> "Backup":
    from app.kernel.backup.runs import recorded

    with recorded(conninfo, "backup", engine.name) as outcome:
        backup = engine.create(conninfo, progress)
        outcome.backup_id = backup.id
        outcome.size_bytes, outcome.stored_bytes = backup.size_bytes, backup.stored_bytes
    return backup
