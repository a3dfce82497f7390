"""`app dead-letters`: jobs that were given up."""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from app.commands.console import (
    Cursor,
    Json,
    Most,
    can_ask,
    can_show_progress,
    confirm,
    group,
    in_chunks,
    print_json,
    print_page,
    progress,
    run_once,
    seconds,
    shown,
)
from app.commands.jobs import OfQueue, OfTask, print_details

if TYPE_CHECKING:
    from app.kernel.pages import Page
    from app.kernel.process import Process
    from app.kernel.queue.dead_letters import DeadLetterDetails, ListedDeadLetter
    from app.modules.platform.usecases.count_dead_letters import DeadLettersChosen

LetterId = Annotated[UUID, typer.Argument(help="The id of the dead letter.", show_default=False)]
OneLetter = Annotated[UUID | None, typer.Argument(help="The id of one dead letter.", show_default=False)]
OlderThan = Annotated[
    float | None, typer.Option(parser=seconds(), metavar="DURATION", help="Only those that died before, such as 7d.")
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

_LONGEST = 100

_app = group("See, retry and purge jobs that were given up.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.command("list")
def list_dead_letters(
    queue: OfQueue = None, task: OfTask = None, limit: Most = 20, cursor: Cursor = None, as_json: Json = False
) -> None:
    """List the jobs that were given up, and why; newest first.

    \b
    Examples:
      app dead-letters list
      app dead-letters list --queue default --json
    """

    async def work(p: "Process") -> "Page[ListedDeadLetter]":
        from app.modules.platform import wiring
        from app.modules.platform.usecases.list_dead_letters import DeadLettersWanted

        return await (await p.use(wiring.dead_letters)).list(DeadLettersWanted(queue, task, limit, cursor))

    def row(letter: "ListedDeadLetter") -> tuple[object, ...]:
        reason = " ".join(letter.reason.split())
        reason = reason if len(reason) <= _LONGEST else reason[:_LONGEST] + " ..."
        return letter.id, letter.task, letter.queue, letter.attempt, shown(letter.died_at), reason

    columns = ("dead letter", "task", "queue", "attempts", "died at", "reason")
    print_page(run_once("dead-letters list", work), columns, row, as_json)


@_app.command()
def show(letter_id: LetterId, as_json: Json = False) -> None:
    """Show everything about a dead letter: its payload, its errors. A payload may be personal.

    \b
    Examples:
      app dead-letters show 0193505f-1c00-7000-8000-000000000001
    """

    async def work(p: "Process") -> "DeadLetterDetails":
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import DeadLetterRef

        return await (await p.use(wiring.dead_letters)).get(DeadLetterRef(letter_id))

    found = run_once("dead-letters show", work)
    if as_json:
        print_json(found)
    else:
        print_details(found)


@_app.command()
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
        _retry_one(letter_id, as_json)
        return
    done = {"retried_count": 0, "conflict_count": 0}

    async def work(p: "Process") -> None:
        from app.kernel.operations import Caller
        from app.modules.platform import wiring

        control, chosen = await p.use(wiring.dead_letters), _chosen(queue, task, older_than, every)
        total = await control.count(chosen) if can_show_progress() else None
        await _through(done, total, lambda cursor: control.retry_some(Caller(), replace(chosen, cursor=cursor)))

    run_once("dead-letters retry", work)
    if as_json:
        print_json(done)
    else:
        left = f"; {done['conflict_count']} were left, as unfinished jobs have their unique keys"
        typer.echo(f"retried {done['retried_count']} dead letters{left if done['conflict_count'] else ''}")


def _retry_one(letter_id: UUID, as_json: bool) -> None:
    async def work(p: "Process") -> Any:
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import DeadLetterRef

        return await (await p.use(wiring.dead_letters)).retry(Caller(), DeadLetterRef(letter_id))

    changed = run_once("dead-letters retry", work)
    if as_json:
        print_json(changed)
    else:
        typer.echo(f"{letter_id} is ready")


@_app.command()
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

    async def work(p: "Process") -> None:
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import DeadLetterRef

        control = await p.use(wiring.dead_letters)
        if letter_id is not None:
            await control.purge(Caller(), DeadLetterRef(letter_id))
            done["deleted_count"] = 1
        else:
            total = await control.count(chosen) if can_show_progress() else None
            await _through(done, total, lambda cursor: control.purge_some(Caller(), replace(chosen, cursor=cursor)))

    run_once("dead-letters purge", work)
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
    from app.modules.platform.usecases.count_dead_letters import DeadLettersChosen

    died_before = None if older_than is None else datetime.now(UTC) - timedelta(seconds=older_than)
    return DeadLettersChosen(queue, task, died_before, every)


def _count(chosen: "DeadLettersChosen") -> int:
    async def work(p: "Process") -> int:
        from app.modules.platform import wiring

        return await (await p.use(wiring.dead_letters)).count(chosen)

    return run_once("dead-letters purge", work)


async def _through(done: dict[str, int], total: int | None, step: Callable[[str | None], Awaitable[Any]]) -> None:
    """Do it chunk by chunk, adding up the counts; say how far it came when it is interrupted."""
    with progress("dead letters", total) as advance:
        try:
            async for chunk in in_chunks(step):
                for name in done:
                    done[name] += getattr(chunk, name)
                    advance(getattr(chunk, name))
        except BaseException:
            if any(done.values()):
                counts = ", ".join(f"{name.removesuffix('_count')} {count}" for name, count in done.items())
                sys.stderr.write(f"stopped: {counts}; say it again to go on\n")
            raise
