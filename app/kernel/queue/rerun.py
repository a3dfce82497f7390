"""Ended jobs that are run again, as new jobs, also with other arguments."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import to_json

from app.kernel.db import Queries, Transaction
from app.kernel.errors import Invalid
from app.kernel.identifiers import uuid7
from app.kernel.queue.codec import adapter, encode, version_of
from app.kernel.queue.enqueue import KEEP_UNFINISHED, insert_jobs
from app.kernel.queue.jobs import DeclaredTask, DeclaredTasks
from app.kernel.telemetry.traces import current_context

_IN_ORDER = ("group/", "subscriber/", "schedule/")
_UNKNOWN = DeclaredTask(None, False, 10, 300, 1)

_ENDED = """
    SELECT id, queue, task, outcome, payload::text, schedule, event_id,
        coalesce(event_version, (SELECT e.version FROM kernel.events e WHERE e.id = event_id LIMIT 1)),
        unique_key, turn_key, NULL::integer, NULL::boolean, NULL::integer, NULL::real, 0
    FROM kernel.finished_jobs WHERE id = %(id)s
    UNION ALL
    SELECT id, queue, task, 'dead', payload::text, schedule, event_id, event_version, unique_key, turn_key, turn_limit,
        in_order, max_attempts, timeout_s, priority
    FROM kernel.dead_letters WHERE id = %(id)s
"""

_RUN = insert_jobs(
    rows="(VALUES (1)) AS one (job)",
    id="%(id)s::uuid",
    queue="%(queue)s",
    task="%(task)s",
    payload="%(payload)s::jsonb",
    priority="%(priority)s",
    max_attempts="%(max_attempts)s",
    timeout_s="%(timeout_s)s",
    unique_key="%(unique_key)s",
    turn_key="%(turn_key)s",
    turn_limit="%(turn_limit)s",
    in_order="%(in_order)s",
    schedule="%(schedule)s",
    event_id="%(event_id)s::uuid",
    event_version="%(event_version)s::integer",
    origin_id="%(origin_id)s::uuid",
    on_conflict=KEEP_UNFINISHED,
    then="SELECT id FROM added LEFT JOIN notified ON true",
)


@dataclass(frozen=True, slots=True)
class EndedJob:
    """What is stored of an ended job. The options of a finished one are not: those of its task are used."""

    id: UUID
    queue: str
    task: str
    outcome: Literal["done", "cancelled", "dead"]
    payload: str | None
    schedule: str | None
    event_id: UUID | None
    event_version: int | None
    unique_key: str | None
    turn_key: str | None
    turn_limit: int | None
    in_order: bool | None
    max_attempts: int | None
    timeout_s: float | None
    priority: int


@dataclass(frozen=True, slots=True)
class Rerun:
    """Runs ended jobs again."""

    declared: DeclaredTasks

    async def get(self, db: Queries, job_id: UUID) -> EndedJob | None:
        """Return an ended job."""
        row = await db.one(_ENDED, {"id": job_id})
        return EndedJob(*row) if row else None

    async def run(self, tx: Transaction, job: EndedJob, payload: dict[str, Any] | None) -> UUID | None:
        """Enqueue a new job like an ended one, with another payload if one is given; return its id.

        It keeps the queue, the keys, the schedule and the event. Returns None if an unfinished job has the unique key.
        Raises Invalid if this release knows the task and the payload does not fit.
        """
        declared = self.declared.tasks.get(job.task)
        options, new_id = declared or _UNKNOWN, uuid7()
        text, version = job.payload, job.event_version
        if payload is not None:
            text = _encoded(job.task, declared, payload)
            if declared is not None and declared.is_event and declared.payload is not None:
                version = version_of(declared.payload)
        given: dict[str, Any] = {name: getattr(job, name) for name in EndedJob.__dataclass_fields__}
        given |= {"id": new_id, "origin_id": job.id, "payload": text, "event_version": version}
        given["max_attempts"] = job.max_attempts or options.max_attempts
        given["timeout_s"] = job.timeout_s or options.timeout_s
        given["turn_limit"] = job.turn_limit or options.concurrency
        if job.in_order is None:
            given["in_order"] = (job.turn_key or "").startswith(_IN_ORDER)
        row = await tx.one(_RUN, {**given, "trace": current_context()})
        return row[0] if row else None


def _encoded(task: str, declared: DeclaredTask | None, payload: dict[str, Any]) -> str:
    """Return a payload as a worker decodes it, or any JSON object for a task that this release does not know."""
    if declared is None:
        return encode(dict, payload)
    if declared.payload is None:
        raise Invalid(f"{task} takes no arguments", (("payload", "must be absent: the task takes no arguments"),))
    if is_dataclass(declared.payload):
        known = {item.name for item in fields(declared.payload)}
        if unknown := sorted(payload.keys() - known):
            wrong = tuple((f"payload.{name}", "is unknown") for name in unknown)
            raise Invalid(f"{task} does not know {', '.join(unknown)}", wrong)
    try:
        return encode(declared.payload, adapter(declared.payload).validate_json(to_json(payload)))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        wrong = tuple((".".join(["payload", *map(str, e["loc"])]), e["msg"]) for e in found)
        raise Invalid("the arguments do not fit the task; see errors", wrong) from None
