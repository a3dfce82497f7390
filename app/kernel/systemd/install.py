"""Installs unit files, and enables them."""

import difflib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from app.kernel.errors import Denied, NotFound, Refusal, Unavailable
from app.kernel.product import NAME
from app.kernel.systemd.units import Installation

State = Literal["new", "changed", "unchanged"]
_SYSTEMCTL_S = 300


class Folder:
    """A folder of units, and the texts that they are to have."""

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        """Raises NotFound if the folder does not exist, Denied if it or a unit is not readable."""
        self._path = path
        self._wanted = wanted
        if not path.is_dir():
            raise NotFound(
                f"there is no folder {path}; create it, or choose another with --dir",
                hint=f"mkdir -p {shlex.quote(str(path))}",
            )
        self._present = {name: self._read(path / name) for name in wanted}

    @cached_property
    def states(self) -> dict[str, State]:
        """Whether each unit is new, changed or unchanged."""
        return {name: self._state(name) for name in self._wanted}

    @property
    def changed(self) -> list[str]:
        """The units that have to be written."""
        return [name for name, state in self.states.items() if state != "unchanged"]

    def difference(self) -> str:
        """Return what differs in the units that exist, as a unified diff."""
        lines: list[str] = []
        for name, state in self.states.items():
            if state == "changed":
                before, after = (self._present[name] or "").splitlines(True), self._wanted[name].splitlines(True)
                lines += difflib.unified_diff(before, after, str(self._path / name), f"{name} (new)")
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)

    def write(self) -> None:
        """Write the units that are new or changed, each one whole or not at all. Raises Denied, Refusal."""
        for name in self.changed:
            try:
                self._write(name)
            except PermissionError:
                raise Denied(f"cannot write to {self._path}: run it as root, or choose a folder with --dir") from None
            except OSError as error:
                raise Refusal(f"cannot write {self._path / name}: {error.strerror}") from None

    def _state(self, name: str) -> State:
        if self._present[name] is None:
            return "new"
        return "unchanged" if self._present[name] == self._wanted[name] else "changed"

    def _read(self, path: Path) -> str | None:
        try:
            return path.read_text(errors="backslashreplace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Denied(f"cannot read {path}: {error.strerror}") from None

    def _write(self, name: str) -> None:
        fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self._path)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(self._wanted[name])
                os.fchmod(fd, 0o644)
            Path(temporary).replace(self._path / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def check_systemd() -> None:
    """Raise Unavailable unless systemd runs this machine (sd_booted(3))."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise Unavailable(
            "systemd does not run on this machine; without --enable, the units are only written",
            hint=f"{NAME} systemd install",
        )


def enabled(names: Sequence[str]) -> None:
    """Enable and start units. Raises Refusal with what systemctl says."""
    for command in (["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", *names]):
        try:
            done = subprocess.run(  # noqa: S603 - the names are ours
                command, capture_output=True, text=True, timeout=_SYSTEMCTL_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise Refusal(f"{' '.join(command[:2])} did not end within {_SYSTEMCTL_S} s") from None
        if done.returncode:
            raise Refusal(f"{' '.join(command[:2])}: {' '.join(done.stderr.split()) or done.returncode}")


def unreachable(installation: Installation) -> Path | None:
    """Return the first folder or file of an installation that other users cannot reach."""
    paths = [Path(installation.command[0]), Path(os.path.realpath(installation.command[0]))]
    if installation.folder is not None:
        paths.append(installation.folder)
    every = dict.fromkeys(each for path in paths for each in (*reversed(path.parents), path))
    return next((path for path in every if path.exists() and not path.stat().st_mode & stat.S_IXOTH), None)
