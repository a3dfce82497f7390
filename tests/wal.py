"""Kill all that stores WAL, at random, under write load, for as long as wanted: python -m tests.wal --seconds 600"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.support.wal import ORACLE, agents, check_against_copies, kill_at_random, wal_server, writing


def main() -> int:
    """Report what was killed how often, and how many segments are stored; the exit status is 1 on a gap."""
    parser = argparse.ArgumentParser(prog="python -m tests.wal", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="duration")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="which kills")
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}")
    with (
        tempfile.TemporaryDirectory(prefix="wal-") as folder,
        wal_server(**ORACLE) as server,
        agents(server, Path(folder)) as found,
    ):
        found.start()
        found.start()
        with writing(server) as written:
            counts = kill_at_random(found, wanted.seconds, random.Random(wanted.seed))
        number = check_against_copies(found)
        print(f"killed {counts}; {len(written)} rows; {number} segments are stored, whole, without a gap")
        print(f"record {found.row()}")
        sys.stdout.write("".join(found.log.read_text().splitlines(keepends=True)[-5:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
