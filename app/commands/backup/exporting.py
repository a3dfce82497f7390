"""`app backup export` and `import`: one module, for moving it and for development."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.backup.running import with_database
from app.kernel.cli import Json, NoInput, print_json, starting
from app.kernel.text import plural, size_text
from app.modules import MODULES, modules

if TYPE_CHECKING:
    from app.kernel.backup.engine import Progress
    from app.kernel.db.export.archive import Manifest
    from app.kernel.process import Process

Name = Annotated[str, typer.Argument(metavar="MODULE", help="Module.", autocompletion=starting(lambda: MODULES))]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command("import")(import_)


def export(
    module: Name,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="File to make.", dir_okay=False)],
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Leave out personal data and secrets, by the rules of the module.")
    ] = False,
    as_json: Json = False,
    no_input: NoInput = False,  # noqa: ARG001 - it never asks
) -> None:
    """Write the rows of one module to a file, as one snapshot sees them. This is not a backup of the database.

    \b
    Examples:
      app backup export auth --output auth.zip --scrub
      app backup export auth --output auth.zip
    """
    from app.kernel.db.export.archive import export as write
    from app.kernel.errors import Conflict, NotFound
    from app.kernel.text import suggestion

    if str(output) == "-":
        raise typer.BadParameter("name a file: an export is not written to standard output", param_hint="--output")
    found = {each.name: each for each in modules()}.get(module)
    if found is None:
        raise NotFound(f"there is no module {module}{suggestion(module, MODULES)}")
    personal = found.scrubbed() if scrub else None
    if scrub and personal is None:
        raise Conflict(
            f"the module {module} does not declare which of its data are personal: `personal` of its manifest"
        )
    done = with_database(
        "export", lambda _, progress, where: write(where, module, output, personal, progress.step("export", None))
    )
    _print(done, f"to {output}", as_json=as_json)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File that export has made.")],
    as_json: Json = False,
    no_input: NoInput = False,  # noqa: ARG001 - it never asks
) -> None:
    """Import an exported module, all or nothing. Its tables must be empty, and its migrations the same.

    \b
    Examples:
      app backup import auth.zip
    """
    from app.kernel.config.settings import UNSAFE
    from app.kernel.db.export.archive import load

    names = [module.name for module in modules()]

    def work(p: "Process", progress: "Progress", where: str) -> "Manifest":
        allows_scrubbed = p.settings.environment in UNSAFE
        return load(where, file, names, progress.step("import", None), allows_scrubbed=allows_scrubbed)

    done = with_database("import", work)
    _print(done, f"from {file}", as_json=as_json)


def _print(done: "Manifest", where: str, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    size = size_text(sum(table.bytes for table in done.tables))
    how = "scrubbed" if done.is_scrubbed else "with personal data and secrets"
    rows = f"{plural(done.rows, 'row')} of {plural(len(done.tables), 'table')}"
    typer.echo(f"{done.module}: {rows}, {size}, {how}, {where}")
