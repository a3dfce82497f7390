"""`app cheat`."""

import typer

from app.kernel.cli import single
from app.kernel.product import NAME

LOOK = {
    "status": "what needs attention, and what runs",
    "doctor": "what is wrong, and how to fix it",
    "health --ready": "what each process of this machine lacks",
    "errors list --state open": "captured errors, most recent first",
    "jobs list --state leased": "what runs, or hangs",
    "dead-letters list": "jobs that were given up",
    "migrate status": "the schema: applied, pending, unknown",
}
CHANGE = {
    "queues pause NAME": "start no more jobs, until queues resume",
    "dead-letters retry --queue NAME": "run them again when the cause is gone",
    "support-bundle": "write an archive for a report, redacted",
}


def cheat() -> None:
    """Show the ten commands of a bad night.

    \b
    Examples:
      app cheat
    """
    typer.echo("Look, without changing anything:\n")
    typer.echo(_rows(LOOK))
    typer.echo("\nAct:\n")
    typer.echo(_rows(CHANGE))
    typer.echo(f"\n{NAME} COMMAND --help has more, and docs/runbooks.md what to do at each alert.")


def _rows(commands: dict[str, str]) -> str:
    width = max(map(len, [*LOOK, *CHANGE]))
    return "\n".join(f"  {NAME} {command:<{width}}  {text}" for command, text in commands.items())


typer_app = single(cheat)
