"""The catalogue: a signed record of each whole backup, beside what it describes. The names of all objects."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from loguru import logger
from pydantic import TypeAdapter, ValidationError

from app.kernel.backup import AnotherKey, Backup, BackupInvalid, Target
from app.kernel.backup.engine import Damaged, named
from app.kernel.backup.sealed import Keys
from app.kernel.errors import NotFound

BACKUPS: Final = "backups/"
WAL: Final = "wal/"
PROBES: Final = "probe/"
"""What doctor stores, reads and deletes."""
WAL_SUFFIX: Final = ".zst.sealed"
_RECORD: Final = "backup.json"
_RECORD_BYTES: Final = 4 * 1024 * 1024
_SIGNED: Final = re.compile(rb'\{"signature": "([0-9a-f:]{1,200})",\n("backup": .*)\}\n', re.DOTALL)
_AT_ONCE: Final = 8
_BACKUP: Final = TypeAdapter(Backup)


def backup_prefix(cluster: str, backup: str) -> str:
    """Return what the names of all objects of a backup begin with."""
    return f"{BACKUPS}{cluster}/{backup}/"


def base_name(cluster: str, backup: str) -> str:
    """Return the name of the object that holds the data folder of a backup."""
    return f"{backup_prefix(cluster, backup)}base.tar.zst.sealed"


def record_name(cluster: str, backup: str) -> str:
    """Return the name of the record of a backup. It is stored last: what has none is not a backup."""
    return f"{backup_prefix(cluster, backup)}{_RECORD}"


def wal_prefix(cluster: str) -> str:
    """Return what the names of all WAL of a cluster begin with."""
    return f"{WAL}{cluster}/"


def wal_names(keys: Keys, cluster: str, file: str) -> tuple[str, ...]:
    """Return the names of a WAL segment, a partial one (`SEGMENT.partial`) or a history file (`0000000N.history`).

    The first is that of the key; the second, if there is one, that of the former key. They are marked, because names
    alone tell how far WAL is stored: what others have put there does not count.
    """
    name = f"{wal_prefix(cluster)}{file}"
    return tuple(f"{name}.{mark}{WAL_SUFFIX}" for mark in keys.marks(name))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The backups on a target, of all clusters."""

    target: Target
    keys: Keys

    def backups(self) -> list[Backup]:
        """Return the whole backups, oldest first."""
        return self.read()[0]

    def read(self) -> tuple[list[Backup], list[Damaged]]:
        """Return the whole backups, oldest first, and the records that are damaged or signed with an unknown key."""
        names = [stored.name for stored in self.target.list(BACKUPS) if is_record(stored.name)]
        with ThreadPoolExecutor(_AT_ONCE, "catalogue") as pool:
            found = list(pool.map(self._try, names))
        whole = [one for one in found if isinstance(one, Backup)]
        damaged = [one for one in found if isinstance(one, Damaged)]
        return sorted(whole, key=lambda backup: (backup.finished_at, backup.id)), damaged

    def get(self, id: str, cluster: str = "") -> Backup:  # noqa: A002 - as in the command
        """Return a backup, as `Engine.get` does."""
        whole, damaged = self.read()
        return named(whole, id, cluster, self.target.label, damaged)

    def add(self, backup: Backup) -> None:
        """List a backup, all parts of which are stored. Raises Conflict if it is listed."""
        self.target.put(record_name(backup.cluster, backup.id), [self._encode(backup)])

    def remove(self, backup: Backup) -> None:
        """Delete a backup, its record first, so that what is listed is always whole. Safe to repeat."""
        self.target.delete([record_name(backup.cluster, backup.id)])
        prefix = backup_prefix(backup.cluster, backup.id)
        self.target.delete([stored.name for stored in self.target.list(prefix)])

    def _encode(self, backup: Backup) -> bytes:
        content = b'"backup": ' + json.dumps(_BACKUP.dump_python(backup, mode="json"), indent=1).encode()
        text = b'{"signature": "%s",\n%s}\n' % (self.keys.sign(content).encode(), content)
        if len(text) > _RECORD_BYTES and backup.counts is not None:
            logger.warning("the backup has too many tables to record their rows, so drills cannot compare them")
            return self._encode(replace(backup, counts=None))
        return text

    def _try(self, name: str) -> Backup | Damaged | None:
        try:
            return self._record(name)
        except BackupInvalid as error:
            _, cluster, backup, _ = name.split("/")
            return Damaged(cluster, backup, str(error), error.hint if isinstance(error, AnotherKey) else "")
        except NotFound:  # pruned meanwhile
            return None

    def _record(self, name: str) -> Backup:
        text = bytearray()
        for chunk in self.target.get(name):
            text += chunk
            if len(text) > _RECORD_BYTES:
                raise BackupInvalid(f"{name} is damaged: a record is never larger than {_RECORD_BYTES} bytes")
        if (signed := _SIGNED.fullmatch(text)) is None:
            raise BackupInvalid(f"{name} is damaged: it is not a whole record")
        self.keys.check(name, signed[2], signed[1].decode())  # before it is parsed: others can make that expensive
        try:
            backup = _BACKUP.validate_python(json.loads(text)["backup"])
        except (ValueError, ValidationError, LookupError, TypeError, RecursionError) as error:
            raise BackupInvalid(f"{name} is damaged: it is not a whole record") from error
        if name != record_name(backup.cluster, backup.id):
            raise BackupInvalid(f"{name} is damaged: it is the record of another backup, {backup.id}")
        return backup


def is_record(name: str) -> bool:
    """Return whether an object of this name can be the record of a backup."""
    return name.count("/") == 3 and name.endswith(f"/{_RECORD}")
