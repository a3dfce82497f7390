"""`app jobs`: what is to be done, and what was."""

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from app.commands.console import Cursor, Json, Most, group, print_json, print_page, print_table, run_once, shown
from app.kernel.queue.jobs import JobState

if TYPE_CHECKING:
    from app.kernel.pages import Page
    from app.kernel.process import Process
    from app.kernel.queue.jobs import Failure, JobDetails, ListedJob
    from app.modules.platform.usecases.retry_job import JobChanged

JobId = Annotated[UUID, typer.Argument(help="The id of the job.", show_default=False)]
OfQueue = Annotated[str | None, typer.Option("--queue", help="Only those of this queue.")]
OfTask = Annotated[str | None, typer.Option("--task", help="Only those of this task or subscriber.")]

_app = group("See, retry and cancel jobs.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.command("list")
def list_jobs(
    queue: OfQueue = None,
    task: OfTask = None,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    limit: Most = 20,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first: those to be done, and those that ended for as long as they are kept.

    \b
    scheduled  is not due yet, or waits for its next attempt
    ready      is due
    waiting    is due, and waits for others of its group or key
    leased     is running
    done, cancelled

    \b
    Examples:
      app jobs list --queue default --state ready
      app jobs list --task platform.heartbeat --limit 100 --json
    """

    async def work(p: "Process") -> "Page[ListedJob]":
        from app.modules.platform import wiring
        from app.modules.platform.usecases.list_jobs import JobsWanted

        return await (await p.use(wiring.jobs)).list(JobsWanted(queue, task, state, limit, cursor))

    def row(job: "ListedJob") -> tuple[object, ...]:
        attempt = job.attempt if job.max_attempts is None else f"{job.attempt}/{job.max_attempts}"
        return job.id, job.task, job.queue, job.state, attempt, shown(job.finished_at or job.run_at)

    print_page(run_once("jobs list", work), ("job", "task", "queue", "state", "attempts", "due or ended"), row, as_json)


@_app.command()
def show(job_id: JobId, as_json: Json = False) -> None:
    """Show everything about a job: its payload, its errors, who runs it. A payload may be personal.

    \b
    Examples:
      app jobs show 0193505f-1c00-7000-8000-000000000001
    """

    async def work(p: "Process") -> "JobDetails":
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import JobRef

        return await (await p.use(wiring.jobs)).get(JobRef(job_id))

    found = run_once("jobs show", work)
    if as_json:
        print_json(found)
    else:
        print_details(found)


@_app.command()
def retry(job_id: JobId, as_json: Json = False) -> None:
    """Let a scheduled job run now, such as one that waits for its next attempt. Safe to repeat.

    \b
    Examples:
      app jobs retry 0193505f-1c00-7000-8000-000000000001
    """

    async def work(p: "Process") -> "JobChanged":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import JobRef

        return await (await p.use(wiring.jobs)).retry(Caller(), JobRef(job_id))

    changed = run_once("jobs retry", work)
    if as_json:
        print_json(changed)
    else:
        typer.echo(f"{job_id} is ready")


@_app.command()
def cancel(job_id: JobId, as_json: Json = False) -> None:
    """Cancel a job: at once when it does not run, otherwise its worker is asked to.

    \b
    Examples:
      app jobs cancel 0193505f-1c00-7000-8000-000000000001
    """

    async def work(p: "Process") -> "JobChanged":
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.domain.queue import JobRef

        return await (await p.use(wiring.jobs)).cancel(Caller(), JobRef(job_id))

    changed = run_once("jobs cancel", work)
    if as_json:
        print_json(changed)
    elif changed.state == "leased":
        typer.echo(f"{job_id} is running; its worker has been asked to cancel it")
    else:
        typer.echo(f"{job_id} is cancelled")


def print_details(found: Any) -> None:
    """Print a record as a table of names and values, then its errors."""
    import json
    from dataclasses import fields

    values = {field.name: getattr(found, field.name) for field in fields(found)}
    errors: list[Failure] = values.pop("errors")
    if (lease := values.pop("lease", None)) is not None:
        values |= {"leased by": lease.by, "leased until": shown(lease.until)}
    values["payload"] = json.dumps(values["payload"], indent=2, ensure_ascii=False)
    times = {name: shown(value) for name, value in values.items() if name.endswith("_at")}
    rows = {name.replace("_", " "): value for name, value in {**values, **times}.items() if value not in (None, "")}
    print_table(("", ""), rows.items())
    if errors:
        typer.echo()
        print_table(("attempt", "at", "error"), [(e.attempt, shown(e.at), e.error) for e in errors])
