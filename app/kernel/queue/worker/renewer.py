"""Renewal of leases in a thread with its own connection, so that a blocked event loop does not lose them.

It also cancels jobs on request, and logs the job that blocks the event loop.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import psycopg
from loguru import logger

from app.kernel.db.connection import hang_up
from app.kernel.queue.worker import Job
from app.kernel.queue.worker.leases import lease_of

_BLOCKED_S = 1.0
_TICK_S = 0.25
_ANSWER_S = 2.0

_RENEW = """
    UPDATE kernel.jobs SET leased_until = now() + %(lease_s)s * interval '1 second'
    WHERE id IN (
        -- except rows that are being completed
        SELECT id FROM kernel.jobs
        WHERE id = ANY(%(ids)s::uuid[])
          AND (id, lease_token) IN (SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]))
        FOR UPDATE SKIP LOCKED
    )
    RETURNING id::text, cancel_requested_at IS NOT NULL
"""


class Renewer:
    """Renews the leases of held jobs until stopped.

    After its timeout a job is renewed for one more lease at most, so that a blocked event loop loses its jobs to other
    workers.
    """

    def __init__(
        self,
        conninfo: Callable[[], str],
        lease_s: float,
        held: Mapping[str, Job],
        running: Mapping["asyncio.Task[None]", Job],
        cancel: Callable[[str], None],
    ) -> None:
        self._conninfo = conninfo
        self._lease_s = lease_s
        self._held = held
        self._running = running
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._answered_at = self._asked_at = time.monotonic()
        self._reported = False
        self._thread = threading.Thread(target=self._run, name="lease renewer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread and wait for its end, up to 5 seconds."""
        self._stopped.set()
        await asyncio.to_thread(self._thread.join, 5)

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._stopped.wait(min(_TICK_S, self._lease_s / 6)):
            self._watch_loop()
            due = self._due()
            if not due:
                continue
            try:
                if connection is None:
                    connection = psycopg.connect(self._conninfo(), autocommit=True)
                self._renew(connection, due)
            except psycopg.Error as error:
                logger.warning("leases cannot be renewed: {}; trying again", " ".join(str(error).split()))
                if connection is not None:
                    connection.close()
                connection = None
                self._stopped.wait(min(1.0, self._lease_s / 6))
        if connection is not None:
            connection.close()

    def _due(self) -> list[Job]:
        now = time.monotonic()
        return [
            job
            for job in list(self._held.values())
            if job.renewed_at < now - self._lease_s / 3
            and not (job.started_at and now > job.started_at + job.timeout_s + self._lease_s)
        ]

    def _renew(self, connection: "psycopg.Connection[Any]", due: list[Job]) -> None:
        now = time.monotonic()
        mute = threading.Timer(_ANSWER_S, hang_up, [connection])
        mute.daemon = True
        mute.start()
        try:
            rows = connection.execute(_RENEW, {"lease_s": self._lease_s, **lease_of(due)}).fetchall()
        finally:
            mute.cancel()
        ours = {job_id for job_id, _ in rows}
        for job in due:
            if job.id in ours:  # else it is being completed, or another worker has it
                job.renewed_at = now
        for job_id, cancelled in rows:
            if cancelled:
                self._on_loop(self._cancel, job_id)

    def _watch_loop(self) -> None:
        now = time.monotonic()
        if self._answered_at >= self._asked_at:
            self._reported = False
            self._asked_at = now
            self._on_loop(self._answer)
        elif now - self._asked_at > _BLOCKED_S and not self._reported:
            self._reported = True
            task = asyncio.current_task(self._loop)
            job = self._running.get(task) if task is not None else None  # pyright: ignore[reportArgumentType, reportCallIssue]
            frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage] - documented
            stack = "".join(traceback.format_stack(frame, limit=8)) if frame else ""
            culprit = f"job {job.id} of {job.task}" if job else "something"
            logger.error("{} has blocked the event loop for {:.1f} s:\n{}", culprit, now - self._asked_at, stack)

    def _answer(self) -> None:
        self._answered_at = time.monotonic()

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)
