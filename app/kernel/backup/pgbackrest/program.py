"""Runs pgBackRest; what it refuses becomes an error of one line."""

import os
import pwd
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

from app.kernel.backup import BackupInvalid, BackupRunning, TargetUnavailable, child
from app.kernel.config.settings import Misconfigured
from app.kernel.errors import Conflict, Denied, Refusal

_NAME = "pgbackrest"
_PLACES = (Path("/etc/pgbackrest/pgbackrest.conf"), Path("/etc/pgbackrest.conf"))
# no secrets: pgBackRest has its own in its configuration, and must not get ours
_PASSED = re.compile(r"PATH|HOME|TZ|TMPDIR|SSH_AUTH_SOCK|SSL_CERT_(FILE|DIR)|AWS_ROLE_ARN|AWS_WEB_IDENTITY_TOKEN_FILE")
_ERROR = re.compile(r"ERROR: \[(\d{3})\]: (.*)")
_HINT = re.compile(r"HINT: (.*)")
_WARNING = re.compile(r"^.*WARN: .*(\n\s*HINT: .*)*\n?", re.MULTILINE)
_UNCHECKED = "unable to check pg1:"
_OUTPUT_BYTES, _TOLD_BYTES, _LINE = 64 * 2**20, 20_000, 1000
_LOOK_EVERY_MS = 250
_VERSION_S = 10.0
# by their numbers, as in src/build/error/error.yaml of pgBackRest
_LOCKED, _NOT_EMPTY, _FILE_MISSING, _TOO_NEW = 50, 40, 55, 46
_KINDS: dict[int, type[Exception]] = {
    **dict.fromkeys((26, 29, 75, 95, 99), BackupInvalid),
    **dict.fromkeys((27, 30, 31, 32, 37, 43, 48, 51, 58, 67, 68, 72, 80, 81, 87, 89, 105), Misconfigured),
    **dict.fromkeys(
        (39, 41, 42, 47, 49, 52, 53, 54, 56, 57, 62, 63, 64, 73, 74, 79, 82, 98, 100, 101, 103), TargetUnavailable
    ),
    _LOCKED: BackupRunning,
    _NOT_EMPTY: Conflict,
}


