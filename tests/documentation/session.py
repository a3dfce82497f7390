"""A person at a terminal who types what a document says."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.commands.terminal import Terminal
from tests.documentation.blocks import Block
from tests.support.leaks import WATCH

PASSWORD = "correct horse battery staple"
_ANSWERS = {
    re.compile(r"(?:Password|Again): \Z"): PASSWORD,
    re.compile(r"\[y/N\]: \Z"): "y",
    re.compile(r"=[>#] \Z"): r"\q",  # of psql
}


class Bash(Terminal):
    """A script in bash on a terminal of its own; prompts are answered."""

    def __init__(self, script: str, folder: Path, env: Mapping[str, str]) -> None:
        self._answered = 0
        super().__init__(["bash", "--noprofile", "--norc", "-c", script], folder, env)

    def on_text(self) -> None:
        for prompt, answer in _ANSWERS.items():
            if prompt.search(self.seen, self._answered):
                self._answered = len(self.seen)
                if answer == PASSWORD:
                    WATCH.secret("password typed", answer)
                os.write(self._main, f"{answer}\n".encode())


@contextlib.contextmanager
def bash(script: str, folder: Path, env: Mapping[str, str]) -> Iterator[Bash]:
    """Run a script; it is ended when the context is left."""
    opened = Bash(script, folder, env)
    try:
        yield opened
    finally:
        opened.close()


def run(blocks: Sequence[Block], folder: Path, env: Mapping[str, str], seconds: float) -> str:
    """Run blocks as they stand in one shell, one after the other, up to the first command that fails."""
    parts = ["set -eo pipefail", "trap 'echo \"### failed: $BASH_COMMAND\"' ERR"]
    for block in blocks:
        parts += [f"echo '### {block}'", block.text]
    with bash("\n".join(parts), folder, env) as typed:
        status = typed.wait(seconds)
    assert status == 0, typed.seen[-4000:]
    return typed.seen
