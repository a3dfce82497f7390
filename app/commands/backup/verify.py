"""`app backup verify`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.backup.listing import Id
from app.commands.backup.running import engine_for, with_engine, with_process
from app.kernel.cli import Json, print_json
from app.kernel.errors import NotFound
from app.kernel.product import NAME
from app.kernel.text import plural, size_text

if TYPE_CHECKING:
    from app.kernel.backup.engine import Engine, Progress, Verified


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)


def verify(
    backup: Id = "",
    every: Annotated[bool, typer.Option("--all", help="Verify all backups, and record the result.")] = False,
    as_json: Json = False,
) -> None:
    """Read a backup and its WAL up to the newest, and check everything. Changes nothing on the target.

    It needs no database: without one, only the record of --all is missing. Exit status: 0, or 1 if one is damaged.

    \b
    Examples:
      app backup verify latest
      app backup verify --all --json
    """
    if bool(backup) == every:
        raise typer.BadParameter("give a backup, or --all", param_hint="BACKUP")
    if every:
        found = with_process("verify", lambda p, progress, where: _verify_all(engine_for(p), progress, where))
    else:
        found = [with_engine("verify", lambda engine, progress: _result(engine.verify(engine.get(backup), progress)))]
    if as_json:
        print_json({"items": found})
    for one in [] if as_json else found:
        problems = one["problems"]
        read = f"{size_text(one['read_bytes'])} read, {plural(one['wal_segments'], 'segment')} of WAL"
        typer.echo(f"{one['id']}: {'damaged' if problems else 'whole'}; {read}")
        for problem in problems:
            typer.echo(f"  {problem}")
    if any(one["problems"] for one in found):
        sys.stdout.flush()
        raise typer.Exit(1)


def _verify_all(engine: "Engine", progress: "Progress", where: str | None) -> list[dict[str, Any]]:
    from app.kernel.backup.runs import recorded_if_possible

    if engine.name == "managed":  # it refuses, which says nothing of backups
        return verified(engine, progress)
    with recorded_if_possible(where, "verify", engine.name) as outcome:
        found = verified(engine, progress)
        outcome.details = {"backups": found}
        if damaged := [one for one in found if one["problems"]]:
            outcome.problem = f"{len(damaged)} of {len(found)} backups are damaged: {damaged[0]['problems'][0]}"
    return found


def verified(engine: "Engine", progress: "Progress") -> list[dict[str, Any]]:
    """Verify all backups; return the result of each, without those that are deleted meanwhile.

    Raises NotFound without any.
    """
    whole = engine.list()
    if not whole and not engine.damaged():
        raise NotFound(f"there is no backup on {engine.label}", hint=f"{NAME} config explain backup.target")
    results = [(each, _result(engine.verify(each, progress))) for each in whole]
    kept = {(each.cluster, each.id) for each in engine.list()}
    records = [one for one in engine.damaged() if (one.cluster, one.backup) not in kept]
    return [
        *({"id": one.backup, "problems": [one.problem], "read_bytes": 0, "wal_segments": 0} for one in records),
        *(result for backup, result in results if (backup.cluster, backup.id) in kept),
    ]


def _result(verified: "Verified") -> dict[str, Any]:
    return {
        "id": verified.backup.id,
        "problems": list(verified.problems),
        "read_bytes": verified.read_bytes,
        "wal_segments": verified.wal_segments,
    }
