"""Uploads without end, in a process that a test kills: one is forked for each line of standard input."""

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from app.kernel.backup import Target

PART = 5 * 1024 * 1024
REPLACED = "a/replaced"
HALF = -1  # instead of a seed: an upload that says when its first part is stored, and never ends
_PIECE = 64 * 1024


def content(seed: int, size: int) -> bytes:
    """Return content that tells by itself whether it is whole."""
    head = f"{seed} {size}\n".encode()
    return head + (random.Random(seed).randbytes(1024) * (size // 1024 + 1))[:size]


def is_whole(found: bytes) -> bool:
    seed, size = map(int, found.partition(b"\n")[0].split())
    return found == content(seed, size)


def _pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), _PIECE):
        yield data[at : at + _PIECE]


def _upload(target: Target, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(1000):
        size = rng.choice([rng.randrange(200_000), 3_000_000, PART + rng.randrange(PART)])
        is_new = rng.random() < 0.7
        data = content(seed * 1000 + number, size)
        target.put(f"a/{seed}-{number}" if is_new else REPLACED, _pieces(data), replace=not is_new)


def _endless() -> Iterator[bytes]:
    yield from _pieces(bytes(3 * PART))  # S3 begins an upload in parts when it has two
    print("stored a part", flush=True)
    signal.pause()


def _target(arguments: list[str]) -> Target:
    if arguments[0] == "folder":
        from app.kernel.backup.targets.folder import Folder

        return Folder(Path(arguments[1]))
    from app.kernel.backup.targets import s3
    from tests.kernel.backup.conftest import s3_of
    from tests.support.seaweed import Seaweed

    vars(s3)["_PART_BYTES"] = PART
    _, port, place = arguments
    return s3_of(Seaweed(Path(), int(port), None), target=place)


def main() -> None:
    target = _target(sys.argv[1:])
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            if int(line) == HALF:
                target.put("a/half", _endless())
            _upload(target, int(line))
            os._exit(0)
        print(pid, flush=True)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
