"""The long form: python -m tests.chaos --kills 500 --restarts 10 --freezes 20 --seed N."""

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.harness import Plan, unleash
from tests.conftest import Holder
from tests.support.project import ROOT, Project


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--freezes", type=int, default=20)
    parser.add_argument("--drains", type=int, default=20)
    parser.add_argument("--consumers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--keep", action="store_true", help="keep logs and journals also when the verdict is good")
    options = vars(parser.parse_args())
    keep = options.pop("keep")
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # it tells of every outage, at length
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    scratch = folder / "scratch"
    scratch.mkdir()
    holder = Holder(folder / "pg")
    project = Project(ROOT, scratch)
    good = False
    try:
        good = asyncio.run(unleash(Plan(**options), project, holder, folder, say)).holds
    finally:
        project.end()
        holder.stop()
        if good and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"logs and journals: {folder}")
    say("everything adds up" if good else "something does not add up")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
