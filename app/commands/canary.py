"""Signs in to a process of its own on a database, as a user would."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import IS_INSTALLED, ROOT
from app.kernel.backup.child import command_of
from app.kernel.config.alone import ALONE, environment
from app.kernel.process.launch import PRIVATE
from app.kernel.product import NAME
from app.kernel.running import ask

if TYPE_CHECKING:
    from app.kernel.backup.drill import Found

_APP = (sys.executable, "-m", NAME)
_FOLDER = None if IS_INSTALLED else ROOT
_START_S, _STOP_S, _ASK_S = 60.0, 10.0, 40.0
_POLL_S = 0.05
_WITHHELD = (
    *("BACKUP_", "AWS_"),  # it needs neither the key nor the target
    *("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_"),  # of the unit of systemd
)
_OWN: Mapping[str, object] = {
    **ALONE,
    "auth.issuer": "https://drill.invalid",  # a machine that only takes backups has none
    "postgres.startup_timeout": "10s",  # it answers already, unless the drill was stopped
    "process.drain_delay": "0s",
    "http_server.host": "127.0.0.1",
    "http_server.port": 0,
    "http_server.tls_cert": "",
    "http_server.tls_key": "",
    "http_server.h2c": "false",
    "logger.format": "json",
    "logger.level": "info",
    "logger.output": "stdout",
}


def sign_in_on(where: str, folder: Path) -> "Found":
    """Start run-auth-http on the database with a connection string, create an account there, sign in, ask who it is.

    The settings apply but for what would reach out of it; so the signing keys in the database must fit the master
    secret. `folder` is for the log.
    """
    from psycopg.conninfo import conninfo_to_dict

    from app.kernel.backup.drill import Found

    known = conninfo_to_dict(where)
    database = {
        **{f"postgres.{key}": known[key] for key in ("host", "port", "user")},
        "postgres.db": known["dbname"],
        # a server that asks for no password: the settings do
        "postgres.password": known.get("password", secrets.token_urlsafe(24)),
        "postgres.ssl": known.get("sslmode", "disable"),
        "postgres.ssl_root_cert": known.get("sslrootcert", ""),
    }
    passed = {name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)}
    env = {**environment({**_OWN, **database}, passed), PRIVATE: "yes"}
    username, password = f"drill-{secrets.token_hex(6)}", secrets.token_urlsafe(24)
    create = ("auth", "create-superuser", "--username", username, "--password-stdin", "--no-input")
    with _serving(env, folder / "login.log") as process:
        made = subprocess.run(  # noqa: S603
            [*command_of(_APP), *create],
            input=password,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            cwd=_FOLDER,
            timeout=_START_S,
            check=False,
        )
        if made.returncode:
            return Found(problems=(f"no account can be created: {_last(made.stderr)}",))
        return _sign_in(process, folder / "login.log", {"username": username, "password": password})


@contextmanager
def _serving(env: Mapping[str, str], log: Path) -> "Generator[subprocess.Popen[bytes]]":
    """Run run-auth-http, with its output in a log; it starts meanwhile."""
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as output:
        process = subprocess.Popen(  # noqa: S603
            [*command_of(_APP), "run-auth-http"],
            env=env,
            cwd=_FOLDER,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _sign_in(process: subprocess.Popen[bytes], log: Path, credentials: Mapping[str, str]) -> "Found":
    from app.kernel.backup.drill import Found

    url = _url(process, log)
    if not url:
        return Found(problems=(f"run-auth-http does not start: {_last(log.read_text(errors='replace'))}",))
    status, answer = ask(url, "/auth/v1/login", _ASK_S, credentials) or (0, {})
    if status != 200:
        return Found(problems=(f"POST /auth/v1/login answers {status}: {_detail(answer, log)}",))
    token = answer["session"]["access_token"]
    status, answer = ask(url, "/auth/v1/me", _ASK_S, token=token) or (0, {})
    if status != 200 or answer["actor"]["username"] != credentials["username"]:
        return Found(problems=(f"GET /auth/v1/me answers {status}: {_detail(answer, log)}",))
    return Found("a new account signed in to run-auth-http, and was recognised")


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address once the process serves; empty if it ends, or does not in time."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        for line in log.read_text(errors="replace").splitlines():
            if '"url"' in line and line.endswith("}"):
                return str(json.loads(line)["url"])
        if ended:
            return ""
        time.sleep(_POLL_S)
    return ""


def _detail(answer: Mapping[str, Any], log: Path) -> str:
    return str(answer.get("detail") or answer.get("title") or _last(log.read_text(errors="replace")))


def _last(text: str) -> str:
    """Return the last line of a log or of an error that says something."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("hint:")]
    if not lines:
        return "it wrote nothing"
    last = lines[-1].removeprefix(f"{NAME}: ")
    return str(json.loads(last).get("message", last)) if last.startswith("{") and last.endswith("}") else last
