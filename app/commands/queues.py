"""`app queues`: how much there is to do, and how much of it at once."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.console import Json, group, print_json, print_page, run_once, shown, stored_name, whole

if TYPE_CHECKING:
    from app.kernel.pages import Page
    from app.kernel.process import Process
    from app.kernel.queue.queues import ListedQueue, QueueControl

Name = Annotated[
    str, typer.Argument(parser=stored_name, metavar="NAME", help="The name of the queue.", show_default=False)
]

_app = group("See, pause, resume and limit queues.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.command("list")
def list_queues(as_json: Json = False) -> None:
    """List the queues: how many jobs they have in each state, and for how long the oldest ready one has been due.

    \b
    Examples:
      app queues list
      app queues list --json
    """

    async def work(p: "Process") -> "Page[ListedQueue]":
        from app.modules.platform import wiring

        return await (await p.use(wiring.queues)).list()

    def row(queue: "ListedQueue") -> tuple[object, ...]:
        oldest = "" if queue.oldest_ready_s is None else f"{queue.oldest_ready_s:.0f} s"
        counts = (queue.ready, oldest, queue.scheduled, queue.waiting, queue.leased, queue.dead)
        return queue.name, *counts, queue.concurrency or "", shown(queue.paused_at)

    columns = ("queue", "ready", "oldest", "scheduled", "waiting", "leased", "dead", "limit", "paused at")
    print_page(run_once("queues list", work), columns, row, as_json)


@_app.command()
def pause(name: Name, as_json: Json = False) -> None:
    """Let no further job of a queue start. Those that run go on; jobs can still be enqueued. Safe to repeat.

    \b
    Examples:
      app queues pause default
    """

    async def work(p: "Process") -> "QueueControl":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import QueueRef

        return await (await p.use(wiring.queues)).pause(Caller(), QueueRef(name))

    _say(run_once("queues pause", work), as_json)


@_app.command()
def resume(name: Name, as_json: Json = False) -> None:
    """Let the jobs of a paused queue start again. Safe to repeat.

    \b
    Examples:
      app queues resume default
    """

    async def work(p: "Process") -> "QueueControl":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import QueueRef

        return await (await p.use(wiring.queues)).resume(Caller(), QueueRef(name))

    _say(run_once("queues resume", work), as_json)


@_app.command()
def limit(
    name: Name,
    concurrency: Annotated[
        int | None,
        typer.Argument(
            parser=whole(1, 1_000_000), metavar="concurrency", help="Most jobs at once.", show_default=False
        ),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="As many as the workers can.")] = False,
    as_json: Json = False,
) -> None:
    """Set how many jobs of a queue may run at once in the whole deployment. Those that run go on. Safe to repeat.

    \b
    Examples:
      app queues limit reports 2
      app queues limit reports --none
    """
    if (concurrency is None) != none:
        raise typer.BadParameter("give either a number or --none", param_hint="CONCURRENCY")

    async def work(p: "Process") -> "QueueControl":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.usecases.limit_queue import QueueLimit

        return await (await p.use(wiring.queues)).limit(Caller(), QueueLimit(name, concurrency))

    _say(run_once("queues limit", work), as_json)


def _say(queue: "QueueControl", as_json: bool) -> None:
    if not queue.is_used:
        sys.stderr.write(f"nothing uses a queue {queue.name} at present; see app queues list for those that are used\n")
    if as_json:
        print_json(queue)
        return
    state = f"paused since {shown(queue.paused_at)}" if queue.paused_at else "not paused"
    at_once = "any number of its jobs" if queue.concurrency is None else f"at most {queue.concurrency} of its jobs"
    typer.echo(f"{queue.name} is {state}; {at_once} may run at once")
