"""Mixed load through PgBouncer for as long as wanted: python -m tests.pgbouncer --seconds 600"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.test_pgbouncer import behind_pgbouncer


def main() -> int:
    """Return 1 when anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.pgbouncer", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    wanted = parser.parse_args()
    with behind_pgbouncer(Path(tempfile.mkdtemp(prefix="pgbouncer-load-"))) as deployment:
        print(deployment.pooler.tell("SHOW VERSION"), flush=True)
        load = deployment.mixed().run(wanted.seconds)
        for what, count in sorted(load.done.items()):
            print(f"{count:>8}  {what}")
        print(f"slowest answer {load.slowest_s:.2f} s; sessions of the server {deployment.sessions()}")
        print(*load.wrong or ["no error"], sep="\n")
    return int(bool(load.wrong))


if __name__ == "__main__":
    sys.exit(main())
