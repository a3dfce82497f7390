"""The agent of backups: one in a deployment stores WAL, others wait to take over."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psycopg
from loguru import logger

from app.kernel.backup import Target, TargetUnavailable
from app.kernel.backup.catalogue import Catalogue
from app.kernel.backup.observing import observer
from app.kernel.backup.primary import Primary, primary
from app.kernel.backup.programs import programs_for
from app.kernel.backup.receiver import spool
from app.kernel.backup.record import Record
from app.kernel.backup.sealed import Keys
from app.kernel.backup.streaming import Patience, Streaming
from app.kernel.backup.targets import target_of
from app.kernel.backup.timelines import WalFile, way
from app.kernel.backup.wal import Position, WalArchive
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.db.server import server
from app.kernel.errors import Conflict, Refusal, Unavailable
from app.kernel.process import Process
from app.kernel.product import NAME
from app.kernel.services import Run
from app.kernel.text import error_text

_STANDBY_S = 2.0
_LASTED_S = 60.0
_REQUEST_S = 30.0


class Agent:
    """Stores WAL, in a thread of its own. What fails is reported once, and tried again."""

    def __init__(
        self,
        settings: BackupSettings,
        target: Target,
        keys: Keys,
        conninfo: Callable[[], str],
        programs: Callable[[int], Path],
        request_backup: Callable[[], None],
    ) -> None:
        self._settings, self._target, self._keys = settings, target, keys
        self._conninfo, self._programs, self._request_backup = conninfo, programs, request_backup
        self._said = ""
        self._stop = Event()
        self._streaming: Streaming | None = None

    def run(self) -> None:
        """Store WAL until asked to stop. Raises nothing."""
        patience = Patience()
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._session()
            except (Refusal, Misconfigured, psycopg.Error, OSError) as error:
                self._say(" ".join(str(error).split()) or type(error).__name__)
            except Exception as error:  # noqa: BLE001 - the API of this process must go on
                logger.opt(exception=error).error("backup agent: {}; trying again", error_text(error))
            if time.monotonic() - began > _LASTED_S:
                patience.succeeded()
            self._stop.wait(patience.failed())

    def stop(self) -> None:
        """Ask it to store what it has, and to end."""
        self._stop.set()

    def kill(self) -> None:
        """End pg_receivewal at once."""
        self._stop.set()
        if self._streaming:
            self._streaming.kill()

    def _session(self) -> None:
        with primary(self._conninfo()) as found:
            if not self._is_alone(found):
                return
            archive = WalArchive(self._target, self._keys, found.cluster, found.segment_bytes)
            catalogue = Catalogue(self._target, self._keys)
            record = Record(found, archive, catalogue, self._settings, self._request_backup)
            try:
                (self._stream if self._settings.wal == "stream" else self._watch)(found, archive, record)
            except (Refusal, Misconfigured, OSError) as error:
                with suppress(psycopg.Error):
                    now = found.now("")
                    record.waiting.note(now)
                    record.report(now, str(error), is_lasting=not isinstance(error, TargetUnavailable))
                raise

    def _stream(self, found: Primary, archive: WalArchive, record: Record) -> None:
        found.stretches = way(found.timeline, found.history())
        program = self._programs(found.version) / "pg_receivewal"
        place = f"{found.slot}-{found.cluster}-{os.geteuid()}.wal"
        with spool(Path(self._settings.scratch or tempfile.gettempdir(), place)) as folder:
            interval_s = self._settings.wal_interval
            self._streaming = Streaming(found, archive, record, program, folder, interval_s, self._say)
            try:
                self._streaming.run(self._stop)
            finally:
                self._streaming = None

    def _watch(self, found: Primary, archive: WalArchive, record: Record) -> None:
        """Record what archive_command stores, which needs no permission to stream."""
        while not self._stop.is_set():
            now, archived, problem = found.now(""), found.archived(), found.failing_archiver()
            record.waiting.note(now)
            try:
                position = archive.position(found.timeline)
                if archived and archived.timeline == found.timeline:
                    self._refuse_elsewhere(archived, position, found.segment_bytes)
                if position:
                    found.stretches = archive.stretches(found.timeline)  # the history is stored before the WAL
                    record.stored(position.timeline, position.lsn)
                    record.check()
            except Unavailable as error:
                problem = str(error)
            self._say(problem)
            record.report(now, problem)
            self._stop.wait(self._settings.wal_interval)

    def _refuse_elsewhere(self, archived: WalFile, position: Position | None, segment_bytes: int) -> None:
        """Raise Conflict if what the server has archived before is not on the target."""
        is_whole = archived.number is not None and not archived.is_partial
        if is_whole and (position is None or position.lsn < archived.start(segment_bytes) + segment_bytes):
            label = self._target.label
            raise Conflict(f"archive_command has stored {archived.name}, not on {label}, or with another backup.key")

    def _is_alone(self, found: Primary) -> bool:
        """Wait until no other agent stores WAL; return False when asked to stop meanwhile."""
        is_said = False
        while not self._stop.is_set():
            if found.lock():
                return True
            if not is_said:
                logger.info("another agent stores the WAL of this database; waiting to take over")
                is_said = True
            self._stop.wait(_STANDBY_S)
        return False

    def _say(self, problem: str) -> None:
        """Log a problem once, and its end."""
        if problem and problem != self._said:
            logger.warning("WAL is not stored now: {}", problem)
        elif self._said and not problem:
            logger.info("WAL is stored again")
        self._said = problem


async def agent(p: Process, request_backup: Callable[[], Coroutine[Any, Any, None]]) -> Run | None:
    """Return the service that stores WAL, if that is configured. `request_backup` enqueues a backup."""
    settings = p.settings[BackupSettings]
    if settings.engine != "builtin":
        return await observer(p)
    if settings.wal == "none" or not settings.target:
        return None
    found, loop = await p.use(server), asyncio.get_running_loop()

    def request() -> None:
        asyncio.run_coroutine_threadsafe(request_backup(), loop).result(_REQUEST_S)

    def programs(version: int) -> Path:
        return programs_for(version, settings, found.bin_dir, exact=False)

    work = Agent(settings, target_of(settings, p.data), Keys.of(settings), found.conninfo, programs, request)

    async def run(stop: asyncio.Event) -> None:
        ended = asyncio.Event()

        def body() -> None:
            try:
                work.run()
            finally:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(ended.set)

        Thread(target=body, name=f"{NAME}-wal", daemon=True).start()
        try:
            await stop.wait()
            work.stop()
            await ended.wait()
        finally:
            work.kill()

    return run
