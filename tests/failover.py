"""Failovers as often as wanted: python -m tests.failover --times 20"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.conftest import postgres_binaries
from tests.support.debian import with_standby
from tests.support.failover import Pair, fail_over_under_load
from tests.support.project import ROOT, Project


def main() -> int:
    """Kill the primary again and again, each time of the server that took over before; the exit status is 1 on loss."""
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="number of failovers")
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="failover-"))
    (folder / "scratch").mkdir()
    project = Project(ROOT, folder / "scratch")
    with with_standby(postgres_binaries()) as servers:
        pair = Pair(list(servers))
        pair.synchronise()
        try:
            outcome = asyncio.run(fail_over_under_load(pair, project, folder, wanted.times))
        finally:
            project.end()
    print(outcome.verdict.table())
    print(f"answers {dict(outcome.answers)}; dead {outcome.dead}")
    for what in outcome.back_s[0]:
        seconds = sorted(back[what] for back in outcome.back_s)
        print(f"seconds from the kill to the first {what}: median {seconds[len(seconds) // 2]}, most {seconds[-1]}")
    print(f"of these until the promotion had ended: {[round(seconds, 2) for seconds in outcome.outage_s]}")
    return int(not outcome.verdict.holds or bool(outcome.dead))


if __name__ == "__main__":
    sys.exit(main())
