"""`app backup drill`."""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from app.commands.backup.listing import Id
from app.commands.backup.running import engine_for, with_process
from app.kernel.actions.columns import Column, Columns
from app.kernel.backup import DrillFailed
from app.kernel.cli import Json, NoInput, print_json
from app.kernel.errors import Denied
from app.kernel.product import NAME
from app.kernel.text import exact, size_text

if TYPE_CHECKING:
    from app.kernel.backup.drill import Drill
    from app.kernel.backup.engine import Progress
    from app.kernel.backup.managed import Address
    from app.kernel.config import PostgresSettings
    from app.kernel.process import Process

_RESTORE = f"{NAME} backup restore"
Keep = Annotated[bool, typer.Option("--keep", help="Keep the restored data folder, to look at.")]


@dataclass(frozen=True, slots=True)
class _Row:
    check: str
    state: str
    seconds: float
    summary: str

    columns: ClassVar[Columns] = (
        Column("check"),
        Column("state", is_state=True),
        Column("seconds"),
        Column("what was checked", "summary"),
    )


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(drill)


def drill(
    backup: Id = "latest",
    keep: Keep = False,
    as_json: Json = False,
    no_input: NoInput = False,  # noqa: ARG001 - it never asks
) -> None:
    """Restore a backup on a scratch server, from the target alone, and prove what came back.

    It needs no database. With one, `latest` is the newest backup of that database's cluster, and the result is
    recorded. Exit status: 0, or 1 if a check failed.

    \b
    Examples:
      app backup drill
      app backup drill 20261127T021500Z-3f2a --keep
    """
    result = with_process("drill", lambda p, progress, where: _drill(p, progress, where, backup, keep=keep))
    if as_json:
        print_json(result.details())
    else:
        _print(result)
    if result.problem:
        raise DrillFailed(result.problem, hint=_RESTORE if result.engine == "managed" else "")


def _drill(p: "Process", progress: "Progress", where: str | None, wanted: str, *, keep: bool) -> "Drill":
    import tempfile
    from dataclasses import replace
    from functools import partial
    from pathlib import Path

    from loguru import logger

    from app.commands.canary import sign_in_on
    from app.kernel.backup.drill.place import scratch_folder
    from app.kernel.backup.drill.run import Course, begun
    from app.kernel.backup.engine import LATEST
    from app.kernel.backup.runs import recorded_if_possible
    from app.kernel.config import BackupSettings, PostgresSettings

    engine, user = engine_for(p), p.settings[PostgresSettings].user
    parent = Path(p.settings[BackupSettings].scratch or tempfile.gettempdir()).expanduser()
    is_provided = engine.name == "managed"
    if is_provided and keep:
        raise Denied("backup.engine is managed: its scratch server goes away with the drill", hint=_RESTORE)
    with recorded_if_possible(where, "drill", engine.name) as outcome:
        backup = engine.get(wanted, _cluster(where) if where and wanted == LATEST else "")
        result = begun(engine, backup)
        outcome.backup_id, outcome.size_bytes, outcome.stored_bytes = backup.id, backup.size_bytes, backup.stored_bytes
        here = replace(backup, size_bytes=0) if is_provided else backup  # nothing is restored here
        with scratch_folder(parent, here, keep=keep) as folder:
            if keep:
                logger.warning("the restored data folder is kept: {}", folder / "data")
            try:
                login = partial(sign_in_on, folder=folder)
                files, at = p.root / "migrations", partial(scratch_conninfo, p.settings[PostgresSettings])
                Course(engine, folder, files, user, login, progress, at).run(result)
            finally:
                outcome.details = result.details()
        outcome.problem = result.problem
    return result


def _cluster(where: str) -> str:
    """Return the system identifier of the server; empty if it does not answer any more."""
    import psycopg

    with suppress(psycopg.Error), psycopg.connect(where) as connection:
        row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
        return row[0] if row else ""
    return ""


def scratch_conninfo(settings: "PostgresSettings", address: "Address") -> str:
    """Return where a scratch server of the provider is: roles, passwords and databases are those of the settings."""
    from dataclasses import replace

    from psycopg.conninfo import make_conninfo

    from app.kernel.db.server import configured_server

    there = replace(settings, host=address.host, port=address.port, direct_host="", replica_hosts="")
    return make_conninfo("", **configured_server(there, f"{NAME}-drill").in_order())


def _print(result: "Drill") -> None:
    from app.kernel.cli.tables import print_list

    print_list([_Row(c.name, c.state, c.seconds, c.summary) for c in result.checks], _Row.columns)
    for check in result.checks:
        for line in (*check.problems, *check.notes):
            typer.echo(f"{check.name}: {line}")
    of = f" of the cluster {result.cluster}" if result.cluster else ""
    size = f"{size_text(result.size_bytes)}, stored as {size_text(result.stored_bytes)}"
    typer.echo(f"backup {result.backup_id}{of}: {size}")
    if result.rto_s is not None:
        typer.echo(f"recovery took {result.rto_s:.1f} s, until a login was answered")
    if result.rpo_s is not None:
        last = f"; the last commit that was restored is of {exact(result.restored_to)}" if result.restored_to else ""
        typer.echo(f"a loss of the server when it began would have lost {result.rpo_s:.1f} s of commits{last}")
