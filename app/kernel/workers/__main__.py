"""The program of the supervisor: NAME COUNT ROOT COMMAND... Started by `exec` from the command with `--workers`."""

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from app.kernel.product import NAME
from app.kernel.sockets import WrongSocket
from app.kernel.workers.supervisor import Supervisor


def main() -> int:
    """Supervise; return the exit status."""
    name, count, root, *command = sys.argv[1:]
    try:
        supervisor = Supervisor(name, int(count), command, os.environ, Path(root), hangs_up=sys.stdout.isatty())
    except WrongSocket as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        return 78
    return asyncio.run(supervisor.run())


sys.exit(main())
