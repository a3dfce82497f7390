"""Backups by pgBackRest. Repository and credentials are in its configuration, rows and schema in our annotations."""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from app.kernel.backup import Backup, BackupInvalid
from app.kernel.backup.engine import (
    Advance,
    Damaged,
    Prepared,
    Progress,
    Pruned,
    Restore,
    Verified,
    Wal,
    named,
    newest,
    of_one_cluster,
)
from app.kernel.backup.pgbackrest.expiring import expire
from app.kernel.backup.pgbackrest.program import Program
from app.kernel.backup.pgbackrest.repository import Notes, Repository, encode, holes, read, segments, stored_at
from app.kernel.backup.programs import programs_for
from app.kernel.backup.retention import Policy
from app.kernel.backup.staging import SUFFIX
from app.kernel.backup.taking import counted, examined, session
from app.kernel.backup.timelines import WalFile, lsn_number, lsn_text, segment_name, wal_file
from app.kernel.backup.wal import Gap
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.errors import Conflict, NotFound, Unavailable
from app.kernel.product import VERSION

_COPIED = re.compile(r"(?:backup|restore) file .*[( ](\d+(?:\.\d+)?)([KMGT]?B), [\d.]+%\)")
_LABEL = re.compile(r"new backup label = (\S+)")
_CHECKED_WAL = re.compile(r"archiveId: (\S+), total WAL checked: (\d+), total valid WAL: (\d+)")
_CHECKED_BACKUP = re.compile(r"backup: (\S+), status: (\w+), total files checked: (\d+), total valid files: (\d+)")
_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_ARGUMENT_BYTES = 120_000
"""Linux takes no argument over 128 KiB."""


