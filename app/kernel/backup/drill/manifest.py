"""Check of restored files against the manifest that the server made when it copied them.

As pg_verifybackup does, of which some builds do not run, without its look at WAL, which is replayed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from app.kernel.backup.checksums import checksum_of
from app.kernel.backup.drill import Found
from app.kernel.backup.engine import Advance

_NAME = "backup_manifest"
_END = re.compile(rb'^"Manifest-Checksum": "([0-9a-f]{64})"\}\s*\Z', re.MULTILINE)
_IGNORED = ("pg_wal/", _NAME, "recovery.signal", "standby.signal", "postgresql.auto.conf")
_CHUNK_BYTES = 2**20


def manifest(folder: Path, advance: Advance = lambda _: None) -> Found:
    """Compare all files of a data folder that no server has used yet: names, sizes, checksums."""
    path = folder / _NAME
    if not path.exists():
        return Found(skipped="there is no manifest; the engine checks its files itself")
    text = path.read_bytes()
    end = _END.search(text)
    if end is None or hashlib.sha256(text[: end.start()]).hexdigest() != end[1].decode():
        return Found(problems=("the manifest is damaged",))
    files: list[Mapping[str, Any]] = json.loads(text)["Files"]
    listed = {path: entry for entry in files if not (path := _path(entry)).startswith(_IGNORED)}
    present = set(_present(folder))
    problems = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    problems += [f"{name} is not in the manifest" for name in sorted(present - listed.keys())]
    both = sorted(listed.keys() & present)
    with ThreadPoolExecutor(os.cpu_count(), "manifest") as pool:
        found = pool.map(_difference, (folder / name for name in both), map(listed.__getitem__, both), repeat(advance))
        problems += [f"{name} {difference}" for name, difference in zip(both, found, strict=True) if difference]
    return Found(f"{len(listed):,} files", tuple(problems))


def _path(entry: Mapping[str, Any]) -> str:
    return os.fsdecode(bytes.fromhex(entry["Encoded-Path"])) if "Encoded-Path" in entry else str(entry["Path"])


def _present(folder: Path) -> Iterator[str]:
    for where, _, files in os.walk(folder):
        for name in files:
            path = str(Path(where, name).relative_to(folder))
            if not path.startswith(_IGNORED):
                yield path


def _difference(path: Path, entry: Mapping[str, Any], advance: Advance) -> str:
    size, wanted = path.stat().st_size, int(entry["Size"])
    if size != wanted:
        return f"has {size:,} bytes in place of {wanted:,}"
    if "Checksum" not in entry:  # the algorithm is NONE
        return ""
    digest = checksum_of(entry["Checksum-Algorithm"])
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return "" if digest.hexdigest() == entry["Checksum"] else "has another content"
