"""`app schedules`: what happens when."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.console import Json, group, print_json, print_page, run_once, shown, stored_name

if TYPE_CHECKING:
    from app.kernel.pages import Page
    from app.kernel.process import Process
    from app.kernel.queue.schedules import ListedSchedule
    from app.modules.platform.usecases.pause_schedule import ScheduleChanged
    from app.modules.platform.usecases.trigger_schedule import Triggered

Name = Annotated[
    str, typer.Argument(parser=stored_name, metavar="NAME", help="The name of the schedule.", show_default=False)
]

_app = group("See, trigger, pause and resume schedules.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.command("list")
def list_schedules(as_json: Json = False) -> None:
    """List the schedules that cron managers know, and how their last jobs ended.

    \b
    Examples:
      app schedules list
      app schedules list --json
    """

    async def work(p: "Process") -> "Page[ListedSchedule]":
        from app.modules.platform import wiring

        return await (await p.use(wiring.schedules)).list()

    def row(schedule: "ListedSchedule") -> tuple[object, ...]:
        following = f"paused {shown(schedule.paused_at)}" if schedule.paused_at else shown(schedule.next_fire_at)
        last = f"{schedule.last_outcome or ''} {shown(schedule.last_finished_at)}".strip()
        return schedule.name, schedule.spec, following, schedule.fired_count, schedule.skipped_count, last

    columns = ("schedule", "rhythm", "next", "fired", "skipped", "last job")
    print_page(run_once("schedules list", work), columns, row, as_json)


@_app.command()
def trigger(name: Name, as_json: Json = False) -> None:
    """Enqueue a job of a schedule now, besides its ticks; also when it is paused.

    \b
    Examples:
      app schedules trigger platform.heartbeat
    """

    async def work(p: "Process") -> "Triggered":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import ScheduleRef

        return await (await p.use(wiring.schedules)).trigger(Caller(), ScheduleRef(name))

    triggered = run_once("schedules trigger", work)
    if as_json:
        print_json(triggered)
    else:
        typer.echo(f"enqueued the job {triggered.job_id}")


@_app.command()
def pause(name: Name, as_json: Json = False) -> None:
    """Let the ticks of a schedule pass without a job. Safe to repeat.

    \b
    Examples:
      app schedules pause platform.heartbeat
    """

    async def work(p: "Process") -> "ScheduleChanged":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import ScheduleRef

        return await (await p.use(wiring.schedules)).pause(Caller(), ScheduleRef(name))

    changed = run_once("schedules pause", work)
    if as_json:
        print_json(changed)
    else:
        typer.echo(f"{name} is paused since {shown(changed.paused_at)}")


@_app.command()
def resume(name: Name, as_json: Json = False) -> None:
    """Let a paused schedule fire again. Ticks that passed meanwhile are not made up for. Safe to repeat.

    \b
    Examples:
      app schedules resume platform.heartbeat
    """

    async def work(p: "Process") -> "ScheduleChanged":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import ScheduleRef

        return await (await p.use(wiring.schedules)).resume(Caller(), ScheduleRef(name))

    changed = run_once("schedules resume", work)
    if as_json:
        print_json(changed)
    else:
        typer.echo(f"{name} is not paused")
