"""`app backup list` and `show`."""

from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from app.commands.backup.running import with_engine
from app.kernel.actions.columns import Column, Columns
from app.kernel.cli import Json, print_json
from app.kernel.text import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.kernel.backup import Backup
    from app.kernel.backup.engine import Engine

Id = Annotated[str, typer.Argument(help="Id of a backup, the beginning of one, or latest.")]


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup in the list. Of one whose record is damaged, only the name is known."""

    id: str
    cluster: str
    state: str
    problem: str = ""
    engine: str = ""
    database: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    age_s: int | None = None
    size_bytes: int | None = None
    stored_bytes: int | None = None
    ratio: float | None = None
    server_version: str = ""
    app_version: str = ""
    schema: str = ""
    timeline: int | None = None
    start_lsn: str = ""
    stop_lsn: str = ""
    key_id: str = ""

    columns: ClassVar[Columns] = (
        Column("backup", "id"),
        Column("taken", lambda listed: listed.finished_at or ""),
        Column("size", lambda listed: size_text(listed.size_bytes)),
        Column("stored", lambda listed: size_text(listed.stored_bytes)),
        Column("ratio", lambda listed: listed.ratio or ""),
        Column("state", is_state=True),
        Column("server", "server_version"),
        Column("timeline", extra=True),
        Column("schema", extra=True),
        Column("cluster", extra=True),
        Column("problem"),
    )


def add(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="list")(list_)
    app.command()(show)


def list_(as_json: Json = False) -> None:
    """List the backups on the target, oldest first. Needs no database.

    \b
    Examples:
      app backup list
      app backup list --json
    """
    found = with_engine("list", lambda engine, _: listed(engine))
    if as_json:
        print_json({"items": [asdict(each) for each in found]})
        return
    from app.kernel.cli.tables import print_list

    print_list(found, Listed.columns)


def show(backup: Id, as_json: Json = False) -> None:
    """Show a backup. Needs no database.

    \b
    Examples:
      app backup show latest
      app backup show 20261127T021500Z-3f2a --json
    """
    found = with_engine("show", lambda engine, _: engine.get(backup))
    if as_json:
        print_json(found)
    else:
        from app.kernel.cli.tables import print_details

        print_details(listing_of(found, datetime.now(UTC)))


def listed(engine: "Engine") -> "Sequence[Listed]":
    """Return the backups of an engine, oldest first, then those whose records are damaged."""
    now = datetime.now(UTC)
    found = {(each.cluster, each.id): listing_of(each, now) for each in engine.list()}
    for one in engine.damaged():
        whole = found.get((one.cluster, one.backup), Listed(one.backup, one.cluster, "damaged"))
        found[one.cluster, one.backup] = replace(whole, state="damaged", problem=one.problem)
    return [*found.values()]


def listing_of(backup: "Backup", now: datetime) -> Listed:
    """Return a backup as it is listed."""
    same: dict[str, Any] = {
        each.name: getattr(backup, each.name) for each in fields(Listed) if hasattr(backup, each.name)
    }
    other: dict[str, Any] = {
        "state": "whole",
        "age_s": max(0, int((now - backup.finished_at).total_seconds())),
        "ratio": round(backup.size_bytes / backup.stored_bytes, 1) if backup.stored_bytes else None,
        "server_version": f"{version // 10_000}.{version % 10_000}" if (version := backup.server_version) else "",
    }
    return Listed(**(same | other))
