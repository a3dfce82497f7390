"""Commands of platform that do not fit a declaration: work in many parts with progress, and words of their own."""

import sys
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from app.commands.once import run_once
from app.kernel.cli import (
    Json,
    can_ask,
    can_show_progress,
    confirm,
    group,
    in_chunks,
    moment,
    print_json,
    print_table,
    progress,
    seconds,
    shown,
    stored_name,
    whole,
)

if TYPE_CHECKING:
    from app.kernel.actions.compose import Operations
    from app.kernel.process import Process
    from app.modules.platform.alerts import Tried
    from app.modules.platform.dead_letters import DeadLettersChosen
    from app.modules.platform.errors import ErrorDetails

OfQueue = Annotated[str | None, typer.Option("--queue", help="Only those of this queue.")]
OfTask = Annotated[str | None, typer.Option("--task", help="Only those of this task or subscriber.")]
OneLetter = Annotated[UUID | None, typer.Argument(help="Id of one dead letter.", show_default=False)]
OlderThan = Annotated[
    float | None, typer.Option(parser=seconds(), metavar="DURATION", help="Only those that died before, such as 7d.")
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
ErrorId = Annotated[UUID, typer.Argument(help="Id of the group of errors.", show_default=False)]
_TIME = "such as 2026-11-22T10:00:00Z, or a day"

_queues = group("See, pause, resume and limit queues.")
_dead_letters = group("See, retry and purge jobs that were given up.")
_events = group("See the events that were published, and replay them.")
_errors = group("See, resolve and mute captured errors.")
_GROUPS = {"queues": _queues, "dead-letters": _dead_letters, "events": _events, "errors": _errors}


def typer_app(name: str) -> typer.Typer:
    """Return the group of this name."""
    return _GROUPS[name]


async def _operations(p: "Process", *features: type[Any]) -> "Operations":
    from app.kernel.actions.compose import Operations, operations

    return Operations(await operations(p, features))


@_queues.command()
def limit(
    name: Annotated[str, typer.Argument(parser=stored_name, metavar="NAME", help="Name of the queue.")],
    concurrency: Annotated[
        int | None,
        typer.Argument(
            parser=whole(1, 1_000_000), metavar="concurrency", help="Most jobs at once.", show_default=False
        ),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="As many as the workers can.")] = False,
    as_json: Json = False,
) -> None:
    """Limit how many jobs of a queue run at once in the whole deployment. Running jobs go on. Safe to repeat.

    \b
    Examples:
      app queues limit reports 2
      app queues limit reports --none
    """
    if (concurrency is None) != none:
        raise typer.BadParameter("give either a number or --none", param_hint="CONCURRENCY")

    async def work(p: "Process") -> Any:
        from app.modules.platform.queues import QueueLimit, Queues

        return await (await _operations(p, Queues))("platform.limit_queue", QueueLimit(name, concurrency))

    limited = run_once("queues limit", work)
    if as_json:
        print_json(limited)
    else:
        typer.echo(str(limited))


@_dead_letters.command()
def retry(
    letter_id: OneLetter = None,
    queue: OfQueue = None,
    task: OfTask = None,
    older_than: OlderThan = None,
    every: All = False,
    as_json: Json = False,
) -> None:
    """Make one dead letter a job again, or those that fit; with all attempts before them.

    One whose unique key an unfinished job has by now stays a dead letter.

    \b
    Examples:
      app dead-letters retry 0193505f-1c00-7000-8000-000000000001
      app dead-letters retry --task reports.render
      app dead-letters retry --all
    """
    _check_choice(letter_id, queue, task, older_than, every)
    if letter_id is not None:
        changed = _one("dead-letters retry", "platform.retry_dead_letter", letter_id)
        if as_json:
            print_json(changed)
        else:
            typer.echo(str(changed))
        return
    done = {"retried_count": 0, "conflict_count": 0}
    _through("dead-letters retry", "platform.retry_dead_letters", _chosen(queue, task, older_than, every), done)
    if as_json:
        print_json(done)
    else:
        left = f"; {done['conflict_count']} were left, as unfinished jobs have their unique keys"
        typer.echo(f"retried {done['retried_count']} dead letters{left if done['conflict_count'] else ''}")