@dataclass(frozen=True, slots=True)
class PgBackRest:
    """The engine `pgbackrest`: repository 1 of a stanza. `embedded`: PostgreSQL's programs there.

    `database` is checked after a restore of a backup that others have taken, which does not name one.
    """

    settings: BackupSettings
    embedded: Path | None = None
    database: str = "postgres"
    name: str = "pgbackrest"

    @property
    def label(self) -> str:
        return f"the repository of pgBackRest (stanza {self.settings.pgbackrest_stanza})"

    @property
    def _program(self) -> Program:
        return Program(self.settings.pgbackrest_stanza, self.settings.pgbackrest_config)

    def create(self, conninfo: str, progress: Progress) -> Backup:
        """Take a full backup, then count the rows and annotate it with them. Raises BackupInvalid for damaged pages."""
        program = self._program
        with session(conninfo) as connection:
            server = examined(connection)
        if (known := read(program).cluster) != server.cluster:
            message = f"the stanza {program.stanza} of pgBackRest is of the cluster {known or 'none'}, and the database"
            raise Misconfigured(f"{message} of this application is in the cluster {server.cluster}")
        notes = Notes(server.version, VERSION, server.schema, server.database, server.segment_bytes)
        taken: list[str] = []
        program.run(
            *("backup", "--type=full", "--repo=1", "--start-fast", "--no-expire-auto", encode(notes)),
            "--log-level-console=detail",
            each=_follow(progress.step("backup", server.size_bytes), taken),
        )
        self.get(taken[0])  # raises BackupInvalid for damaged pages
        if counts := counted(conninfo, server, progress):
            annotation = encode(replace(notes, counts=counts))
            if len(annotation.encode()) <= _ARGUMENT_BYTES:
                program.run("annotate", f"--set={taken[0]}", annotation)
            else:
                logger.warning("there are too many tables to store their counts with a backup of pgBackRest")
        return self.get(taken[0])

    def list(self) -> Sequence[Backup]:
        """Return the good backups in the repository, oldest first, also those of others."""
        return read(self._program).backups

    def get(self, id: str, cluster: str = "") -> Backup:  # noqa: A002 - as in the command
        repository = read(self._program)
        return named(repository.backups, id, cluster, self.label, self._damaged(repository))

    def damaged(self) -> Sequence[Damaged]:
        """Return the backups with damaged pages; of other damage, pgBackRest knows only when it has read all."""
        return self._damaged(read(self._program))

    def _damaged(self, repository: Repository) -> Sequence[Damaged]:
        return [
            Damaged(
                *(one.cluster, one.id, f"the backup {one.id} has pages with wrong checksums"),
                hint=shlex.join(self._program.command("info", f"--set={one.id}")),
            )
            for one in repository.damaged
        ]

    def used_bytes(self) -> int | None:
        """Return None: pgBackRest does not tell the size of WAL."""
        return None

    def wal(self, cluster: str) -> Wal | None:
        """Return how far WAL is stored, and whether segments are missing since the newest backup began.

        About what was missing before, nothing more can be done.
        """
        program = self._program
        repository = read(program)
        archives = [found for found in repository.archives if found[0] == cluster]
        if not archives:
            return None
        _, archive, segment = archives[-1]
        backups = [backup for backup in repository.backups if backup.cluster == cluster]
        size = backups[-1].wal_segment_bytes if backups else 16 * 2**20
        gap = self._gap(program, archive, newest(backups)) if backups else ""
        file = wal_file(segment, size)
        if file is None:
            return None
        end = lsn_text(file.start(size) + size)
        return Wal(file.timeline, end, stored_at(program, archive, segment), gap)

    def verify(self, backup: Backup, progress: Progress) -> Verified:
        """Let pgBackRest read its whole repository; report what concerns the backup, and WAL since the newest one."""
        program = self._program
        advance = progress.step("verify", None)
        text: list[str] = []

        def each(line: str) -> None:
            text.append(line)
            advance(0)

        program.run("verify", "--repo=1", "--output=text", "--verbose", each=each)
        problems, segments_checked = _problems("".join(text), {backup.id, *backup.depends_on})
        repository = read(program)
        last = newest([one for one in repository.backups if one.cluster == backup.cluster] or [backup])
        for cluster, archive, _ in repository.archives:
            if cluster == backup.cluster:
                gap = self._gap(program, archive, last)
                problems += [gap] if gap else []
        advance(backup.stored_bytes)
        return Verified(backup, tuple(problems), backup.stored_bytes, segments_checked)

    def prepare(self, restore: Restore, progress: Progress) -> Prepared:
        """Let pgBackRest restore a backup into a new folder, as the account that reads its repository."""
        program = self._program
        repository = read(program)
        backup = chosen(repository.backups, restore, self.label, self._damaged(repository))
        programs = programs_for(backup.server_version, self.settings, self.embedded, exact=True)
        folder = restore.into
        if folder.exists() and any(folder.iterdir()):
            raise Conflict(f"{folder} is not empty")
        tablespaces = Path(f"{_beside(folder)}.tablespaces")
        for made in (folder, tablespaces):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            if account := program.account():
                os.chown(made, *account[:2])
        follow = _follow(progress.step("restore", backup.size_bytes), [])
        try:
            program.run(
                *("--repo=1", f"--set={backup.id}", f"--pg1-path={folder}", "--type=preserve"),
                *(f"--tablespace-map-all={tablespaces}", f"--spool-path={folder}.spool"),
                *("--log-level-console=detail", "restore"),
                each=follow,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            with suppress(OSError):  # there are some
                tablespaces.rmdir()
        missing = self._missing(program, backup)
        is_alone = bool(restore.backup and not restore.to and not restore.lsn and _is_kept_alone(backup, missing))
        last = newest([one for one in repository.backups if one.cluster == backup.cluster])
        stored = None if is_alone and backup.id != last.id else self.wal(backup.cluster)  # with its gap after the last
        # not one that only has a history: that restore has written nothing
        timeline = restore.timeline or max(backup.timeline, stored.timeline if stored else 0)
        return Prepared(
            replace(backup, database=backup.database or self.database),
            folder,
            programs,
            lambda: self._recovering(backup, folder, [] if is_alone else missing),
            timeline=timeline,
            stored=stored,
            store=lambda history: program.run(
                f"--pg1-path={folder}", "--no-archive-async", "archive-push", str(history)
            ),
        )

    def prune(self, progress: Progress, *, is_dry: bool) -> Pruned:
        """Expire what our retention does not keep, in place of that in the configuration of pgBackRest."""
        advance = progress.step("expire", None)
        return expire(self._program, Policy.of(self.settings), datetime.now(UTC), advance, is_dry=is_dry)

    @contextmanager
    def _recovering(self, backup: Backup, folder: Path, missing: Sequence[tuple[WalFile, WalFile]]) -> Generator[str]:
        """Yield the restore_command. For a segment that is missing, although later ones are stored, it fails."""
        program, size = self._program, backup.wal_segment_bytes
        names = {
            segment_name(line, before.start(size) + size, size)
            for before, after in missing
            for line in (before.timeline, after.timeline)
        }
        try:
            yield program.restore_command(folder, names)
        except Unavailable as error:
            for name in names:
                if name in str(error):
                    raise BackupInvalid(f"the WAL segment {name} is not stored, although later ones are") from error
            read(program)  # says why the repository cannot be read
            raise

    @staticmethod
    def _missing(program: Program, backup: Backup) -> Sequence[tuple[WalFile, WalFile]]:
        archives = [archive for cluster, archive, _ in read(program).archives if cluster == backup.cluster]
        size = backup.wal_segment_bytes
        return [hole for archive in archives for hole in holes(segments(program, archive, size), backup)]

    @staticmethod
    def _gap(program: Program, archive: str, backup: Backup) -> str:
        size = backup.wal_segment_bytes
        gaps = [
            str(Gap(after.timeline, before.start(size) + size, after.start(size)))
            for before, after in holes(segments(program, archive, size), backup)
        ]
        return f"{gaps[0]}, and {len(gaps) - 1} more parts" if len(gaps) > 1 else "".join(gaps)


def _is_kept_alone(backup: Backup, missing: Sequence[tuple[WalFile, WalFile]]) -> bool:
    """Return whether no WAL after a backup is stored, although later WAL is, as with those that are kept for long."""
    end = lsn_number(backup.stop_lsn) // backup.wal_segment_bytes
    return any(before.timeline == backup.timeline and (before.number or 0) <= end for before, _ in missing)


def _beside(folder: Path) -> Path:
    """Return the name of a data folder once it is in its place: tablespaces are restored where they stay."""
    staging = folder.parent
    return staging.with_name(staging.name.removesuffix(SUFFIX)) if staging.name.endswith(SUFFIX) else folder


def chosen(backups: Sequence[Backup], restore: Restore, label: str, damaged: Sequence[Damaged] = ()) -> Backup:
    """Return the backup to restore: the named one, else the newest that had ended by then. Raises NotFound, Invalid."""
    if restore.backup:
        fit: Sequence[Backup] = [named(backups, restore.backup, restore.cluster, label, damaged)]
    else:
        fit = of_one_cluster(backups, restore.cluster, label, damaged)
    if restore.to is not None:
        fit = [backup for backup in fit if backup.finished_at <= restore.to]
    if restore.lsn:
        fit = [backup for backup in fit if lsn_number(backup.stop_lsn) <= lsn_number(restore.lsn)]
    if not fit:
        begin = min((backup.finished_at for backup in backups), default=None)
        since = f"; what can be restored begins at {begin:%Y-%m-%dT%H:%M:%SZ}" if begin else ""
        raise NotFound(f"there is no backup {restore.backup}".rstrip() + f" to begin with{since}")
    return fit[-1]


def _follow(advance: Advance, taken: list[str]) -> Callable[[str], None]:
    """Return what reads the log of pgBackRest: the progress, and the label of a new backup."""

    def each(line: str) -> None:
        copied = _COPIED.search(line)
        advance(int(float(copied[1]) * _UNITS[copied[2]]) if copied else 0)
        if label := _LABEL.search(line):
            taken.append(label[1])

    return each


def _problems(text: str, wanted: set[str]) -> tuple[list[str], int]:
    """Return the problems that a verification has reported, and the number of segments that it has read."""
    problems = [line.strip() for line in text.splitlines() if line.strip().startswith("No usable")]
    segments = 0
    for name, total, valid in _CHECKED_WAL.findall(text):
        segments += int(total)
        if valid != total:
            problems.append(f"{int(total) - int(valid)} of {total} segments of WAL in {name} are damaged")
    seen = {label: (state, total, valid) for label, state, total, valid in _CHECKED_BACKUP.findall(text)}
    for label in sorted(wanted):
        state, total, valid = seen.get(label, ("not verified", "0", "0"))
        if state != "valid":
            problems.append(f"the backup {label} is {state}: {int(total) - int(valid)} of {total} files are damaged")
    return problems, segments
