"""The `app` command as its users run it: real processes, in the project or in a copy of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.support.activation import Activation
from tests.support.forks import Forked, fork, forked, may_fork
from tests.support.leaks import WATCH

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
PATIENCE_S = 60.0
"""How long tests wait for what must happen: only a failure takes it, and several suites may share a machine."""


def eventually(probe: Callable[[], T], seconds: float = PATIENCE_S, every: float = 0.05) -> T:
    """Return the first true value of a probe; fail when there is none in time. Its AssertionErrors count as false."""
    deadline = time.monotonic() + seconds
    while True:
        last: object = None
        try:
            value = probe()
        except AssertionError as error:
            last = error
        else:
            if value:
                return value
            last = value
        assert time.monotonic() < deadline, f"did not happen within {seconds} s; last: {last!r}"
        time.sleep(every)


@dataclass
class Running:
    """A process that was started."""

    popen: subprocess.Popen[bytes] | Forked
    output: Path
    errors: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def logs(self) -> list[dict[str, Any]]:
        """Return the JSON log lines so far."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def messages(self) -> list[str]:
        return [line["message"] for line in self.logs()]

    def url(self, seconds: float = PATIENCE_S, *, listener: str = "") -> str:
        """Wait for the address that it serves on; with two of them, of the `http` or the `operations` listener."""

        def served() -> str:
            assert self.popen.poll() is None, f"exited with {self.popen.returncode}: {self.said()}"
            found = [line["url"] for line in self.logs() if "url" in line and listener in ("", line["listener"])]
            assert found, f"serves nothing yet: {self.said()}"
            return found[0]

        return eventually(served, seconds)

    def ready(self, seconds: float = PATIENCE_S) -> str:
        """Wait until /ready is 200; return the address."""
        url = self.url(seconds)
        eventually(lambda: _get(f"{url}/ready") == 200, seconds)
        return url

    def said(self) -> str:
        return self.output.read_text()[-4000:] + self.errors.read_text()[-4000:]

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Wait for the end; return the exit status."""
        return self.popen.wait(seconds)

    def stop(self, seconds: float = PATIENCE_S) -> int:
        self.signal(signal.SIGTERM)
        return self.wait(seconds)


def _get(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.HTTPError:
        return 0


@dataclass
class Project:
    """The project, or a copy of it that a test may change."""

    root: Path
    scratch: Path
    env: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    running: list[Running] = field(default_factory=list)
    clients: list[httpx.Client] = field(default_factory=list)

    def environment(self, env: dict[str, str] | None = None) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TZ") if key in os.environ}
        made = {**kept, "APP_ENV": "test", "PYTHONDONTWRITEBYTECODE": "1", **self.env, **(env or {})}
        WATCH.environment(self.root, made)
        return made

    def app(
        self, *args: str, env: dict[str, str] | None = None, stdin: str | None = None, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        WATCH.arguments(args, stdin)
        environment = self.environment(env)
        if may_fork(self.root, self.python, environment, args):
            done = forked(args, environment, stdin or "", seconds)
        else:
            done = subprocess.run(
                [self.python, "-m", "app", *args],
                cwd=self.root,
                env=environment,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        name = " ".join(args[:2])
        WATCH.texts += [(f"stdout of app {name}", done.stdout), (f"stderr of app {name}", done.stderr)]
        return done

    def start(self, *args: str, env: dict[str, str] | None = None, activation: Activation | None = None) -> Running:
        """Start a process; `run-*` gets a free port, or the sockets of an activation."""
        if args[0].startswith("run-") and "--port" not in args:
            args = (*args, "--port", "0")
        number = len(self.running)
        output, errors = self.scratch / f"{number}-{args[0]}.out", self.scratch / f"{number}-{args[0]}.err"
        environment = self.environment({**(env or {}), **(activation.env if activation else {})})
        with output.open("ab") as out, errors.open("ab") as err, Path(os.devnull).open() as nothing:
            command = [self.python, "-m", "app", *args]
            popen: subprocess.Popen[bytes] | Forked
            if activation is None and may_fork(self.root, self.python, environment, args):
                popen = fork(args, environment, [nothing.fileno(), out.fileno(), err.fileno()])
            else:
                popen = subprocess.Popen(
                    activation.command(command) if activation else command,
                    cwd=self.root,
                    env=environment,
                    stdin=nothing,
                    stdout=out,
                    stderr=err,
                    pass_fds=activation.fds if activation else (),
                )
        WATCH.files += [(f"stdout of app {args[0]}", output), (f"stderr of app {args[0]}", errors)]
        WATCH.processes.append((args[0], output))
        started = Running(popen, output, errors)
        self.running.append(started)
        return started

    def copy(self, to: Path) -> "Project":
        """Return a copy that a test may change."""
        for name in ("app", "migrations", "settings"):
            shutil.copytree(self.root / name, to / name)
        return Project(to, self.scratch, dict(self.env), self.python, self.running, self.clients)

    def client(self, url: str) -> httpx.Client:
        """Return a client, closed when the test ends."""
        self.clients.append(httpx.Client(base_url=url, timeout=10))
        return self.clients[-1]

    def end(self) -> None:
        for client in self.clients:
            client.close()
        for process in self.running:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)
                process.popen.kill()
            process.popen.wait(10)
        said = "".join(process.output.read_text() for process in self.running)
        assert "which it does not declare" not in said, "an action raised a refusal that is not among its `raises`"


def clone(to: Path, *, compiled: bool = False) -> None:
    """Copy everything that is in the repository, as it is now, to a new folder.

    `compiled`: also what Python compiled of `app`, which the processes of tests do not store.
    """
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for file in filter(os.path.isfile, (ROOT / name for name in files.split("\0") if name)):
        target = to / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)  # compiled code is valid for a time of change
    for folder in (ROOT / "app").rglob("__pycache__") if compiled else ():
        shutil.copytree(folder, to / folder.relative_to(ROOT))


def add_feature(project: Project, where: str, source: str, provided: str = "") -> None:
    """Add a feature `file:Class` to platform in a copy of the project; `provided` is `file:Type, provider`."""
    platform = project.root / "app/modules/platform"
    (platform / f"{where.partition(':')[0]}.py").write_text(source)
    _insert(platform / "__init__.py", "    features=(\n", f'        Feature("{where}"),\n')
    if provided:
        file, _, names = provided.partition(":")
        kind, _, provider = names.partition(", ")
        providers = platform / "providers.py"
        _insert(providers, "PROVIDERS: Providers = {", f"{kind}: {provider}, ")
        _insert(
            providers, "from app.kernel.process import Process\n", f"from app.modules.platform.{file} import {names}\n"
        )


def _insert(file: Path, after: str, text: str) -> None:
    before = file.read_text()
    assert before.count(after) == 1, f"{file}: {after!r}"
    file.write_text(before.replace(after, after + text))
