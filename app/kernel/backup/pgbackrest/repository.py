"""The content of a repository of pgBackRest, by its commands `info` and `repo-ls`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from app.kernel.backup import Backup, Counts, TargetUnavailable
from app.kernel.backup.pgbackrest.program import Program
from app.kernel.backup.timelines import WalFile, lsn_number, wal_file
from app.kernel.config.settings import Misconfigured
from app.kernel.errors import Refusal
from app.kernel.product import NAME

ANNOTATION = NAME
"""Annotation of a backup in which our record is."""
_INFO_S = 300.0
_SEGMENT_BYTES = 16 * 2**20
_NO_PATH, _NO_BACKUP, _NO_DATA = 1, 2, 3
_UNOPENED = ("[FormatError]", "[CryptoError]")
_CONTROL, _UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"), "\ufffd"
_SEGMENT = re.compile(r"(?:[0-9A-F]{16}/)?([0-9A-F]{24})-[0-9a-f]{40}(?:\.\w+)?")


@dataclass(frozen=True, slots=True)
class Notes:
    """What we record about a backup, as an annotation of it: pgBackRest does not know it."""

    server_version: int
    app_version: str
    schema: str
    database: str
    wal_segment_bytes: int
    counts: Counts | None = None


@dataclass(frozen=True, slots=True)
class _Cluster:
    id: int
    system_id: Annotated[int, Field(alias="system-id")]
    version: str


@dataclass(frozen=True, slots=True)
class _Of:
    id: int


@dataclass(frozen=True, slots=True)
class _Archive:
    id: str
    database: _Of
    max: str | None = None


@dataclass(frozen=True, slots=True)
class _Range:
    start: str
    stop: str


@dataclass(frozen=True, slots=True)
class _Times:
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Stored:
    delta: int
    size: int | None = None


@dataclass(frozen=True, slots=True)
class _Size:
    size: int
    repository: _Stored


@dataclass(frozen=True, slots=True)
class _Taken:
    label: str
    type: str
    archive: _Range
    lsn: _Range
    timestamp: _Times
    database: _Of
    info: _Size
    error: bool | None = False
    reference: tuple[str, ...] | None = None
    annotation: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class _Status:
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class _Repository:
    key: int
    status: _Status


@dataclass(frozen=True, slots=True)
class _Stanza:
    name: str
    status: _Status
    archive: tuple[_Archive, ...] = ()
    backup: tuple[_Taken, ...] = ()
    db: tuple[_Cluster, ...] = ()
    repo: tuple[_Repository, ...] = ()


_INFO, _NOTES = TypeAdapter(list[_Stanza]), TypeAdapter(Notes)
_LISTED = TypeAdapter(dict[str, dict[str, str | int]])


@dataclass(frozen=True, slots=True)
class Repository:
    """A stanza in the repository: its good backups and others, oldest first, and its current cluster."""

    backups: tuple[Backup, ...]
    damaged: tuple[Backup, ...]
    """Those with pages whose checksums are wrong, copied or not copied again."""
    full: frozenset[str]
    """Ids of the full backups, also of damaged ones."""
    cluster: str
    archives: tuple[tuple[str, str, str], ...]
    """Of each archive of WAL: the cluster, its name, and its newest segment."""


def read(program: Program) -> Repository:
    """Return what the repository has. Raises Misconfigured without stanza or cipher, TargetUnavailable, Refusal."""
    text = program.run("info", "--output=json", "--repo=1", limit_s=_INFO_S)
    try:
        [stanza] = _INFO.validate_json(_CONTROL.sub(_UNREADABLE, text))  # a message may quote what it could not read
    except (ValidationError, ValueError) as error:
        raise Refusal(f"pgBackRest {program.version()} describes its repository in an unknown way") from error
    status = next((repo.status for repo in stanza.repo), stanza.status)
    if status.code in (_NO_PATH, _NO_DATA):
        raise program.without_stanza()
    if status.code not in (0, _NO_BACKUP) and not stanza.backup:
        if status.message.startswith(_UNOPENED):
            advice = "are repo1-cipher-type and repo1-cipher-pass those it was made with?"
            raise Misconfigured(f"the repository of pgBackRest cannot be opened ({advice}): {_line(status.message)}")
        raise TargetUnavailable(f"the repository of pgBackRest: {_line(status.message)}")
    clusters = {cluster.id: cluster for cluster in stanza.db}
    taken = sorted((one for one in stanza.backup if one.database.id in clusters), key=lambda one: one.timestamp.stop)
    return Repository(
        tuple(_backup(one, clusters[one.database.id]) for one in taken if not one.error),
        tuple(_backup(one, clusters[one.database.id]) for one in taken if one.error),
        frozenset(one.label for one in taken if one.type == "full"),
        str(clusters[max(clusters)].system_id) if clusters else "",
        tuple(
            (str(clusters[archive.database.id].system_id), archive.id, archive.max)
            for archive in stanza.archive
            if archive.max and archive.database.id in clusters
        ),
    )


def _line(message: str) -> str:
    """Return a message in one line, without hints, and each line of it only up to what is not text."""
    lines = (line for line in message.splitlines() if not line.startswith("HINT: "))
    found = ("".join(takewhile(lambda each: each.isprintable() and each != _UNREADABLE, line)) for line in lines)
    return " ".join(dict.fromkeys(line.strip() for line in found if line.strip()))


def encode(notes: Notes) -> str:
    """Return the annotation."""
    return f"--annotation={ANNOTATION}={_NOTES.dump_json(notes).decode()}"


def segments(program: Program, archive: str, size: int) -> list[WalFile]:
    """Return the segments of an archive in order, without those that are not full."""
    found: list[WalFile] = []

    def note(line: str) -> None:
        if (name := _SEGMENT.fullmatch(line.strip())) and (file := wal_file(name[1], size)):
            found.append(file)

    program.run("repo-ls", "--repo=1", "--recurse", f"archive/{program.stanza}/{archive}", each=note)
    return sorted(found)


def stored_at(program: Program, archive: str, segment: str) -> datetime:
    """Return when a segment was stored. Raises TargetUnavailable."""
    folder = f"archive/{program.stanza}/{archive}/{segment[:16]}"
    listed = program.run("repo-ls", "--repo=1", "--output=json", f"--filter=^{segment}-", folder, limit_s=_INFO_S)
    times = [int(about.get("time", 0)) for about in _LISTED.validate_json(listed).values()]
    if not any(times):
        raise TargetUnavailable(f"the repository of pgBackRest does not have {segment} any more")
    return datetime.fromtimestamp(max(times), UTC)


def _backup(taken: _Taken, cluster: _Cluster) -> Backup:
    notes = _notes(taken) or Notes(int(cluster.version.partition(".")[0]) * 10_000, "", "", "", _SEGMENT_BYTES)
    return Backup(
        id=taken.label,
        cluster=str(cluster.system_id),
        engine="pgbackrest",
        started_at=datetime.fromtimestamp(taken.timestamp.start, UTC),
        finished_at=datetime.fromtimestamp(taken.timestamp.stop, UTC),
        timeline=int(taken.archive.stop[:8], 16),
        start_lsn=taken.lsn.start,
        stop_lsn=taken.lsn.stop,
        server_version=notes.server_version,
        app_version=notes.app_version,
        schema=notes.schema,
        database=notes.database,
        size_bytes=taken.info.size,
        stored_bytes=taken.info.repository.size or taken.info.repository.delta,
        wal_segment_bytes=notes.wal_segment_bytes,
        counts=notes.counts,
        depends_on=taken.reference or (),
    )


def _notes(taken: _Taken) -> Notes | None:
    """Return our record; None for a backup that was not taken by this application."""
    try:
        return _NOTES.validate_json(taken.annotation[ANNOTATION])
    except (KeyError, ValidationError):
        return None


def holes(files: Sequence[WalFile], backup: Backup) -> Iterator[tuple[WalFile, WalFile]]:
    """Yield the pairs of segments between which some are missing, from the begin of a backup on."""
    since = backup.timeline, lsn_number(backup.start_lsn) // backup.wal_segment_bytes
    before: WalFile | None = None
    for file in files:
        assert file.number is not None
        if before is not None and before.number is not None and (file.timeline, file.number) > since:
            first = before.number + 1 if before.timeline == file.timeline else min(before.number + 1, file.number)
            if file.number > first:
                yield before, file
        before = file
