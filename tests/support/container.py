"""A container of an image without a runtime: namespaces, a read-only root, no privileges."""

import json
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.leaks import WATCH
from tests.support.project import Running, eventually

# the process becomes the first of its PID namespace, as in a container
_ENTER = """
set -e
root=$1 user=$2 memory=$3
shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero urandom random; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
mount -t tmpfs -o mode=755 cgroup "$root/sys"
mkdir -p "$root/sys/fs/cgroup/memory"
echo "$memory" | tee "$root/sys/fs/cgroup/memory.max" > "$root/sys/fs/cgroup/memory/memory.limit_in_bytes"
exec chroot "$root" /usr/bin/setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups \
    --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs "$@"
"""


@dataclass
class Image:
    """An image in a store of its own, and what its configuration says."""

    store: Path
    name: str = "app"

    def buildah(self, *arguments: str | Path, seconds: float = 600) -> str:
        """Run a command of buildah; return what it says."""
        places = ["--root", str(self.store / "root"), "--runroot", str(self.store / "run"), "--storage-driver", "vfs"]
        done = subprocess.run(
            ["buildah", *places, *map(str, arguments)], capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def config(self) -> dict[str, Any]:
        """Return the configuration in Docker's format."""
        return json.loads(self.buildah("inspect", "--type", "image", self.name))["Docker"]["config"]


@dataclass
class Container:
    """Processes in the file system of an image, each in namespaces of its own."""

    root: Path
    config: dict[str, Any]
    env: dict[str, str]
    scratch: Path
    memory: int
    """The limit that its control group shows. It is not enforced; `Memory` measures."""
    running: list[Running] = field(default_factory=list)

    def _command(self, command: Sequence[str], env: dict[str, str]) -> list[str]:
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in {**self.env, **env}.items())]
        wanted = ["/usr/bin/env", "-i", f"--chdir={self.config['WorkingDir']}", *variables, *command]
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        return [
            "unshare",
            *namespaces,
            "sh",
            "-c",
            _ENTER,
            "sh",
            str(self.root),
            self.config["User"],
            str(self.memory),
            *wanted,
        ]

    def run(self, *command: str, stdin: str = "", seconds: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, as the image's user."""
        return subprocess.run(
            self._command(command, {}), input=stdin, capture_output=True, text=True, timeout=seconds, check=False
        )

    def app(self, *arguments: str, stdin: str = "") -> str:
        """Run the entry point with arguments; return what it printed. It must succeed."""
        done = self.run(*self.config["Entrypoint"], *arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> Running:
        """Start the entry point with arguments."""
        output, errors = (self.scratch / f"{len(self.running)}-{arguments[0]}.{kind}" for kind in ("out", "err"))
        WATCH.files += [(f"stdout of {arguments[0]}", output), (f"stderr of {arguments[0]}", errors)]
        with output.open("wb") as out, errors.open("wb") as err:
            popen = subprocess.Popen(
                self._command([*self.config["Entrypoint"], *arguments], env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        self.running.append(Running(popen, output, errors))
        return self.running[-1]

    def inside(self, process: Running, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the namespaces of a process, as `docker exec` and a health check do."""
        user, _, group = self.config["User"].partition(":")
        enter = ["nsenter", "-t", str(first(process)), "-m", "-p", "-r", "-w", "-S", user, "-G", group, "--"]
        wanted = [*enter, "/usr/bin/env", "-i", *self.config["Env"], *command]
        return subprocess.run(wanted, capture_output=True, text=True, timeout=180, check=False)

    def end(self) -> None:
        for process in self.running:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait(20)


def first(process: Running) -> int:
    """Return the id, outside, of the first process inside."""

    def found() -> int:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    return eventually(found)


def status(pid: int) -> dict[str, str]:
    """Return what the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


class Memory:
    """Samples what the kernel cannot take back from processes: what a memory limit of their container must hold."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.peaks = dict.fromkeys(pids, 0)
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            for name, pid in self._pids.items():
                with suppress(OSError, KeyError):  # it has ended
                    about = status(pid)
                    held = sum(int(about[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssShmem", "VmPTE"))
                    self.peaks[name] = max(self.peaks[name], held)
