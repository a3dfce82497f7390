"""Sessions: own and those of other actors."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read, task
from app.kernel.fields import IdOf
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.queue import Schedule, Task
from app.modules.auth.actors import ActorId, ActorRef
from app.modules.auth.domain.actors import ActorNotFound
from app.modules.auth.domain.sessions import AuthenticatedCaller, LiveSession, NoSuchSession
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.power import Power

PRUNE = Task[None]("auth.prune")
SCHEDULES = (Schedule(PRUNE, cron="41 * * * *", overlap="skip"),)
RETENTION_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class SessionRef:
    """A session."""

    id: Annotated[UUID, Doc("Id of the session.")]


@dataclass(frozen=True, slots=True)
class SessionsWanted:
    """A page of the caller's sessions."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ActorSessionsWanted:
    """An actor, and a page of its sessions."""

    id: ActorId
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ActorSessionRef:
    """A session of an actor."""

    id: ActorId
    session_id: Annotated[UUID, Doc("Id of the session."), IdOf("session", ("auth.sessions",))]


@dataclass(frozen=True, slots=True)
class Deleted:
    """Number of ended sessions."""

    deleted_count: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """Number of removed sessions and counters of failed sign-ins."""

    sessions: int
    limits: int


@dataclass(frozen=True, slots=True)
class SessionAdministration:
    """List, end and remove sessions."""

    actors: Actors
    sessions: Sessions
    limits: Limits
    power: Power

    @read("auth.list_my_sessions", GET="/auth/v1/me/sessions")
    async def list_own(self, db: Database, caller: AuthenticatedCaller, wanted: SessionsWanted) -> Page[LiveSession]:
        """List the caller's live sessions, newest first."""
        of, current = caller.actor.id, caller.session_id
        found = await self.sessions.live(db, of, current, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @change("auth.end_my_session", DELETE="/auth/v1/me/sessions/{id}", raises=(NoSuchSession,))
    async def end_own(self, tx: Transaction, caller: AuthenticatedCaller, session: SessionRef) -> None:
        """End one of the caller's sessions, at once in every process."""
        if not await self.sessions.end(tx, session.id, caller.actor.id):
            raise NoSuchSession

    @read(
        "auth.list_actor_sessions",
        GET="/auth/v1/actors/{id}/sessions",
        permission="auth:actors:read",
        raises=(ActorNotFound,),
        command="auth sessions list",
    )
    async def list(self, db: Database, caller: Caller, wanted: ActorSessionsWanted) -> Page[LiveSession]:
        """List the live sessions of an actor, newest first."""
        await self.actors.get(db, wanted.id)
        current = caller.session_id
        found = await self.sessions.live(db, wanted.id, current, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @change(
        "auth.end_actor_sessions",
        DELETE="/auth/v1/actors/{id}/sessions",
        permission="auth:actors:write",
        raises=(ActorNotFound,),
        command="auth sessions end-all",
        confirm="End all sessions of the actor {id}?",
        message="ended {deleted_count} sessions",
    )
    async def end_all(self, tx: Transaction, caller: Caller, actor: ActorRef, note: Note) -> Deleted:
        """End all sessions of an actor, at once in every process. Safe to repeat."""
        await self.power.over(tx, caller, actor.id)
        ended = note.details["sessions_ended"] = await self.sessions.end_all(tx, actor.id)
        return Deleted(ended)

    @change(
        "auth.end_actor_session",
        DELETE="/auth/v1/actors/{id}/sessions/{session_id}",
        permission="auth:actors:write",
        raises=(ActorNotFound, NoSuchSession),
        command="auth sessions end",
        message="ended the session {session_id}",
    )
    async def end(self, tx: Transaction, caller: Caller, session: ActorSessionRef, note: Note) -> None:
        """End one session of an actor, at once in every process."""
        await self.power.over(tx, caller, session.id)
        if not await self.sessions.end(tx, session.session_id, session.id):
            raise NoSuchSession
        note.details["session"] = str(session.session_id)

    @task(PRUNE)
    async def prune(self, db: Database) -> Pruned:
        """Remove sessions a week after their end and limits of sign-ins after their window. Safe to repeat."""
        return Pruned(await self.sessions.prune(db, RETENTION_S), await self.limits.prune(db))
