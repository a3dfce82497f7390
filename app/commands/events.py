"""`app events`: what has happened, and telling it once more."""

import sys
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.console import (
    Cursor,
    Json,
    Most,
    can_show_progress,
    group,
    in_chunks,
    moment,
    print_json,
    print_page,
    progress,
    run_once,
    shown,
    stored_name,
)

if TYPE_CHECKING:
    from app.kernel.pages import Page
    from app.kernel.process import Process
    from app.kernel.queue.events import ListedEvent

_TIME = "such as 2026-11-22T10:00:00Z, or a day"
Until = Annotated[
    datetime | None, typer.Option("--to", parser=moment, metavar="TIME", help=f"Published before this time, {_TIME}.")
]

_app = group("See the events that were published, and replay them.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.command("list")
def list_events(
    kind: Annotated[str | None, typer.Option("--type", help="Only those of this type.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option("--from", parser=moment, metavar="TIME", help=f"Published at this time or later, {_TIME}."),
    ] = None,
    until: Until = None,
    limit: Most = 20,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """List the events that were published, newest first, for as long as they are kept.

    \b
    Examples:
      app events list --type auth.actor_created
      app events list --from 2026-11-22 --to 2026-11-23 --json
    """

    async def work(p: "Process") -> "Page[ListedEvent]":
        from app.modules.platform import wiring
        from app.modules.platform.usecases.list_events import EventsWanted

        return await (await p.use(wiring.events)).list(EventsWanted(kind, since, until, limit, cursor))

    def row(event: "ListedEvent") -> tuple[object, ...]:
        return event.id, event.type, event.version, shown(event.published_at), event.trace_id or ""

    columns = ("event", "type", "version", "published at", "trace")
    print_page(run_once("events list", work), columns, row, as_json)


@_app.command()
def replay(
    subscriber: Annotated[str, typer.Option(parser=stored_name, metavar="NAME", help="Who is given the events.")],
    since: Annotated[
        datetime,
        typer.Option("--from", parser=moment, metavar="TIME", help=f"Published at this time or later, {_TIME}."),
    ],
    until: Until = None,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """Deliver events to a subscriber once more, in the order of publishing; up to now unless --to says otherwise.

    What is enqueued within the next hour goes before them. Ctrl-C stops it and
    says how to go on.

    \b
    Examples:
      app events replay --subscriber auth.greet --from 2026-11-22T10:00:00Z
      app events replay --subscriber auth.greet --from 2026-11-01 --to 2026-11-08
    """
    enqueued = 0

    async def work(p: "Process") -> None:
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.usecases.count_replay import ReplayWanted

        nonlocal enqueued
        control = await p.use(wiring.events)
        wanted = ReplayWanted(subscriber, since, until, cursor)
        total = await control.count_replay(wanted) if can_show_progress() else None
        said = ""
        with progress("events", total) as advance:
            try:
                async for done in in_chunks(lambda at: control.replay(Caller(), replace(wanted, cursor=at)), cursor):
                    enqueued += done.enqueued_count
                    advance(done.enqueued_count)
                    said = f"stopped after {enqueued} events, which were all"
                    if done.next_from and done.next_cursor:
                        reached = done.next_from.isoformat()
                        said = f"stopped after {enqueued} events, at {reached}; go on with --cursor {done.next_cursor}"
            except BaseException:
                if said:
                    sys.stderr.write(f"{said}\n")
                raise

    run_once("events replay", work)
    if as_json:
        print_json({"subscriber": subscriber, "enqueued_count": enqueued})
    else:
        typer.echo(f"enqueued {enqueued} events for {subscriber}")
