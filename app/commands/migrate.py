"""`app migrate`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import IS_INSTALLED, ROOT
from app.commands.once import run_once
from app.kernel.cli import Json, NoInput, can_ask, confirm, group, print_json
from app.modules import MODULES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from app.kernel.db.migrations.migrator import Migrator
    from app.kernel.process import Process

_app = group("Create, apply and roll back migrations.")
_FOLDER = ROOT / "migrations"


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _with_migrator(work: "Callable[[Migrator], Any]") -> Any:
    async def body(p: "Process") -> Any:
        from app.kernel.db.migrations.migrator import Migrator, in_thread
        from app.kernel.db.server import server

        migrator = Migrator(await p.use(server), _FOLDER)
        done = await in_thread(migrator, lambda: work(migrator))
        if migrator.warning:
            _tell(migrator.warning)
        return done

    return run_once("migrate", body)


@_app.command()
def create(
    module: Annotated[str, typer.Argument(help="Module of the schema.")],
    description: Annotated[str, typer.Argument(help="Description, such as add_user_roles.")],
) -> None:
    """Create an empty migration and its rollback, {yyyymmddHHMMSS}_{module}_{description}.sql.

    \b
    Examples:
      app migrate create auth add_user_roles
    """
    from app.kernel.db.migrations import files
    from app.kernel.errors import Denied

    if IS_INSTALLED:
        raise Denied("migrations are created in a checkout, and this package is installed from a wheel")
    for path in files.create(_FOLDER, module, description, ("kernel", *MODULES)):
        typer.echo(path.relative_to(ROOT))


@_app.command()
def up(as_json: Json = False) -> None:
    """Apply all pending migrations. Processes also do this when they start.

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
    module: Annotated[str, typer.Option("--module", help="Roll back all migrations of this module.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL without running it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Roll back the newest applied migration, or all migrations of a module. This may drop tables and their rows.

    \b
    Examples:
      app migrate down
      app migrate down --yes
      app migrate down --module orders --dry-run
    """
    if dry_run:
        _print_sql([(m.id, m.rollback) for m in _with_migrator(lambda migrator: migrator.last(module))], as_json)
        return
    if not yes:
        if no_input or not can_ask():
            raise typer.BadParameter("this may drop data; say --yes to confirm", param_hint="--yes")
        what = f"all migrations of {module}" if module else "the newest migration"
        confirm(f"This may drop tables and their rows. Roll back {what}?")
    undone: list[str] = _with_migrator(lambda migrator: migrator.down(_tell, module))
    if as_json:
        print_json({"rolled_back": undone if module else next(iter(undone), None)})
    elif not undone:
        typer.echo("nothing to roll back")


@_app.command()
def status(as_json: Json = False) -> None:
    """List migrations and their states: applied, pending, edited (refused), or unknown (of a newer release).

    \b
    Examples:
      app migrate status --json
    """
    found = _with_migrator(lambda migrator: migrator.status())
    if as_json:
        print_json({"items": [{"id": s.id, "state": s.state, "applied_at": s.applied_at} for s in found]})
    else:
        from app.kernel.cli.tables import print_table
        from app.kernel.text import exact

        print_table(("migration", "state", "applied at"), [(s.id, s.state, exact(s.applied_at)) for s in found])


@_app.command()
def plan(as_json: Json = False) -> None:
    """Print the SQL of pending migrations without running it.

    \b
    Examples:
      app migrate plan
    """
    pending = _with_migrator(lambda migrator: migrator.pending())
    _print_sql([(m.id, m.path) for m in pending], as_json, nothing="nothing to apply")


def _print_sql(files: "list[tuple[str, Path]]", as_json: bool, nothing: str = "nothing to roll back") -> None:
    """Print the SQL of some files."""
    found = [(name, path, path.read_text(encoding="utf-8")) for name, path in files]
    if as_json:
        print_json({"items": [{"id": name, "sql": text} for name, _, text in found]})
    elif not found:
        typer.echo(nothing)
    for _, path, text in [] if as_json else found:
        typer.echo(f"-- {path.name}\n{text}")
