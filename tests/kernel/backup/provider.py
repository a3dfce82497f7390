"""A provider of databases: backups are plain copies by pg_basebackup, which it restores as servers on ports.

Arguments: `status` or `restore`, the folder of the copies, PostgreSQL's programs. Run as a script.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def status(copies: Path) -> None:
    """Print what backup.managed_status must print."""
    found = []
    for copy in sorted(copies.glob("*/PG_VERSION")):
        at = datetime.fromtimestamp(copy.stat().st_mtime, UTC).isoformat()
        found.append({"id": copy.parent.name, "started_at": at, "finished_at": at, "size_bytes": 30_000_000})
    print(json.dumps({"backups": found, "restorable_until": datetime.now(UTC).isoformat()}))


def restore(copies: Path, programs: Path, backup: str, data: Path) -> None:
    """Start a server on a copy, and print its address."""
    shutil.copytree(copies / backup, data, symlinks=True)
    data.chmod(0o700)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    control(programs, data, "start", "-w", "-l", str(data / "log"), "-o", f"-p {port} -h 127.0.0.1 -k {data} -F")
    print(json.dumps({"host": "127.0.0.1", "port": port}))


def remove(programs: Path, data: Path) -> None:
    """Stop the server and delete its data, if there is one."""
    if data.exists():
        control(programs, data, "stop", "-m", "immediate")
        shutil.rmtree(data)


def control(programs: Path, data: Path, *words: str) -> None:
    command = [str(programs / "pg_ctl"), "-D", str(data), *words]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=words[0] == "start")


if __name__ == "__main__":
    what, copies, programs = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    data = copies.parent / f"scratch-{os.environ.get('RESTORE_SCRATCH')}"
    if what == "status":
        status(copies)
    elif os.environ["RESTORE_ACTION"] == "remove":
        remove(programs, data)
    else:
        restore(copies, programs, os.environ["RESTORE_BACKUP"], data)
