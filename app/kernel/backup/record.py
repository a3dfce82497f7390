"""The record of the stored WAL of a server: how far, since when WAL waits, what is missing."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from loguru import logger

from app.kernel.backup.catalogue import Catalogue
from app.kernel.backup.primary import Now, Primary, Report
from app.kernel.backup.timelines import lsn_number
from app.kernel.backup.waiting import Waiting
from app.kernel.backup.wal import Gap, Reached, WalArchive
from app.kernel.config.backup import BackupSettings
from app.kernel.telemetry.redact import redacted
from app.kernel.text import storable

_CHECK_S = 3600.0
_MOST = 500  # characters of a problem


class Record:
    """What is recorded, and the backup that is requested when WAL is missing."""

    def __init__(
        self,
        server: Primary,
        archive: WalArchive,
        catalogue: Catalogue,
        settings: BackupSettings,
        request_backup: Callable[[], None],
    ) -> None:
        before = server.recorded()
        self.reached = Reached(before.timeline, before.lsn)
        self.waiting = Waiting(before.stored_at)
        self.gap: Gap | None = None
        self._server, self._archive, self._catalogue = server, archive, catalogue
        self._settings, self._request_backup = settings, request_backup
        self._runner = f"{socket.gethostname()}:{os.getpid()}"
        self._check_at = self._request_at = self._report_at = 0.0
        self._reported: tuple[Reached, str] | None = None
        self._has_stored = False

    def reach(self, timeline: int, lsn: int) -> None:
        """Note that WAL is stored until a position of a timeline."""
        self.reached = max(self.reached, Reached(timeline, lsn))
        self.waiting.stored(self.reached.lsn)

    def stored(self, timeline: int, lsn: int) -> None:
        """Note that WAL was stored until a position. After the first, gaps show."""
        self.reach(timeline, lsn)
        if not self._has_stored:
            self._has_stored, self._check_at = True, 0.0

    def miss(self, gap: Gap) -> None:
        """Note what is missing, until a backup has been taken after it."""
        logger.error("{}; a new backup is taken", gap)
        self.gap, self._check_at, self._request_at = gap, 0.0, 0.0

    def check(self) -> None:
        """Look for gaps since the newest backup, hourly, and request a backup while there is one.

        Raises TargetUnavailable, BackupInvalid.
        """
        if time.monotonic() < self._check_at:
            return
        server = self._server
        backups = [each for each in self._catalogue.backups() if each.cluster == server.cluster]
        newest = max(backups, key=lambda each: (each.timeline, lsn_number(each.stop_lsn)), default=None)
        if newest is not None:
            stop = lsn_number(newest.stop_lsn)
            gaps = self._archive.gaps(stop, newest.timeline, stretches=server.stretches)
            if gaps and self.gap not in gaps:
                self.miss(gaps[0])
            elif self.gap is not None and not gaps and stop >= self.gap.end:
                logger.info("a backup has been taken after the WAL that is missing")
                self.gap = None
        if self.gap is not None and time.monotonic() >= self._request_at:
            self._request_backup()
            self._request_at = time.monotonic() + _CHECK_S
        self._check_at = time.monotonic() + (_CHECK_S if self.gap is None else self._settings.wal_interval)

    def report(self, now: Now, problem: str = "", *, is_lasting: bool = False) -> None:
        """Record the state: at once when it changes, otherwise as often as WAL is stored.

        `problem` is why WAL is not stored now. It is recorded once WAL waits for too long, or if it does not pass by
        itself.
        """
        since = self.waiting.since
        is_late = since is not None and now.at - since > timedelta(seconds=self._settings.max_wal_lag)
        if is_late and not problem:
            problem = "WAL waits to be stored"
        shown = ". ".join(filter(None, [str(self.gap or ""), problem if is_late or is_lasting else ""]))
        shown = storable(redacted(shown))[:_MOST]
        state = (self.reached, shown)
        if state == self._reported and time.monotonic() < self._report_at:
            return
        waiting_since = since if problem else None
        stored_at = self.waiting.stored_at
        report = Report(self.reached.timeline or 1, self.reached.lsn, stored_at, waiting_since, shown or None)
        self.waiting.own(self._server.report(report, self._runner))
        self._reported, self._report_at = state, time.monotonic() + self._settings.wal_interval
