"""`app db`."""

import os
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.once import run_once
from app.kernel.cli import group

if TYPE_CHECKING:
    from app.kernel.process import Process

_OF_PSQL = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|TERM|COLORTERM|COLUMNS|LINES|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|PAGER"
    "|LESS|LESSCHARSET|EDITOR|VISUAL|PSQL.*|NO_COLOR|INPUTRC"
)
_app = group("Open a shell on the database.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


def _kept() -> dict[str, str]:
    """Return what psql, its pager and its editor need of the environment, without our secrets."""
    return {name: value for name, value in os.environ.items() if _OF_PSQL.fullmatch(name)}


@_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def shell(arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of psql.")] = None) -> None:
    """Open psql on the configured database server, or on the embedded one.

    \b
    Examples:
      app db shell
      app db shell -c 'SELECT now()'
    """

    async def work(p: "Process") -> int:
        from app.kernel.config import Misconfigured
        from app.kernel.db.server import server

        found = await p.use(server)
        own = found.bin_dir / "psql" if found.bin_dir else None
        psql = str(own) if own and own.is_file() else shutil.which("psql")
        if psql is None:
            raise Misconfigured(
                "psql is not installed here, nor in the image; run this where PostgreSQL's client is",
                hint="apt-get install postgresql-client",
            )
        # in the environment, unlike on the command line, other users cannot see the password
        known = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        known |= {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}
        variables = {known[key]: str(value) for key, value in found.in_order().items() if key in known}
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # in psql Ctrl-C cancels a query
        return subprocess.run([psql, *(arguments or [])], env=_kept() | variables, check=False).returncode  # noqa: S603, ASYNC221

    raise typer.Exit(run_once("db shell", work))
