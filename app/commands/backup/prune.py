"""`app backup prune`."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.backup.running import with_engine, with_server
from app.kernel.cli import Json, NoInput, can_ask, confirm, print_json
from app.kernel.text import size_text

if TYPE_CHECKING:
    from app.kernel.backup.engine import Engine, Progress, Pruned


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prune)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Delete the backups and the WAL that the retention does not keep. Never the newest whole backup.

    \b
    Examples:
      app backup prune --dry-run
      app backup prune --yes
    """
    asks = not yes and not dry_run
    if asks and (no_input or not can_ask()):
        raise typer.BadParameter("this cannot be undone; say --yes to confirm", param_hint="--yes")
    if asks or dry_run:
        doomed = with_engine("prune", lambda engine, progress: engine.prune(progress, is_dry=True))
        if dry_run or not (doomed.backups or doomed.wal_segments or doomed.freed_bytes):
            return _say(doomed, as_json=as_json, is_dry=dry_run)
        confirm(f"This deletes {_what(doomed)}. Continue?")
    return _say(with_server("prune", _prune), as_json=as_json, is_dry=False)


def _prune(engine: "Engine", progress: "Progress", conninfo: str) -> "Pruned":
    from app.kernel.backup.runs import recorded

    if engine.name == "managed":
        return engine.prune(progress, is_dry=False)  # refuses, which is no failed pruning
    with recorded(conninfo, "prune", engine.name) as outcome:
        pruned = engine.prune(progress, is_dry=False)
        outcome.details = {
            "backups": list(pruned.backups),
            "kept": len(pruned.kept),
            "wal_segments": pruned.wal_segments,
            "freed_bytes": pruned.freed_bytes,
        }
    return pruned


def _say(pruned: "Pruned", *, as_json: bool, is_dry: bool) -> None:
    if as_json:
        print_json({"dry_run": is_dry, "deleted": pruned.backups, "kept": pruned.kept,
                    "wal_segments": pruned.wal_segments, "freed_bytes": pruned.freed_bytes})  # fmt: skip
        return
    for name in pruned.backups:
        typer.echo(name)
    done = "would be deleted" if is_dry else "deleted"
    typer.echo(f"{_what(pruned)} {done}; kept: {len(pruned.kept)}")


def _what(pruned: "Pruned") -> str:
    return f"backups: {len(pruned.backups)}, WAL segments: {pruned.wal_segments}, {size_text(pruned.freed_bytes)}"
