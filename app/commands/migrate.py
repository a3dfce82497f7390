"""`app migrate`: the schema."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import ROOT
from app.commands.once import run_once
from app.kernel.cli import Json, can_ask, confirm, group, print_json, print_table
from app.modules import MODULES

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.kernel.db.migrations import Migrator
    from app.kernel.process import Process

_app = group("Create, apply and roll back migrations.")
_FOLDER = ROOT / "migrations"


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _with_migrator(work: "Callable[[Migrator], Any]") -> Any:
    async def body(p: "Process") -> Any:
        from app.kernel.db.migrations import Migrator, in_thread
        from app.kernel.db.server import server

        migrator = Migrator(await p.use(server), _FOLDER)
        done = await in_thread(migrator, lambda: work(migrator))
        if warning := migrator.newer_release():
            _tell(warning)
        return done

    return run_once("migrate", body)


@_app.command()
def create(
    module: Annotated[str, typer.Argument(help="The module whose schema it changes.")],
    description: Annotated[str, typer.Argument(help="What it does, such as add_user_roles.")],
) -> None:
    """Create an empty migration with its rollback, named {yyyymmddHHMMSS}_{module}_{description}.sql.

    \b
    Examples:
      app migrate create auth add_user_roles
    """
    from app.kernel.db import migrations

    for path in migrations.create(_FOLDER, module, description, ("kernel", *MODULES)):
        typer.echo(path.relative_to(ROOT))


@_app.command()
def up(as_json: Json = False) -> None:
    """Apply every pending migration. Processes do this by themselves when they start.

    \b
    Examples:
      app migrate up
    """
    applied = _with_migrator(lambda migrator: migrator.up(_tell))
    if as_json:
        print_json({"applied": applied})
    elif not applied:
        typer.echo("nothing to apply")


@_app.command()
def down(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    no_input: Annotated[bool, typer.Option("--no-input", help="Never ask; fail instead.")] = False,
    as_json: Json = False,
) -> None:
    """Roll back the newest applied migration. It may drop tables with what is in them.

    \b
    Examples:
      app migrate down
      app migrate down --yes
    """
    if not yes:
        if no_input or not can_ask():
            raise typer.BadParameter("this may drop data; say --yes to do it", param_hint="--yes")
        confirm("This may drop tables with what is in them. Roll back the newest migration?")
    undone = _with_migrator(lambda migrator: migrator.down(_tell))
    if as_json:
        print_json({"rolled_back": undone})
    elif undone is None:
        typer.echo("nothing to roll back")


@_app.command()
def status(as_json: Json = False) -> None:
    """Show every migration: applied, pending, edited (refused), or unknown (applied by a newer release).

    \b
    Examples:
      app migrate status --json
    """
    found = _with_migrator(lambda migrator: migrator.status())
    if as_json:
        print_json({"items": [{"id": s.id, "state": s.state, "applied_at": s.applied_at} for s in found]})
    else:
        shown = [(s.id, s.state, f"{s.applied_at:%Y-%m-%d %H:%M:%S}Z" if s.applied_at else "") for s in found]
        print_table(("migration", "state", "applied at"), shown)


@_app.command()
def plan(as_json: Json = False) -> None:
    """Show what `app migrate up` would run, without running it.

    \b
    Examples:
      app migrate plan
    """
    pending = _with_migrator(lambda migrator: migrator.pending())
    if as_json:
        items = [{"id": m.id, "sql": m.path.read_text(encoding="utf-8")} for m in pending]
        print_json({"items": items})
    elif not pending:
        typer.echo("nothing to apply")
    else:
        for migration in pending:
            typer.echo(f"-- {migration.path.name}\n{migration.path.read_text(encoding='utf-8')}")
