"""Runs command lines in forks of one process that has loaded everything, each with streams as a shell would give them.

Starting Python anew for hundreds of them takes minutes. Reads cases as JSON on stdin, writes how they ended on stdout.
"""

import gc
import json
import os
import sys
from typing import Any, NoReturn

from app.cli import main
from tests.support.forks import load_everything

MODES = ("r", "w", "w")


def as_started(encoding: str) -> None:
    """Make the streams as Python makes them when it starts: None for one that is closed."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
            errors = "backslashreplace" if fd == 2 else "strict"
            stream = open(fd, MODES[fd], encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
        except OSError:
            stream = None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def child(case: dict[str, Any], out: int, err: int) -> NoReturn:
    status: Any = 70  # of what main() lets through
    try:
        places = {"nowhere": os.open(os.devnull, os.O_RDWR), "full": os.open("/dev/full", os.O_WRONLY)}
        places |= {"out": out, "err": err}
        for fd, place in enumerate(case["streams"]):
            if place == "closed":
                os.close(fd)
            else:
                os.dup2(places[place], fd)
        os.closerange(3, 64)
        as_started(case["encoding"])
        sys.argv = ["app", *case["args"]]
        main()
    except SystemExit as ended:
        status = ended.code or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # as Python does at its end
    finally:
        os._exit(status)


def run(case: dict[str, Any]) -> dict[str, Any]:
    fds = [os.memfd_create("out"), os.memfd_create("err")]  # no folder may be writable
    if (pid := os.fork()) == 0:
        child(case, *fds)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    texts: list[str] = []
    for fd in fds:
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    return {**case, "status": status, "out": texts[0], "err": texts[1]}


if __name__ == "__main__":
    load_everything()
    gc.collect()
    gc.freeze()
    json.dump([run(case) for case in json.load(sys.stdin)], sys.stdout)
