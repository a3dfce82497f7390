"""The record of the stored WAL of a server: how far, since when WAL waits, what is missing."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import psycopg
from loguru import logger

from app.kernel.backup.catalogue import Catalogue
from app.kernel.backup.primary import Now, Primary, Report
from app.kernel.backup.timelines import leads_through, lsn_number
from app.kernel.backup.waiting import Waiting
from app.kernel.backup.wal import Gap, Reached, WalArchive
from app.kernel.config.backup import BackupSettings
from app.kernel.errors import Refusal
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
        self._began = time.monotonic()

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
        """Note what is missing, until a backup has been taken after it. Of several gaps, the last one decides."""
        if self.gap is None or gap.end > self.gap.end:
            logger.error("{}; a new backup is taken", gap)
            self.gap, self._check_at, self._request_at = gap, 0.0, 0.0

    def check(self) -> None:
        """Look for gaps since the newest backup, hourly, and request a backup while there is one.

        Raises TargetUnavailable, BackupInvalid.
        """
        if time.monotonic() < self._check_at:
            return
        cluster, stretches = self._server.cluster, self._server.stretches
        backups = self._catalogue.backups()
        ends = [Reached(each.timeline, lsn_number(each.stop_lsn)) for each in backups if each.cluster == cluster]
        if ends:
            newest = max(ends, key=lambda end: (leads_through(stretches, *end), end))  # not of a branch that was left
            if gaps := self._archive.gaps(newest.lsn, newest.timeline, stretches=stretches):
                self.miss(gaps[-1])
            elif self.gap is not None and newest >= self.gap.until:
                logger.info("a backup has been taken after the WAL that is missing")
                self.gap = None
        if self.gap is not None and time.monotonic() >= self._request_at:
            self._request()
        self._check_at = time.monotonic() + (_CHECK_S if self.gap is None else self._settings.wal_interval)

    def _request(self) -> None:
        try:
            self._request_backup()
        except (Refusal, psycopg.Error, OSError) as error:  # WAL must go on, and this is tried again
            logger.warning("a backup could not be requested: {}", str(error) or type(error).__name__)
        else:
            self._request_at = time.monotonic() + _CHECK_S

    def report(self, now: Now, problem: str = "", *, is_lasting: bool = False) -> None:
        """Record the state: at once when it changes, otherwise as often as WAL is stored.

        `problem` is why WAL is not stored now. It is recorded once WAL waits for too long, or if it does not pass by
        itself.
        """
        since = self.waiting.since
        is_late = since is not None and now.at - since > timedelta(seconds=self._settings.max_wal_lag)
        if is_late and not problem and time.monotonic() < self._began + self._settings.wal_interval:
            is_late = False  # what waited while no agent ran is about to be stored
        if is_late and not problem:
            problem = "it is written faster than it is stored"
            if self._settings.wal == "archive":  # what the shell cannot start is not in pg_stat_archiver
                problem += ", or archive_command cannot be started: look at the log of PostgreSQL"
        shown = ". ".join(filter(None, [str(self.gap or ""), problem if is_late or is_lasting else ""]))
        shown = storable(redacted(shown))[:_MOST]
        state = (self.reached, shown)
        if state == self._reported and time.monotonic() < self._report_at:
            return
        stored_at = self.waiting.stored_at
        report = Report(self.reached.timeline or 1, self.reached.lsn, stored_at, since, shown or None)
        self.waiting.own(self._server.report(report, self._runner))
        self._reported, self._report_at = state, time.monotonic() + self._settings.wal_interval
