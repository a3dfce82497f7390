"""A fleet under load, in which one after the other is killed: python -m tests.fleet --seconds 600"""

import argparse
import asyncio
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.fleet import KINDS, fleet_of, unleash
from tests.support.project import ROOT, Project


def main() -> int:
    """Return 1 when anything does not add up."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--partition", type=float, default=20.0, help="least seconds that the leader is cut off")
    parser.add_argument("--consumers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    wanted = parser.parse_args()
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # it tells of every outage, at length
    random.seed(wanted.seed)
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    print(f"seed {wanted.seed}; logs and journals: {folder}", flush=True)
    (folder / "scratch").mkdir()
    project = Project(ROOT, folder / "scratch")
    try:
        with fleet_of(project, folder, partition_s=wanted.partition, consumers=wanted.consumers) as fleet:
            outcome = asyncio.run(unleash(fleet, _kinds(wanted.kinds, wanted.seconds), settle_s=4))
    finally:
        project.end()
    print(outcome.verdict.table())
    print(f"answers {dict(outcome.answers)}")
    print("seconds to the first success, median and most")
    for kind, found in outcome.back_s.items():
        seconds = {what: sorted(back[what] for back in found) for what in found[0]}
        columns = (f"{what} {statistics.median_low(each):.2f} {each[-1]:.2f}" for what, each in seconds.items())
        print(f"{kind:<12} {', '.join(columns)}")
    print("everything adds up" if outcome.verdict.holds else "something does not add up")
    return int(not outcome.verdict.holds)


def _kinds(kinds: list[str], seconds: float) -> Iterator[str]:
    """Yield each kind in turn, every time in another order, until the time is over and each had its turn."""
    deadline = time.monotonic() + seconds
    while True:
        random.shuffle(kinds)
        yield from kinds
        if time.monotonic() > deadline:
            return


if __name__ == "__main__":
    sys.exit(main())
