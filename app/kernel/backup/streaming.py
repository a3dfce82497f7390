"""Streaming of WAL: what pg_receivewal receives is stored on the target, and only then forgotten by the server."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Event

from loguru import logger
from psycopg import errors

from app.kernel.backup import TargetUnavailable
from app.kernel.backup.primary import Now, Primary, Slot
from app.kernel.backup.receiver import Receiver
from app.kernel.backup.record import Record
from app.kernel.backup.timelines import WalFile, is_on_way, lsn_text, segment_name, timeline_at
from app.kernel.backup.wal import Gap, WalArchive
from app.kernel.errors import Conflict

_SLOT_S = 5.0
_AGAIN_S, _LATEST_S = 0.5, 5.0


class Patience:
    """Waits longer after each failure, up to a few seconds: what is not stored could be lost."""

    def __init__(self) -> None:
        self._wait_s = _AGAIN_S
        self._at = 0.0

    @property
    def is_over(self) -> bool:
        """Whether to try again."""
        return time.monotonic() >= self._at

    def failed(self) -> float:
        """Note a failure; return for how long to wait."""
        wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, _LATEST_S)
        self._at = time.monotonic() + wait_s
        return wait_s

    def succeeded(self) -> None:
        """Note a success."""
        self._wait_s, self._at = _AGAIN_S, 0.0


class Streaming:
    """Stores the WAL of a server while the session on it lasts."""

    def __init__(
        self,
        server: Primary,
        archive: WalArchive,
        record: Record,
        program: Path,
        spool: Path,
        interval_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._server, self._archive, self._record = server, archive, record
        self._program, self._spool, self._interval_s, self._say = program, spool, interval_s, say
        self._name = f"backup-{uuid.uuid4().hex[:12]}"
        self._receiver: Receiver | None = None
        self._tick_s = min(1.0, interval_s / 4)
        self._slot = self._checked_slot()
        self._slot_at = 0.0
        self._begin = self._first()  # the number of the next segment
        self._partial_at = 0.0
        self._target, self._start = Patience(), Patience()
        self._problem = self._ended = ""
        self._started_at = 0.0

    def run(self, stop: Event) -> None:
        """Store WAL until asked to stop; then store what was received. Raises psycopg.Error, Refusal, OSError."""
        try:
            while not stop.is_set():
                self._step(is_last=False)
                stop.wait(self._tick_s)
            if self._receiver:
                self._receiver.end()
            self._step(is_last=True)
        finally:
            self.kill()

    def kill(self) -> None:
        """End pg_receivewal. Safe to repeat, and from another thread."""
        if self._receiver:
            self._receiver.end()

    def _step(self, *, is_last: bool) -> None:
        now = self._server.now(self._name)
        record = self._record
        record.waiting.note(now)
        try:
            if self._target.is_over or is_last:
                self._store(now, is_last=is_last)
                self._target.succeeded()
                self._problem = ""
                record.check()
        except TargetUnavailable as error:
            self._target.failed()
            self._problem = str(error)  # also until it is tried again
        self._advance(is_last=is_last)
        problem = self._problem if is_last else self._received() or self._problem
        self._say(problem)
        record.report(now, problem)

    def _store(self, now: Now, *, is_last: bool) -> None:
        if self._receiver is None:
            return
        files = self._receiver.files()
        newest = max((file.timeline for _, file in files), default=0)
        for path, file in files:
            if file.is_partial and file.timeline == newest:  # else the server has left that timeline
                if is_last or self._is_due():
                    self._store_partial(path, file, now)
                continue
            self._archive.put(path, is_live=True)
            path.unlink()
            if file.number is not None and not file.is_partial:
                self._begin = file.number + 1
                self._record.stored(*self._archive.reached)

    def _is_due(self) -> bool:
        """Return whether waiting WAL would be stored too late if it were left until the next look."""
        waits = self._record.waiting.since is not None
        return waits and time.monotonic() - self._partial_at >= self._interval_s - self._tick_s

    def _store_partial(self, path: Path, file: WalFile, now: Now) -> None:
        began = time.monotonic()
        try:
            self._archive.put(path)
        except FileNotFoundError:  # it has become full
            return
        self._partial_at = began
        # records may end with zeros, which do not tell whether they were written: the receiver knows
        reached = max(self._archive.reached.lsn, now.received or 0)
        self._record.stored(file.timeline, reached)

    def _received(self) -> str:
        """Start pg_receivewal if it does not run; return why it ended, until the next one has run for a while."""
        receiver = self._receiver
        if receiver is not None:
            if not receiver.has_ended():
                if time.monotonic() - self._started_at > _LATEST_S:
                    self._start.succeeded()
                    self._ended = ""
                return self._ended
            if any(file.number is not None and not file.is_partial for _, file in receiver.files()):
                return "" if receiver.is_full else receiver.reason()  # these are stored first
            self._receiver = None
            if not receiver.is_full:
                self._ended = receiver.reason()
                self._start.failed()
            if receiver.is_removed():
                self._skip()
        if self._start.is_over:
            begin = segment_name(self._timeline_of(self._begin), self._begin * self._size, self._size)
            server = self._server
            self._receiver = Receiver(self._program, server.conninfo, self._name, self._spool, begin, self._size)
            self._started_at = time.monotonic()
            logger.debug("receiving WAL from {}", begin)
        return self._ended

    def _skip(self) -> None:
        """Go on where the server still has WAL; what was between is lost for restoring."""
        self._slot = self._checked_slot()
        written = self._server.now(self._name).written // self._size
        begin = min(max(self._slot.lsn // self._size, self._begin + 1), written)
        if begin <= self._begin:  # what the server writes now cannot be lost
            return
        start = max(self._begin * self._size, self._record.reached.lsn)
        self._record.miss(Gap(self._timeline_of(begin - 1), start, begin * self._size))
        self._begin = begin

    def _advance(self, *, is_last: bool) -> None:
        """Let the server forget what is stored."""
        record, lsn, size = self._record, self._record.reached.lsn, self._size
        if time.monotonic() >= self._slot_at:
            self._slot = self._checked_slot()
            self._slot_at = time.monotonic() + _SLOT_S
        if record.gap is not None and record.reached < record.gap.until:
            return
        if lsn // size > self._slot.lsn // size or (is_last and lsn > self._slot.lsn):
            try:
                self._server.advance_slot(lsn)
            except (errors.UndefinedObject, errors.ObjectNotInPrerequisiteState, errors.ObjectInUse):
                self._slot = self._checked_slot()
            else:
                self._slot = Slot(False, lsn, False)

    def _checked_slot(self) -> Slot:
        """Return our slot, made anew if it is lost. Raises Conflict if another program uses it."""
        server = self._server
        found = server.find_slot()
        if found is not None and found.is_active:
            raise Conflict(f"another program streams with the replication slot {server.slot}, which is ours")
        if found is not None and found.is_lost:
            logger.warning("the replication slot {} has lost WAL (max_slot_wal_keep_size)", server.slot)
            server.drop_slot()
            found = None
        if found is None:
            logger.info("making the replication slot {}", server.slot)
            found = server.create_slot()
        return found

    def _first(self) -> int:
        """Return the number of the first segment to receive: after what is stored, else where the slot is."""
        size, server = self._size, self._server
        files = (wal.file for wal in self._archive.segments() if is_on_way(wal.file, server.stretches, size))
        next_ones = ((file.number or 0) + (not file.is_partial) for file in files)
        first = max(next_ones, default=self._slot.lsn // size)
        written = server.now(self._name).written
        if first > -(-written // size):
            raise Conflict(
                f"WAL until {lsn_text(first * size)} of timeline {server.timeline} is stored, and the server has it"
                f" only until {lsn_text(written)}: it was set back without a new timeline; see docs/backups.md"
            )
        self._record.reach(self._timeline_of(first), first * size)
        logger.info("storing WAL of the cluster {} from {}", server.cluster, lsn_text(first * size))
        return first

    def _timeline_of(self, number: int) -> int:
        return timeline_at(self._server.stretches, number, self._size)

    @property
    def _size(self) -> int:
        return self._server.segment_bytes
