"""Looks for secrets where none may be: in logs, outputs, metrics, error answers and tables.

Everything that a test sends or is given as a secret is remembered while the test runs: fields of requests and answers,
Authorization headers, the environment and the standard input of processes, what is typed without echo. When the test
ends, and before its databases go, all places that it wrote to are searched for all of them. Not looked for: what is
shorter than 8 characters, because it also stands somewhere by chance; so one-time passwords of six digits.
"""

import base64
import http.client
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

import httpx
import psycopg
from psycopg import sql

SHORTEST = 8
FIELDS = frozenset(
    {"password", "current_password", "new_password", "otp", "recovery_codes", "secret", "client_secret", "key"}
    | {"access_token", "refresh_token", "token"}
)
_IN_ENVIRONMENT = re.compile(r"(_PASSWORD|_SECRET|_TOKEN|_KEY)(_FILE)?$")
_URL = re.compile(r'"url": ?"(http://[^"]+)"')
_DEFAULT = re.compile(r"^ +(master_secret|password): *([^\s\"#]+)", re.MULTILINE)
_QUOTES = str.maketrans("", "", "\\\"'")
_LOCAL = ("/", "127.0.0.1", "localhost")

# What stands where secrets stand and is none.
NO_SECRETS = {
    "the audit trail names an API key by its id, as `key`": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
}


class Server(NamedTuple):
    """A database that processes of the test were told to use."""

    host: str
    port: str
    user: str
    password: str
    dbname: str


@lru_cache(4096)
def forms(secret: str) -> frozenset[str]:
    """Return how a secret may be written down, without quotes and backslashes."""
    plain = {secret, secret.replace("-", "")}
    if secret.count(".") == 2:  # a JWT: header and payload are no secret, the signature is
        plain.add(secret.rpartition(".")[2])
    raw = [secret.encode(errors="surrogatepass")]
    if secret.startswith("rt_"):
        plain.add(secret[3:])
        with suppress(ValueError):
            raw.append(base64.urlsafe_b64decode(secret[3:] + "===")[-32:])
    if secret.startswith("app_"):
        plain.add(secret.rpartition("_")[2][:64])
    if re.fullmatch("[A-Z2-7]{32}", secret):
        raw.append(base64.b32decode(secret))
    plain |= {quote(secret, safe="", errors="replace"), quote_plus(secret, errors="replace"), json.dumps(secret)}
    plain |= {part.hex() for part in raw}
    plain |= {base64.b64encode(part).decode().rstrip("=") for part in raw}
    return frozenset(form for form in (text.translate(_QUOTES) for text in plain) if len(form) >= SHORTEST)


