"""The engine `builtin`: backups by PostgreSQL's own programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.kernel.backup import Backup, Target
from app.kernel.backup.catalogue import BACKUPS, WAL, Catalogue
from app.kernel.backup.engine import Damaged, Prepared, Progress, Pruned, Restore, Verified, Wal
from app.kernel.backup.sealed import Keys
from app.kernel.backup.timelines import lsn_number, lsn_text
from app.kernel.backup.wal import WalArchive
from app.kernel.config.backup import BackupSettings

if TYPE_CHECKING:
    from app.kernel.backup.verifying import Verification


@dataclass(slots=True)
class Builtin:
    """Takes backups with pg_basebackup and stores them sealed on a target. `embedded`: PostgreSQL's programs there."""

    settings: BackupSettings
    target: Target
    keys: Keys
    embedded: Path | None = None
    name: str = "builtin"
    _verification: "Verification | None" = None

    @property
    def label(self) -> str:
        return self.target.label

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue of the target."""
        return Catalogue(self.target, self.keys)

    def create(self, conninfo: str, progress: Progress) -> Backup:
        from app.kernel.backup.taking import take

        return take(conninfo, self.settings, self.target, self.keys, self.embedded, progress)

    def list(self) -> Sequence[Backup]:
        return self.catalogue.backups()

    def get(self, id: str, cluster: str = "") -> Backup:  # noqa: A002 - as in the command
        return self.catalogue.get(id, cluster)

    def damaged(self) -> Sequence[Damaged]:
        whole, damaged = self.catalogue.read()
        sizes = {stored.name: stored.size_bytes for stored in self.target.list(BACKUPS)}
        for backup in whole:
            for part in backup.parts:
                if (size := sizes.get(part.name)) != part.stored_bytes:
                    problem = "is missing" if size is None else f"has {size} bytes, not {part.stored_bytes}"
                    damaged.append(Damaged(backup.cluster, backup.id, f"{part.name} {problem}"))
        return damaged

    def used_bytes(self) -> int | None:
        return sum(stored.size_bytes for prefix in (BACKUPS, WAL) for stored in self.target.list(prefix))

    def wal(self, cluster: str) -> Wal | None:
        sizes = [backup.wal_segment_bytes for backup in self.list() if backup.cluster == cluster]
        position = WalArchive(self.target, self.keys, cluster, *sizes[-1:]).position()
        return position and Wal(position.timeline, lsn_text(position.lsn), position.stored_at)

    def has_wal(self, cluster: str, timeline: int, lsn: str) -> bool:
        """Return whether WAL is stored up to a position, but for less than a segment; True without a backup there."""
        sizes = [backup.wal_segment_bytes for backup in self.list() if backup.cluster == cluster]
        if not sizes:
            return True
        position = WalArchive(self.target, self.keys, cluster, sizes[-1]).position(timeline)
        return (position.lsn if position else 0) + sizes[-1] >= lsn_number(lsn)

    def verify(self, backup: Backup, progress: Progress) -> Verified:
        from app.kernel.backup.pruning import needing_wal
        from app.kernel.backup.retention import Policy
        from app.kernel.backup.verifying import Verification

        if self._verification is None:
            needing = partial(needing_wal, self.catalogue, Policy.of(self.settings))
            self._verification = Verification(self.target, self.keys, needing)
        return self._verification.verify(backup, progress)

    def prepare(self, restore: Restore, progress: Progress) -> Prepared:
        from app.kernel.backup.programs import programs_for
        from app.kernel.backup.restoring import prepare

        programs = partial(programs_for, settings=self.settings, embedded=self.embedded, exact=True)
        return prepare(restore, progress, self.target, self.keys, programs)

    def prune(self, progress: Progress, *, is_dry: bool) -> Pruned:
        from app.kernel.backup.pruning import prune
        from app.kernel.backup.retention import Policy

        advance = progress.step("delete", None)
        return prune(self.target, self.keys, Policy.of(self.settings), is_dry=is_dry, advance=advance)
