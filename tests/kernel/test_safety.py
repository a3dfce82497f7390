"""Secrets that are none, and who is let in by the settings of a laptop."""

import base64
import random
import string
from hashlib import sha256

import pytest

from app.kernel.config import Misconfigured, load
from app.kernel.config.safety import exposure, why_guessable
from app.processes import sections
from tests.commands.outcome import refused
from tests.support.project import ROOT, Project

BACKUP_KEY = {"BACKUP_KEY": sha256(b"backups").hexdigest()}
OWN = {"AUTH_MASTER_SECRET": sha256(b"own").hexdigest(), **BACKUP_KEY}
PRODUCTION = {
    "APP_ENV": "production",
    "POSTGRES_HOST": "db.example.com",
    "POSTGRES_PASSWORD": "of-the-role",
    "AUTH_ISSUER": "https://api.example.com",
}


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(Misconfigured) as caught:
        load(ROOT, sections(), BACKUP_KEY | environ).demand(*sections())
    [line] = str(caught.value).splitlines()
    return line


def repeated(block: str) -> str:
    return (block * 40)[:40]


GUESSABLE = [
    *(repeated(block) for block in ("ab", "abc", "Ab1!", "abcd1234", "deadbeef", "p@ssW0rd!", "a b", "\u00fc\u00df")),
    *(repeated(block) for block in ("password", "changeme", "secret", "hello world ", "master-secret-")),
    *(repeated(order)[start:] for start in (0, 7) for order in (string.digits, string.digits[::-1])),
    *(f"{string.ascii_lowercase}{string.digits}"[::step] * 3 for step in (1, -1, 2)),
    "qwertyuiopasdfghjklzxcvbnmqwertyuiop",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "q1w2e3r4t5y6u7i8o9p0a1s2d3f4g5h6j7k8",
    "a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6q7r8",
    "aabbccddeeffgghhiijjkkllmmnnooppqqrr",
    "00112233445566778899aabbccddeeff",
    bytes(range(32)).hex(),
    base64.b64encode(bytes(32)).decode(),
    "please-change-this-secret-in-production-1",
    "MySuperSecretMasterKeyForProduction2026!",
    "AUTH_MASTER_SECRET=change-me-in-production",
    "secret-secret2-secret3-secret4-secret5",
    "a-string-secret-at-least-256-bits-long",
    "!QAZ@WSX#EDC$RFV%TGB^YHN&UJM*IK<(OL>",
    base64.b64encode(bytes(range(32))).decode(),
    base64.urlsafe_b64encode(b"password" * 4).decode().rstrip("="),
    bytes(range(255, 223, -1)).hex(),
    base64.b32encode(b"please-change-me").decode(),
    "${AUTH_MASTER_SECRET:?set it before you start}",
    "$(openssl rand -base64 32 | tee master-secret)",
    "<the output of openssl rand, 32 bytes or more>",
]
LOCAL = "local-only-master-secret-that-everybody-knows"
SPELLINGS = [
    LOCAL.replace("-", "_"),
    f'"{LOCAL}"',
    LOCAL + LOCAL,
    LOCAL[6:],
    LOCAL[::-1],
    base64.b64encode(LOCAL.encode()).decode(),
    base64.b64encode(f"{LOCAL}\n".encode()).decode(),
    base64.urlsafe_b64encode(LOCAL.upper().encode()).decode().rstrip("="),
    base64.b32encode(LOCAL.encode()).decode(),
    LOCAL.encode().hex().upper(),
    LOCAL.translate(str.maketrans("aeost", "@305$")),
    LOCAL.translate(str.maketrans("aeo", "\u0430\u0435\u043e")),
    "\u200b".join(LOCAL),
    "".join(chr(ord(character) + 0xFEE0) for character in LOCAL),
]


@pytest.mark.parametrize("secret", GUESSABLE)
def test_a_master_secret_that_follows_a_pattern_is_refused_outside_local(secret: str) -> None:
    line = refusal({**PRODUCTION, "AUTH_MASTER_SECRET": secret})
    assert "auth.master_secret (AUTH_MASTER_SECRET): " in line
    assert "openssl rand" in line
    assert secret not in line


@pytest.mark.parametrize("secret", SPELLINGS)
def test_the_published_secret_is_known_in_any_spelling(secret: str) -> None:
    assert "a published default" in refusal({**PRODUCTION, "AUTH_MASTER_SECRET": secret})
    assert "a published default" in refusal({"HTTP_SERVER_HOST": "0.0.0.0", "AUTH_MASTER_SECRET": secret})


def test_a_random_master_secret_is_never_called_guessable() -> None:
    chosen = random.Random(20261127)
    alphabets = (string.ascii_letters + string.digits, string.ascii_lowercase, string.printable[:94], string.hexdigits)
    for _ in range(300):
        key = chosen.randbytes(32)
        made = [
            key.hex(),
            key.hex().upper(),
            key[:16].hex(),
            base64.b64encode(key).decode(),
            base64.b85encode(key).decode(),
        ]
        made += [base64.urlsafe_b64encode(key[:24]).decode(), base64.b32encode(key[:20]).decode()]
        made += ["".join(chosen.choices(alphabet, k=32)) for alphabet in alphabets]
        assert [secret for secret in made if why_guessable(secret, ["local-only-that-everybody-knows"], key=True)] == []


