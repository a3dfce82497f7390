"""`app capacity`."""

from typing import Annotated

import typer

from app.kernel.cli import Json, print_json, single, whole

_MOST = 1_000_000


def _rate(help_text: str) -> typer.models.OptionInfo:
    return typer.Option(parser=whole(0, _MOST), metavar="NUMBER", help=help_text)


def capacity(  # noqa: PLR0917 - options
    requests: Annotated[int, _rate("Authenticated requests a second.")] = 100,
    jobs: Annotated[int, _rate("Jobs a second, without those of subscribers.")] = 10,
    events: Annotated[int, _rate("Published events a second.")] = 10,
    subscribers: Annotated[int, _rate("Subscribers of an event.")] = 1,
    job_ms: Annotated[int, _rate("Duration of a job in milliseconds.")] = 50,
    sessions: Annotated[int, typer.Option(parser=whole(0, 10**9), metavar="NUMBER", help="Live sessions.")] = 1000,
    sign_ins: Annotated[int, typer.Option(parser=whole(0, 10**9), metavar="NUMBER", help="Sign-ins a day.")] = 1000,
    retention_days: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 36500),
            metavar="DAYS",
            help="Retention of jobs and events.",
            show_default="from the settings",
        ),
    ] = None,
    max_connections: Annotated[
        int, typer.Option(parser=whole(1, 100_000), metavar="NUMBER", help="max_connections of PostgreSQL.")
    ] = 100,
    as_json: Json = False,
) -> None:
    """Compute what a load needs: processes, connections, storage, WAL.

    The costs of a request, a job and an event were measured with ours, which do little: add what yours do. Pools,
    concurrency and retention are those of the settings. Exit status: 1 if something exceeds its limit.

    \b
    Examples:
      app capacity --requests 1000 --jobs 200 --events 100 --sessions 1000000
      app capacity --jobs 5000 --job-ms 200 --retention-days 3 --json
    """
    from app.kernel.config import KeepSettings, PostgresSettings, QueueSettings
    from app.kernel.sizing import Load, Retained, plan
    from app.processes import load_settings

    settings = load_settings(only=(KeepSettings, PostgresSettings, QueueSettings))
    load = Load(requests, jobs, events, subscribers, sessions, sign_ins / 86400, job_ms / 1000)
    kept = Retained.of(settings[KeepSettings], retention_days)
    needs = plan(load, kept, settings[PostgresSettings], settings[QueueSettings], max_connections)
    if as_json:
        print_json({"items": needs})
    else:
        from app.kernel.cli.tables import print_table

        rows = [(need.what, f"{need.value:,.4g} {need.unit}".rstrip(), need.why) for need in needs]
        print_table(("needed", "quantity", "because"), rows)
    for need in needs:
        if not need.fits:
            problem = f"{need.what}: {need.value:g} are more than {need.limit:g}, nine tenths of max_connections"
            typer.echo(f"{problem}; lower POSTGRES_POOL_SIZE, or put PgBouncer in between (docs/scaling.md)", err=True)
    raise typer.Exit(0 if all(need.fits for need in needs) else 1)


typer_app = single(capacity)
