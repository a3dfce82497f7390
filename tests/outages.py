"""Outages as long as wanted: python -m tests.outages --seconds 900 --rate 100 stopped frozen"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.conftest import postgres_binaries
from tests.support.debian import debian_server
from tests.support.outages import OUTAGES, Fleet, endure
from tests.support.project import ROOT, Project
from tests.support.proxy import proxy_to


def main() -> int:
    """Run them one after the other on the same processes; the exit status is 1 when one did not end well."""
    parser = argparse.ArgumentParser(prog="python -m tests.outages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each outage")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second to each API")
    parser.add_argument("names", nargs="*", metavar="OUTAGE", help=f"of {', '.join(OUTAGES)}; all by default")
    wanted = parser.parse_args()
    bad = False
    with debian_server(postgres_binaries()) as server, proxy_to("127.0.0.1", server.port) as proxy:
        project = Project(ROOT, Path(tempfile.mkdtemp(prefix="outages-")))
        try:
            fleet = Fleet.start(project, server, proxy)
            for name in wanted.names or OUTAGES:
                verdict = endure(fleet, OUTAGES[name], wanted.seconds, wanted.rate)
                back = {process: f"{seconds:.2f}" for process, seconds in verdict.back_s.items()}
                print(f"{name}: serves again after {back} s; answers {dict(verdict.answers)}", flush=True)
                print(f"  slowest {verdict.slowest_s}; lost {verdict.lost}; dead {verdict.dead}")
                print(f"  /ready meanwhile {verdict.ready_meanwhile}")
                bad = bad or bool(verdict.lost or verdict.dead) or max(verdict.back_s.values()) > 2
        finally:
            project.end()
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