# Who is let in by the settings of a laptop

REMOTE = [
    "db.example.com",
    "10.0.0.5",
    "192.168.1.1",
    "::ffff:10.0.0.5",
    "2001:db8::1",
    "fe80::1%eth0",
    "db",
    "localhost.example.com",
]
REMOTE_LISTS = ["localhost,db.example.com", "/run/postgresql,10.0.0.5"]
HERE = [
    "localhost",
    "LOCALHOST",
    "localhost.",
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "db.localhost",
]
SOCKETS = ["", "/run/postgresql", "@socket", "localhost,127.0.0.1"]
EVERYWHERE = ["0.0.0.0", "::", "192.168.1.1", "::ffff:0.0.0.0", "app.example.com"]
EXPOSING = [
    *(("POSTGRES_HOST", host) for host in (*REMOTE, *REMOTE_LISTS)),
    *((name, host) for name in ("HTTP_SERVER_HOST", "OPERATIONS_HOST") for host in EVERYWHERE),
]
CLOSED = [
    *(("POSTGRES_HOST", host) for host in (*HERE, *SOCKETS)),
    *((name, host) for name in ("HTTP_SERVER_HOST", "OPERATIONS_HOST") for host in HERE),
]


@pytest.mark.parametrize(("name", "host"), EXPOSING)
def test_an_address_that_others_reach_is_told_from_one_that_they_do_not(name: str, host: str) -> None:
    assert host.rpartition(",")[2] in exposure({name.removesuffix("_HOST").lower(): {"host": host}})


@pytest.mark.parametrize(("name", "host"), CLOSED)
def test_an_address_that_only_this_machine_reaches_exposes_nothing(name: str, host: str) -> None:
    assert exposure({name.removesuffix("_HOST").lower(): {"host": host}}) == ""


def test_the_server_behind_a_pooler_counts_too() -> None:
    assert exposure({"postgres": {"host": "127.0.0.1", "direct_host": "localhost"}}) == ""
    assert exposure({"postgres": {"host": "localhost:1,127.0.0.1:5433,[::1]:5434,/run/db"}}) == ""
    assert "10.0.0.9:5433" in exposure({"postgres": {"host": "127.0.0.1,10.0.0.9:5433"}})
    assert "db.example.com" in exposure({"postgres": {"host": "127.0.0.1", "direct_host": "db.example.com"}})


@pytest.mark.parametrize("environment", [None, "local", "test"])
@pytest.mark.parametrize(("name", "host"), [EXPOSING[0], *EXPOSING[-2:]])
def test_whoever_others_can_reach_needs_a_secret_of_its_own(environment: str | None, name: str, host: str) -> None:
    environ = {name: host} if environment is None else {"APP_ENV": environment, name: host}
    assert "set AUTH_MASTER_SECRET" in refusal(environ)
    for secret in ("LOCAL-only-master-secret-that-everybody-knows ", "y" * 40):
        refusal({**environ, "AUTH_MASTER_SECRET": secret})
    assert load(ROOT, sections(), environ | OWN).environment == (environment or "local")


@pytest.mark.parametrize("name", ["POSTGRES_HOST", "HTTP_SERVER_HOST", "OPERATIONS_HOST"])
@pytest.mark.parametrize("host", [" ", "\t", " 127.0.0.1", "localhost\n", "local host", "\u00a0"])
def test_a_host_that_is_blank_or_has_white_space_is_refused(name: str, host: str) -> None:
    assert "without white space" in refusal({"APP_ENV": "test", name: host} | OWN)


@pytest.mark.parametrize("hosts", ["db1,", "db1,,db2", "db1, db2", "db1:0", ",".join("abcdefghi")])
def test_a_list_of_hosts_that_is_malformed_is_refused(hosts: str) -> None:
    assert "postgres.host (POSTGRES_HOST): expected" in refusal({"APP_ENV": "test", "POSTGRES_HOST": hosts} | OWN)


def test_an_option_of_the_command_exposes_too(cli: Project) -> None:
    line = refused(cli.app("run-auth-http", "--host", "0.0.0.0", "--port", "0", env={"APP_ENV": "local"}), 78)
    assert "0.0.0.0 is not a loopback address" in line
    assert "AUTH_MASTER_SECRET" in line


def test_a_blank_app_env_with_a_real_server_is_refused_in_one_line(cli: Project) -> None:
    for name in ("", " "):
        line = refused(cli.app("run-auth-http", env={"APP_ENV": name, "POSTGRES_HOST": "db.example.com"}), 78)
        assert line.startswith("app: APP_ENV is ")
