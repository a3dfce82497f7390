"""Canaries: one dead letter is retried first, the others at a rate when it has succeeded."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Interval

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read, task
from app.kernel.fields import IdOf
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.queue import JobExists, Task
from app.kernel.queue.canaries import STEP_S, Canary, CanaryAdmin
from app.kernel.queue.enqueue import Queue
from app.modules.platform.dead_letters import Selection, audited
from app.modules.platform.domain.queue import CanaryNotFound, CanaryRunning, DeadLetterNotFound

_BEFORE_OTHERS = 1000


@dataclass(frozen=True, slots=True)
class CanaryStep:
    """A step of a canary."""

    canary_id: UUID


RUN_CANARY = Task("platform.run_canary", CanaryStep, max_attempts=1000, timeout_s=60)


@dataclass(frozen=True, slots=True)
class CanaryWanted(Selection):
    """A selection of dead letters, and how to retry them."""

    rate: Annotated[
        float, Interval(ge=0.1, le=500), Doc("Dead letters a second, after the first one has succeeded.")
    ] = 10
    max_failed: Annotated[
        int, Interval(ge=0, le=1000), Doc("Stop when more of them than this have failed again, for good or for now.")
    ] = 10


@dataclass(frozen=True, slots=True)
class CanariesWanted:
    """Page of a list of canaries."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class CanaryRef:
    """A canary."""

    id: Annotated[UUID, Doc("Id of the canary."), IdOf("canary", ("kernel.canaries",), "dead-letters canary list")]


@dataclass(frozen=True, slots=True)
class Canaries:
    """Retry one dead letter first, and the others only if it succeeds."""

    admin: CanaryAdmin
    jobs: Queue

    @read(
        "platform.list_canaries",
        GET="/platform/v1/canaries",
        permission="platform:dead_letters:read",
        command="dead-letters canary list",
        empty="start one with the cause of dead letters",
        examples=("",),
    )
    async def list(self, db: Database, wanted: CanariesWanted) -> Page[Canary]:
        """List canaries and their progress, newest first."""
        found = await self.admin.page(db, wanted.limit, after(wanted.cursor), RUN_CANARY.queue)
        return Page(found, next_cursor(found, wanted.limit))

    @read(
        "platform.get_canary",
        GET="/platform/v1/canaries/{id}",
        permission="platform:dead_letters:read",
        raises=(CanaryNotFound,),
        command="dead-letters canary show",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def get(self, db: Database, canary: CanaryRef) -> Canary:
        """Show a canary: its filters, state and progress."""
        found = await self.admin.get(db, canary.id, RUN_CANARY.queue)
        if found is None:
            raise CanaryNotFound(f"there is no canary {canary.id}")
        return found

    @change(
        "platform.start_canary",
        POST="/platform/v1/canaries",
        permission="platform:dead_letters:write",
        raises=(DeadLetterNotFound, CanaryRunning, JobExists),
        command="dead-letters canary start",
        examples=("--task reports.render --rate 5 --max-failed 0", "--cause 0f1e2d3c4b5a69788796a5b4c3d2e1f0"),
    )
    async def start(self, tx: Transaction, caller: Caller, wanted: CanaryWanted, note: Note) -> Canary:
        """Retry one dead letter with a single attempt, and the others at a rate if it succeeds.

        It takes the dead letters of now: one that dies again is not retried again. It stops by itself when the first
        one is dead again, when more than `max_failed` of the others have failed again, when all have ended, or when
        nothing happens for a day. At most 1000 released jobs are unfinished. Only one canary with the same queue, task
        and cause runs.
        """
        filters = wanted.filters()
        by = str(caller.actor_id or caller.origin.address)
        canary_id = await self.admin.start(tx, filters, wanted.rate, wanted.max_failed, by)
        if canary_id is None:
            running = await self.admin.running(tx, filters)
            raise CanaryRunning(f"a canary with these filters is running: {running}; stop it first")
        started = await self._found(tx, canary_id)
        if not started.total:
            if await self.admin.letters.count(tx, started.filters):
                raise JobExists("unfinished jobs have the unique keys of these dead letters")
            raise DeadLetterNotFound("no dead letter matches")
        await self._enqueue(tx, canary_id, STEP_S)
        note.target = canary_id
        note.details |= {**audited(filters), "rate": f"{wanted.rate:g}", "max_failed": wanted.max_failed}
        return started

    @change(
        "platform.stop_canary",
        POST="/platform/v1/canaries/{id}/stop",
        permission="platform:dead_letters:write",
        raises=(CanaryNotFound,),
        command="dead-letters canary stop",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def stop(self, tx: Transaction, caller: Caller, canary: CanaryRef, note: Note) -> Canary:
        """Stop a canary: nothing more is released. Jobs that it has released run. Safe to repeat."""
        note.recorded = await self.admin.stop(tx, canary.id, f"stopped by {caller.actor_id or caller.origin.address}")
        return await self._found(tx, canary.id)

    @task(RUN_CANARY)
    async def run(self, tx: Transaction, step: CanaryStep) -> None:
        """Move a canary on, and enqueue the next step in the same transaction."""
        delay_s = await self.admin.step(tx, step.canary_id, RUN_CANARY.queue)
        if delay_s is not None:
            await self._enqueue(tx, step.canary_id, delay_s)

    async def _enqueue(self, tx: Transaction, canary_id: UUID, delay_s: float) -> None:
        step = CanaryStep(canary_id)
        await self.jobs.enqueue(tx, RUN_CANARY, step, delay_s=delay_s, priority=_BEFORE_OTHERS)

    async def _found(self, tx: Transaction, canary_id: UUID) -> Canary:
        found = await self.admin.get(tx, canary_id, RUN_CANARY.queue)
        if found is None:
            raise CanaryNotFound(f"there is no canary {canary_id}")
        return found