@_dead_letters.command()
def purge(
    letter_id: OneLetter = None,
    queue: OfQueue = None,
    task: OfTask = None,
    older_than: OlderThan = None,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    no_input: Annotated[bool, typer.Option("--no-input", help="Never ask; fail instead.")] = False,
    as_json: Json = False,
) -> None:
    """Remove one dead letter, or those that fit, for good.

    \b
    Examples:
      app dead-letters purge 0193505f-1c00-7000-8000-000000000001
      app dead-letters purge --older-than 7d --yes
      app dead-letters purge --queue reports --older-than 12h
    """
    _check_choice(letter_id, queue, task, older_than, every)
    if not yes and (no_input or not can_ask()):
        raise typer.BadParameter("this removes them for good; say --yes to do it", param_hint="--yes")
    chosen = _chosen(queue, task, older_than, every)
    if not yes:
        what = f"{_count(chosen)} dead letters" if letter_id is None else f"the dead letter {letter_id}"
        confirm(f"Remove {what} for good?")
    done = {"deleted_count": 0}
    if letter_id is not None:
        _one("dead-letters purge", "platform.purge_dead_letter", letter_id)
        done["deleted_count"] = 1
    else:
        _through("dead-letters purge", "platform.purge_dead_letters", chosen, done)
    if as_json:
        print_json(done)
    else:
        typer.echo(f"purged {done['deleted_count']} dead letters")


def _check_choice(
    letter_id: UUID | None, queue: str | None, task: str | None, older_than: float | None, every: bool
) -> None:
    filtered = any(value is not None for value in (queue, task, older_than))
    if [letter_id is not None, filtered, every].count(True) != 1:
        raise typer.BadParameter("give one id, or --queue, --task or --older-than, or --all", param_hint="LETTER_ID")


def _chosen(queue: str | None, task: str | None, older_than: float | None, every: bool) -> "DeadLettersChosen":
    from app.modules.platform.dead_letters import DeadLettersChosen

    died_before = None if older_than is None else datetime.now(UTC) - timedelta(seconds=older_than)
    return DeadLettersChosen(queue, task, died_before, every)


def _one(name: str, action: str, letter_id: UUID) -> Any:
    async def work(p: "Process") -> Any:
        from app.modules.platform.dead_letters import DeadLetterRef, DeadLetters

        return await (await _operations(p, DeadLetters))(action, DeadLetterRef(letter_id))

    return run_once(name, work)


def _count(chosen: "DeadLettersChosen") -> int:
    async def work(p: "Process") -> int:
        from app.modules.platform.dead_letters import DeadLetters

        return await (await _operations(p, DeadLetters))("platform.count_dead_letters", chosen)

    return run_once("dead-letters purge", work)


def _through(name: str, action: str, chosen: "DeadLettersChosen", done: dict[str, int]) -> None:
    """Do it chunk by chunk, adding up the counts; say how far it came when it is interrupted."""

    async def work(p: "Process") -> None:
        from app.modules.platform.dead_letters import DeadLetters

        run = await _operations(p, DeadLetters)
        total = await run("platform.count_dead_letters", chosen) if can_show_progress() else None

        def step(cursor: str | None) -> Awaitable[Any]:
            return run(action, replace(chosen, cursor=cursor))

        with progress("dead letters", total) as advance:
            try:
                async for chunk in in_chunks(step):
                    for count in done:
                        done[count] += getattr(chunk, count)
                        advance(getattr(chunk, count))
            except BaseException:
                if any(done.values()):
                    counts = ", ".join(f"{key.removesuffix('_count')} {count}" for key, count in done.items())
                    sys.stderr.write(f"stopped: {counts}; say it again to go on\n")
                raise

    run_once(name, work)


