"""`app backup restore`."""

import dataclasses
import shlex
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app import DATA
from app.commands.backup.running import with_engine
from app.kernel.cli import Json, NoInput, can_ask, confirm, moment, print_json, whole
from app.kernel.product import NAME
from app.kernel.text import exact

if TYPE_CHECKING:
    from app.kernel.backup.engine import Engine, Progress, Restore
    from app.kernel.backup.managed import Address
    from app.kernel.backup.recovery import Restored


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(restore)


def _position(text: str) -> str:
    from app.kernel.backup.timelines import lsn_number

    try:
        lsn_number(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def _folder(given: str | Path) -> Path:
    if not str(given):
        raise typer.BadParameter("is empty: name a folder")
    return Path(given)


def restore(
    backup: Annotated[
        str, typer.Argument(help="Id of a backup, or the beginning of one; by default the newest that fits.")
    ] = "",
    *,
    to: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="Restore what was committed until then.")
    ] = None,
    to_lsn: Annotated[
        str | None,
        typer.Option(parser=_position, metavar="LSN", help="Restore what was written before this position of WAL."),
    ] = None,
    timeline: Annotated[
        int | None,
        typer.Option(parser=whole(1, 2**32 - 1), metavar="N", help="Follow this timeline, not the newest."),
    ] = None,
    cluster: Annotated[str, typer.Option(help="Restore the cluster with this system identifier.")] = "",
    into: Annotated[
        Path | None,
        typer.Option(parser=_folder, metavar="DIR", help="Data folder to make; with --replace, the one to replace."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace --into, by default the embedded server's; the former is kept.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Restore the database server to a moment, by default to the end of the stored WAL. Needs no database.

    The restored folder appears once all of it is there and was checked. A killed restore can be run again.

    \b
    Examples:
      app backup restore --into /srv/restored
      app backup restore --to 2026-11-22T10:00:00Z --into /srv/restored
      app backup restore --replace
      app backup restore --replace --into /var/lib/postgresql/18/main --yes
    """
    from app.kernel.backup.engine import Restore
    from app.kernel.config import BackupSettings, PostgresSettings
    from app.processes import load_settings

    if to and to_lsn:
        raise typer.BadParameter("name a time or a position, not both", param_hint="--to-lsn")
    loaded = load_settings(only=[BackupSettings, PostgresSettings])
    if loaded[BackupSettings].engine == "managed":
        if into is not None or replace or cluster:
            hint = "--into" if into else "--replace" if replace else "--cluster"
            raise typer.BadParameter("the provider restores to a server of its own, not to a folder", param_hint=hint)
        _provided(Restore(Path(), backup, to, to_lsn or "", timeline), as_json=as_json)
        return
    settings = loaded[PostgresSettings]
    if into is None and (not replace or settings.host):
        raise typer.BadParameter("name the data folder", param_hint="--into")
    if replace and not yes:
        if no_input or not can_ask():
            raise typer.BadParameter("no terminal to ask on; confirm with --yes", param_hint="--yes")
        confirm(f"Replace {into or 'the data of the embedded server'}? What is there now is kept beside it.")
    wanted = Restore(into or Path(), backup, to, to_lsn or "", timeline, cluster)

    def work(engine: "Engine", progress: "Progress") -> "Restored":
        from app.kernel.backup.recovery import restore as restored
        from app.kernel.db.devserver.embedded import kept_stopped

        with ExitStack() as held:
            if into is None:
                place = held.enter_context(kept_stopped(DATA / "postgres"))
                at, account = dataclasses.replace(wanted, into=place.data), place.account
            else:
                at, account = wanted, None
            return restored(engine, at, progress, replaces=replace, account=account, users=[settings.user])

    done = with_engine("restore", work)
    start = f"{NAME} run-all-in-one" if into is None else shlex.join(done.start_command)
    if as_json:
        print_json({**_shown(done), "start": start})
    else:
        _print(done, start)


def _provided(wanted: "Restore", *, as_json: bool) -> None:
    """Let the provider restore to a server, which stays."""
    scratch = f"{NAME}-restore"

    def work(engine: "Engine", progress: "Progress") -> "Address":
        from app.kernel.backup.managed import Managed

        assert isinstance(engine, Managed)
        return engine.restore(scratch, wanted, progress)

    address = with_engine("restore", work)
    if as_json:
        print_json({"name": scratch, "host": address.host, "port": address.port, "restored_to": address.restored_to})
    else:
        until = f", up to {exact(address.restored_to)}" if address.restored_to else ""
        typer.echo(f"restored to the server {scratch} at {address.host}:{address.port}{until}")


def _shown(done: "Restored") -> dict[str, object]:
    return {
        "folder": str(done.folder),
        "former_folder": str(done.former) if done.former else None,
        "backup": done.backup.id,
        "cluster": done.backup.cluster,
        "lsn": done.replayed.lsn,
        "timeline": done.replayed.timeline,
        "last_transaction_at": done.replayed.last_transaction_at,
        "reached": done.replayed.is_reached,
        "lost": done.lost,
        "took_s": round(done.took_s, 1),
        "warning": done.warning or None,
    }


def _print(done: "Restored", start: str) -> None:
    replayed = done.replayed
    lines = {
        "restored": f"{done.folder}, from backup {done.backup.id} of {exact(done.backup.finished_at)}",
        "up to": f"{replayed.lsn}, last transaction {exact(replayed.last_transaction_at) or 'that of the backup'}",
        "timeline": f"{replayed.timeline}, from {done.backup.timeline}",
        "lost": done.lost,
        "kept": f"the former folder is {done.former}" if done.former else "",
        "took": f"{done.took_s:.1f} s",
        "warning": done.warning,
        "start": start,
    }
    for name, text in lines.items():
        if text:
            typer.echo(f"{name + ':':<10} {text}")