@dataclass(frozen=True, slots=True)
class Program:
    """pgBackRest for a stanza. `config` is its configuration file; empty: where it looks for one."""

    stanza: str
    config: str = ""

    def command(self, *arguments: str) -> list[str]:
        """Return a command line."""
        return [_NAME, *([f"--config={self.config}"] if self.config else []), f"--stanza={self.stanza}", *arguments]

    def restore_command(self, folder: Path, missing: Collection[str] = ()) -> str:
        """Return what a server that recovers on a folder runs: status 1 only for WAL that is not stored.

        pgBackRest ends with up to 125 when it cannot find that out. The server would take that for the end of WAL, as
        it would for a segment that is `missing` among those that are stored.
        """
        words = self.command(f"--pg1-path={folder}", "--log-level-file=off", "--no-archive-async", "archive-get")
        command = shlex.join(words).replace("%", "%%")
        environment = " ".join(shlex.quote(f"{name}={value}") for name, value in _environment().items())
        refused = f"case %f in {'|'.join(sorted(missing))}) exit 255;; esac; " if missing else ""
        run = f'env {environment.replace("%", "%%")} {command} %f "%p"'
        return f"{refused}{run}; status=$?; [ $status -le 1 ] && exit $status; exit 255"

    def account(self) -> tuple[int, int, list[int]] | None:
        """Return user, group and further groups that pgBackRest runs as if this is root; None: as this process.

        That is the owner of its configuration. What root wrote to a repository could be unreadable for the server,
        whose archive_command writes there, too. Raises Denied.
        """
        if os.geteuid() != 0:
            return None
        found = next((path for path in ([Path(self.config)] if self.config else _PLACES) if path.exists()), None)
        owner = found.stat() if found else None
        if owner is None or owner.st_uid == 0:
            where = f"root owns {found}" if found else "it has no configuration file"
            message = f"as root, pgBackRest is run as the owner of its configuration, and {where}"
            raise Denied(f"{message}: chown it, or run this command as the user of pgBackRest", hint="sudo -u postgres")
        groups = [owner.st_gid]
        with suppress(KeyError):
            groups = os.getgrouplist(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
        return owner.st_uid, owner.st_gid, groups

    def run(self, *arguments: str, each: Callable[[str], object] | None = None, limit_s: float | None = None) -> str:
        """Run it; return what it printed, or give its lines to `each`, which may raise: then it is stopped.

        `each` is also called with an empty text, some times per second.

        Raises Misconfigured, TargetUnavailable, BackupRunning, BackupInvalid, Conflict, else Refusal: in one line.
        """
        env = _environment()
        if not shutil.which(_NAME, path=env["PATH"]):
            message = "backup.engine is pgbackrest, and there is no program pgbackrest here: install it"
            raise Misconfigured(message, hint="apt-get install pgbackrest")
        with tempfile.TemporaryFile() as errors:
            command = self.command(*_levels(arguments), *arguments)
            started = child.start(command, env, stdout=PIPE, stderr=errors, account=self.account())
            timer = threading.Timer(limit_s, started.terminate) if limit_s else None
            if timer:
                timer.start()
            try:
                printed = _read(started, each)
                status = started.wait()
            finally:
                if timer:
                    timer.cancel()
                child.stop(started)
            if status == 0:
                return printed
            errors.seek(0)
            told = errors.read(_TOLD_BYTES).decode(errors="replace")
        if status < 0 and timer and not timer.is_alive():
            raise TargetUnavailable(f"pgBackRest did not answer within {limit_s:g} s")
        raise self._refusal(status, told)

    def _refusal(self, status: int, told: str) -> Exception:
        found, said = _ERROR.search(told), _WARNING.sub("", told)
        code, message = (int(found[1]), found[2].strip()) if found else (status, _first_line(said, status))
        if code == _TOO_NEW or "VersionNotSupportedError" in told:
            shown = f"pgBackRest {self.version()} is too old for this version of PostgreSQL: install a newer one"
            return Misconfigured(shown, hint="apt-get install pgbackrest")
        if code == _FILE_MISSING and "stanza-create" in told:
            return self.without_stanza()
        _, _, reason = next((line for line in told.splitlines() if _UNCHECKED in line), "").partition(_UNCHECKED)
        advice = _HINT.search(told[found.end() :] if found else said)
        parts = (message, reason.strip(), advice[1] if advice else "")
        return _KINDS.get(code, Refusal)(f"pgBackRest: {'; '.join(filter(None, parts))}"[:_LINE])

    def without_stanza(self) -> Misconfigured:
        """Return the error of a stanza that the repository does not have."""
        message = f"the repository of pgBackRest has no stanza {self.stanza} (backup.pgbackrest_stanza): create it"
        return Misconfigured(message, hint=shlex.join(self.command("stanza-create")))

    @staticmethod
    def version() -> str:
        """Return the version of pgBackRest; empty if it does not run."""
        with suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run([_NAME, "version"], capture_output=True, text=True, timeout=_VERSION_S, check=True)  # noqa: S603
            return found.stdout.split()[-1]
        return ""


def _levels(arguments: Collection[str]) -> list[str]:
    """Return what keeps the levels of its configuration from mixing its log with what it prints."""
    console = [] if any("--log-level-console=" in each for each in arguments) else ["--log-level-console=off"]
    return ["--log-level-stderr=warn", *console]


def _environment() -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", **passed, "LC_ALL": "C"}


def _read(child: "subprocess.Popen[bytes]", each: Callable[[str], object] | None) -> str:
    assert child.stdout is not None
    if each is not None:
        poll, rest = select.poll(), b""
        poll.register(child.stdout, select.POLLIN)
        while True:
            if not poll.poll(_LOOK_EVERY_MS):
                each("")
                continue
            if not (chunk := os.read(child.stdout.fileno(), _TOLD_BYTES)):
                each(rest.decode(errors="replace"))
                return ""
            *lines, rest = (rest + chunk)[-10 * _TOLD_BYTES :].split(b"\n")
            for line in lines:
                each(line.decode(errors="replace") + "\n")
    content = child.stdout.read(_OUTPUT_BYTES + 1)
    if len(content) > _OUTPUT_BYTES:
        raise Refusal(f"pgBackRest printed more than {_OUTPUT_BYTES} bytes")
    return content.decode(errors="replace")


def _first_line(text: str, status: int) -> str:
    lines = (line.strip() for line in text.splitlines())
    ended = f"it was ended by {signal.Signals(-status).name}" if status < 0 else "it ended without a message"
    return next(filter(None, lines), ended)