@_events.command()
def replay(
    subscriber: Annotated[str, typer.Option(parser=stored_name, metavar="NAME", help="Who is given the events.")],
    since: Annotated[
        datetime,
        typer.Option("--from", parser=moment, metavar="TIME", help=f"Published at this time or later, {_TIME}."),
    ],
    until: Annotated[
        datetime | None,
        typer.Option("--to", parser=moment, metavar="TIME", help=f"Published before this time, {_TIME}."),
    ] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier call stopped.")] = None,
    as_json: Json = False,
) -> None:
    """Deliver events to a subscriber again, in the order of publishing; up to now unless --to says otherwise.

    What is enqueued within the next hour goes before them. Ctrl-C stops it and
    says how to go on.

    \b
    Examples:
      app events replay --subscriber auth.greet --from 2026-11-22T10:00:00Z
      app events replay --subscriber auth.greet --from 2026-11-01 --to 2026-11-08
    """
    enqueued = 0

    async def work(p: "Process") -> None:
        from app.modules.platform.events import Events, ReplayWanted

        nonlocal enqueued
        run = await _operations(p, Events)
        wanted = ReplayWanted(subscriber, since, until, cursor)
        total = await run("platform.count_replay", wanted) if can_show_progress() else None
        said = ""

        def step(at: str | None) -> Awaitable[Any]:
            return run("platform.replay_events", replace(wanted, cursor=at))

        with progress("events", total) as advance:
            try:
                async for done in in_chunks(step, cursor):
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


@_errors.command("show")
def show_error(error_id: ErrorId, as_json: Json = False) -> None:
    """Show a group of errors: how often, since when, where, and what was going on the last times.

    \b
    Examples:
      app errors show 0190a1b2-c3d4-7e5f-8607-18293a4b5c6d
    """

    async def work(p: "Process") -> "ErrorDetails":
        from app.modules.platform.errors import CapturedErrors, ErrorRef

        return await (await _operations(p, CapturedErrors))("platform.get_error", ErrorRef(error_id))

    found = run_once("errors show", work)
    if as_json:
        print_json(found)
        return
    error = found.error
    about: list[tuple[str, object]] = [
        ("what", error.title),
        ("where", error.culprit),
        ("kind", error.kind),
        ("state", f"{error.state} until {shown(error.muted_until)}" if error.muted_until else error.state),
        ("count", error.count),
        ("first seen", f"{shown(error.first_seen_at)} in {error.first_release}"),
        ("last seen", f"{shown(error.last_seen_at)} in {error.last_release}"),
        ("told", shown(error.notified_at)),
        ("processes", ", ".join(error.processes)),
    ]
    print_table(("", ""), about)
    for sample in found.samples:
        typer.echo(f"\n--- {sample.get('at', '')}")
        rest = {key: value for key, value in sample.items() if key not in ("at", "lines", "stack")}
        print_table(("", ""), list(rest.items()))
        print_table(("",), [(line,) for line in [*sample.get("lines", []), *str(sample.get("stack", "")).splitlines()]])


@_errors.command()
def mute(
    error_id: ErrorId,
    seconds_: Annotated[
        float,
        typer.Option(
            "--for", parser=seconds(least_s=1, most_days=365), metavar="DURATION", help="For how long, such as 7d."
        ),
    ] = 86400.0,
    as_json: Json = False,
) -> None:
    """Notify nobody of a group of errors for a while, a day unless said otherwise. It is counted all the same.

    \b
    Examples:
      app errors mute 0190a1b2-c3d4-7e5f-8607-18293a4b5c6d --for 7d
    """

    async def work(p: "Process") -> None:
        from app.modules.platform.errors import CapturedErrors, ErrorToMute

        await (await _operations(p, CapturedErrors))("platform.mute_error", ErrorToMute(error_id, seconds_))

    run_once("errors mute", work)
    if as_json:
        print_json({"id": error_id, "state": "muted"})
    else:
        typer.echo(f"{error_id} is muted")


@_errors.command("notify-test")
def notify_test(as_json: Json = False) -> None:
    """Send a message to everybody who is notified of errors (sentinel.notify_urls), and say how that went.

    \b
    Examples:
      app errors notify-test
    """

    async def work(p: "Process") -> "list[Tried]":
        from app.kernel.config import Misconfigured
        from app.kernel.errors import NotFound
        from app.modules.platform.alerts import Alerts

        try:
            return await (await _operations(p, Alerts))("platform.try_recipients")
        except NotFound as error:
            raise Misconfigured(str(error)) from None

    tried = run_once("errors notify-test", work)
    if as_json:
        print_json({"items": tried})
    else:
        print_table(("recipient", "result"), [(one.recipient, one.problem or "accepted") for one in tried])
    if any(one.problem for one in tried):
        raise typer.Exit(1)
