"""Metrics of backups. Each is absent while its value is unknown, as where there are no backups."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import Gauge

from app.kernel.backup.watching import BackupState
from app.kernel.config import BackupSettings
from app.kernel.telemetry import metrics


class _Known(Gauge):
    """A gauge that is absent until a value is recorded, and after None is."""

    def __init__(self, name: str, documentation: str) -> None:
        self._is_known = False
        super().__init__(name, documentation, registry=None)
        metrics.register(self)

    def record(self, value: float | None) -> None:
        self._is_known = value is not None
        if value is not None:
            self.set(value)

    def collect(self) -> Iterable[Any]:
        return super().collect() if self._is_known else []


_EXPECTED = _Known("backup_expected", "1, or 0 where neither settings nor the database know of backups")
_LAST_SUCCESS = _Known("backup_last_success_seconds", "Time at which the newest good backup ended, in Unix time")
_FAILED = _Known("backup_failed", "1 if the last backup, verification of all or pruning has failed, otherwise 0")
_SIZE = _Known("backup_size_bytes", "Size of the data in the newest good backup")
_STORED = _Known("backup_stored_bytes", "Size of the newest good backup on the target")
_WAL_LAG = _Known("backup_wal_lag_seconds", "For how long WAL has waited to be stored")
_WAL_GAP = _Known("backup_wal_gap", "1 if a part of the stored WAL is missing, otherwise 0")
_DRILL_LAST_SUCCESS = _Known(
    "backup_drill_last_success_seconds", "Time at which the last good drill ended, in Unix time"
)
_DRILL_FAILED = _Known("backup_drill_failed", "1 if the last drill that ended has failed, otherwise 0")
_DRILL_RTO = _Known("backup_drill_rto_seconds", "Time that the last good drill took to a server that answers")
_DRILL_RPO = _Known("backup_drill_rpo_seconds", "Age of the last commit that the last good drill restored")


def record(state: BackupState, settings: BackupSettings) -> None:
    """Record the state of backups."""
    backup, drill, wal = state.good("backup"), state.good("drill"), state.wal
    ended = [last for kind in ("backup", "verify", "prune") if (last := state.last(kind))]
    last_drill = state.last("drill")
    _EXPECTED.record(state.is_expected(settings))
    _LAST_SUCCESS.record(backup and backup.finished_at and backup.finished_at.timestamp())
    _FAILED.record(any(last.state == "failed" for last in ended) if ended else None)
    _SIZE.record(backup and backup.size_bytes)
    _STORED.record(backup and backup.stored_bytes)
    _WAL_LAG.record(wal and wal.lag_s)
    _WAL_GAP.record(wal and wal.has_gap)
    _DRILL_LAST_SUCCESS.record(drill and drill.finished_at and drill.finished_at.timestamp())
    _DRILL_FAILED.record(last_drill and last_drill.state == "failed")
    _DRILL_RTO.record(drill and drill.rto_s)
    _DRILL_RPO.record(drill and drill.rpo_s)