@dataclass
class Watch:
    """The secrets of one test, and where it left traces."""

    secrets: dict[str, str] = field(default_factory=dict)
    databases: set[Server] = field(default_factory=set)
    processes: list[tuple[str, Path]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, Path]] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    _followed: dict[Path, int] = field(default_factory=dict)

    def secret(self, kind: str, value: object) -> None:
        """Remember a secret, or a list of them."""
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str) or len(one) < SHORTEST:
                continue
            if not any(known.fullmatch(one) for known in NO_SECRETS.values()):
                self.secrets.setdefault(one, kind)

    def fields(self, content: Any) -> None:
        """Remember what stands in fields that hold secrets, at any depth."""
        if isinstance(content, list):
            for each in content:
                self.fields(each)
        elif isinstance(content, dict):
            for name, value in content.items():
                if name in FIELDS:
                    self.secret(name, value)
                self.fields(value)

    def request(self, request: httpx.Request) -> None:
        """Remember the secrets of a request."""
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        self.secret(f"{scheme} credentials", credentials.strip())
        if scheme.lower() == "basic":
            with suppress(ValueError):
                self.secret("password", base64.b64decode(credentials).decode().partition(":")[2])
        self.fields(dict(request.url.params))
        with suppress(httpx.RequestNotRead):
            self._body(request.headers, request.content)

    def answer(self, response: httpx.Response) -> None:
        """Remember the secrets of an answer; one that refuses must hold none."""
        self._body(response.headers, response.content)
        if response.status_code >= 400:
            place = f"the answer {response.status_code} to {response.request.method} {response.request.url.path}"
            self.found += self._search(place, response.text)

    def _body(self, headers: httpx.Headers, body: bytes) -> None:
        content_type = headers.get("content-type", "")
        with suppress(ValueError, RecursionError):
            if "json" in content_type:
                self.fields(json.loads(body))
            elif "x-www-form-urlencoded" in content_type:
                self.fields(dict(parse_qsl(body.decode())))

    def environment(self, root: Path, env: Mapping[str, str]) -> None:
        """Remember the secrets of a process's environment and settings, and the database that it is told to use."""
        with suppress(OSError):
            for name, value in _DEFAULT.findall((root / "settings" / f"{env['APP_ENV']}.yaml").read_text()):
                self.secret(name, value)
        for name, value in env.items():
            if value.startswith("secret://"):  # where a secret is
                continue
            if name.endswith("_TLS_KEY"):  # where a key is
                with suppress(OSError, ValueError):
                    lines = Path(value).read_text().splitlines()
                    self.secret(name, [line for line in lines if not line.startswith("-----")])
            elif (match := _IN_ENVIRONMENT.search(name)) is not None:
                with suppress(OSError, ValueError):
                    self.secret(name, Path(value).read_text().strip() if match[2] else value)
            elif name.endswith("_URL"):
                with suppress(ValueError):
                    self.secret(name, urlsplit(value).password)
        if (log := env.get("LOGGER_OUTPUT", "stdout")) != "stdout":
            self.files.append(("the log file", root / log))
        if (hosts := env.get("POSTGRES_HOST", "")).startswith(_LOCAL):
            names = ("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB")
            for host in hosts.split(","):
                name, _, port = host.rpartition(":") if host.count(":") == 1 else (host, "", "")
                port = port or env.get("POSTGRES_PORT", "")
                self.databases.add(Server(name, port, *(env.get(name, "") for name in names)))

    def arguments(self, args: Sequence[str], stdin: str | None) -> None:
        """Remember the password that a command is given."""
        if "--password-stdin" in args and stdin is not None:
            self.secret("password on stdin", stdin.strip())
        if "--password-file" in args:
            with suppress(OSError, ValueError):
                self.secret("password file", Path(args[args.index("--password-file") + 1]).read_text().strip())

    def follow(self, log: Path) -> None:
        """Search what is appended to a file from now on, by whichever test."""
        self._followed.setdefault(log, 0)

    def search_live(self) -> None:
        """Search what goes away with processes and databases."""
        for name, output in self.processes:
            if (text := _metrics(output)) is not None:
                self.found += self._search(f"/metrics of {name}", text)
        for server in self.databases:
            for table, rows in _tables(server):
                self.found += self._search(f"table {table}", rows)

    def search_written(self) -> None:
        """Search what stays when processes end."""
        for place, text in self.texts:
            self.found += self._search(place, text)
        for place, path in self.files:
            if path.is_file():  # not a device, which may have no end
                self.found += self._search(place, path.read_text(errors="replace"))
        for log, seen in self._followed.items():
            with suppress(OSError), log.open("rb") as file:
                file.seek(seen if seen <= log.stat().st_size else 0)
                self.found += self._search(f"the server's {log.name}", file.read().decode(errors="replace"))
                self._followed[log] = file.tell()

    def _search(self, place: str, text: str) -> list[str]:
        unquoted = text.translate(_QUOTES)
        return [
            f"{kind} in {place}"
            for secret, kind in list(self.secrets.items())
            if any(form in unquoted for form in forms(secret))
        ]

    def end(self) -> list[str]:
        """Return the leaks, each with the kind of the secret and the place, and forget the test."""
        found = sorted(set(self.found))
        for kept in (self.secrets, self.databases, self.processes, self.texts, self.files, self.found):
            kept.clear()
        return found


def _metrics(output: Path) -> str | None:
    """Return the metrics of a process that logs where it serves, if it still does."""
    with suppress(OSError, http.client.HTTPException):
        match = _URL.search(output.read_text(errors="replace"))
        if match is not None:
            connection = http.client.HTTPConnection(urlsplit(match[1]).netloc, timeout=2)
            try:
                connection.request("GET", "/metrics")
                return connection.getresponse().read().decode()
            finally:
                connection.close()
    return None


def _tables(server: Server) -> list[tuple[str, str]]:
    """Return every table with its rows as text; nothing when the test took the server away."""
    with (
        suppress(psycopg.OperationalError),
        psycopg.connect(**server._asdict(), connect_timeout=2, autocommit=True) as connection,
    ):
        tables = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
        ).fetchall()
        each = [
            sql.SQL("SELECT {}, coalesce(string_agg(t::text, E'\\n'), '') FROM {} t").format(
                sql.Literal(".".join(name)), sql.Identifier(*name)
            )
            for name in tables
        ]
        return connection.execute(sql.SQL(" UNION ALL ").join(each)).fetchall() if each else []
    return []


WATCH = Watch()


def watched(send: Any) -> Any:
    """Return httpx's `Client.send`, watched."""

    def sent(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        WATCH.request(request)
        response: httpx.Response = send(client, request, **options)
        WATCH.request(response.request)  # with what the authentication added
        if not options.get("stream"):
            WATCH.answer(response)
        return response

    return sent
