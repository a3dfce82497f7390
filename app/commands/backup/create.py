"""`app backup create`."""

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.backup.listing import listing_of
from app.commands.backup.running import with_server
from app.kernel.cli import Json, NoInput, print_json, whole
from app.kernel.text import size_text

if TYPE_CHECKING:
    from app.kernel.backup import Backup
    from app.kernel.backup.engine import Engine, Progress


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(create)


def create(
    max_rate: Annotated[
        int,
        typer.Option(
            parser=whole(0, 2**40), metavar="N", help="Bytes per second to read from the server; 0: no limit."
        ),
    ] = 0,
    as_json: Json = False,
    no_input: NoInput = False,  # noqa: ARG001 - it never asks
) -> None:
    """Take a full backup of the database server. It is listed once all of it is stored.

    \b
    Examples:
      app backup create
      app backup create --max-rate 50000000
      app backup create --json
    """
    backup = with_server("create", partial(_create, max_rate))
    if as_json:
        print_json(listing_of(backup, datetime.now(UTC)))
    else:
        typer.echo(f"{backup.id}: {size_text(backup.size_bytes)}, stored as {size_text(backup.stored_bytes)}")


def _create(max_rate: int, engine: "Engine", progress: "Progress", conninfo: str) -> "Backup":
    from app.kernel.backup.runs import recorded
    from app.kernel.errors import Invalid

    if max_rate and engine.name != "builtin":
        raise Invalid(f"--max-rate is for the engine builtin, not for {engine.name}")
    if engine.name == "managed":
        return engine.create(conninfo, progress)  # refuses, which is no failed backup
    with recorded(conninfo, "backup", engine.name) as outcome:
        backup = engine.create(conninfo, progress.paced(max_rate))
        outcome.backup_id = backup.id
        outcome.size_bytes, outcome.stored_bytes = backup.size_bytes, backup.stored_bytes
    return backup
