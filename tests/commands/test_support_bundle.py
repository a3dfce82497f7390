"""The support bundle: what is in it, what never is, and what happens when a part cannot be read."""

import json
import tarfile
from pathlib import Path

from tests.commands.outcome import printed_json, refused
from tests.conftest import TestDatabase
from tests.support.debian import free_port
from tests.support.leaks import WATCH
from tests.support.project import Project

PLANTED = {
    "master secret": 'p1anted-"master"-\\secret-of-32-characters',
    "database password": "p1anted-database-passw0rd",
    "notification": "p1anted-notification-t0ken",
    "trace header": "p1anted-trace-header",
    "foreign variable": "p1anted-in-a-variable-of-others",
    "unnamed variable": "p1anted-without-a-telling-name",
    "file": "p1anted-in-a-file",
    "dsn": "p1anted-dsn-passw0rd",
    "log": "p1anted-log-passw0rd",
    "cookie": "p1anted-c00kie",
    "jwt": "eyJhbGciOiJub25lIn0.cGxhbnRlZA.cGxhbnRlZC10b2tlbg",
    "api key": "app_p1antedp1antedp1antedp1anted",
    "payload": "p1anted-in-a-payload",
    "job error": "p1anted-in-the-error-of-a-job",
    "private key": "MIIEp1antedprivatekeymaterial",
    "title": "p1anted-in-a-title",
    "actor": "p1anted-username",
}
LOG = f"""\
{{"message":"cannot connect to postgresql://app:{PLANTED["dsn"]}@db/app","password":"{PLANTED["log"]}"}}
GET /x Cookie: session={PLANTED["cookie"]} Authorization: Bearer {PLANTED["jwt"]} {PLANTED["api key"]}
-----BEGIN PRIVATE KEY-----
{PLANTED["private key"]}
-----END PRIVATE KEY-----
said {PLANTED["master secret"]} and {PLANTED["file"]} and {PLANTED["foreign variable"]}
an ordinary line
"""


def content(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert {member.mode for member in members} == {0o600}
        found = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
        return found


def plant(project: Project, database: TestDatabase, folder: Path) -> None:
    (folder / "log").write_text("x" * 300_000 + PLANTED["unnamed variable"] + "\n" + LOG)
    (folder / "secret").write_text(f"{PLANTED['file']}\n")
    project.env |= {
        "AUTH_MASTER_SECRET": PLANTED["master secret"],
        "POSTGRES_PASSWORD": PLANTED["database password"],
        "SENTINEL_NOTIFY_URLS": f"json://user:{PLANTED['notification']}@127.0.0.1:{free_port()}/",
        "TELEMETRY_OTLP_HEADERS_FILE": str(folder / "secret"),
        "TELEMETRY_OTLP_ENDPOINT": f"http://user:{PLANTED['trace header']}@127.0.0.1:{free_port()}",
        "GITHUB_TOKEN": PLANTED["foreign variable"],
        "SOMETHING": PLANTED["unnamed variable"],
        "LOGGER_OUTPUT": str(folder / "log"),
    }
    sample = [
        {
            "password": PLANTED["database password"],
            "stack": f"RuntimeError: postgresql://app:{PLANTED['dsn']}@db/app {PLANTED['jwt']} {PLANTED['file']}",
            "log": [f"master {PLANTED['master secret']}", {"cookie": PLANTED["cookie"]}],
        }
    ]
    database.run(
        "INSERT INTO kernel.errors (fingerprint, kind, type, title, culprit, count, processes, first_seen_at,"
        " last_seen_at, first_release, last_release, samples)"
        " VALUES ('f', 'job', 'RuntimeError', %s, 'c', 1, '{}', now(), now(), '1', '1', %s)",
        f"failed with token={PLANTED['title']}",
        json.dumps(sample),
    )
    job = "(id, queue, task, payload, max_attempts, timeout_s, rank, unique_key, errors)"
    database.run(
        f"INSERT INTO kernel.jobs {job} VALUES (gen_random_uuid(), 'mail', 'mail.send', %s, 3, 60, 0, %s, %s)",
        json.dumps({"body": PLANTED["payload"]}),
        PLANTED["payload"],
        json.dumps([{"error": PLANTED["job error"]}]),
    )
    database.run(
        "INSERT INTO kernel.dead_letters (id, queue, task, payload, reason, attempt, max_attempts, timeout_s,"
        " created_at) VALUES (gen_random_uuid(), 'mail', 'mail.send', %s, %s, 1, 1, 1, now())",
        json.dumps({"body": PLANTED["payload"]}),
        PLANTED["job error"],
    )
    database.run(
        "INSERT INTO auth.actors (id, type, username, username_key) VALUES (gen_random_uuid(), 'user', %s, %s)",
        PLANTED["actor"],
        PLANTED["actor"],
    )


def test_the_bundle_tells_much_and_no_planted_secret(
    on_migrated: Project, migrated: TestDatabase, tmp_path: Path
) -> None:
    plant(on_migrated, migrated, tmp_path)
    path = tmp_path / "bundle.tar.gz"
    done = on_migrated.app("support-bundle", "--output", str(path))
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    found = content(path)
    everything = "\n".join([*found.values(), done.stdout, done.stderr])
    assert [name for name, secret in PLANTED.items() if secret in everything] == []
    assert [name for name, secret in PLANTED.items() if json.dumps(secret)[1:-1] in everything] == []
    assert found.keys() >= {
        *("version.json", "packages.txt", "environment.txt", "settings.json", "doctor.json", "migrations.json"),
        *("tables.json", "queues.json", "schedules.json", "processes.json", "captured_errors.json", "log.txt"),
    }
    assert "failed.json" not in found
    assert "an ordinary line" in found["log.txt"]
    assert len(found["log.txt"]) < 1000
    assert "SOMETHING" in found["environment.txt"].splitlines()
    assert "psycopg==" in found["packages.txt"]
    assert {row["setting"] for row in json.loads(found["settings.json"])["settings"]} >= {"postgres.host"}
    assert "RuntimeError" in found["captured_errors.json"]
    assert json.loads(found["doctor.json"])["counts"]["ok"] > 15
    assert {name for name in found if name in done.stdout} == found.keys()
    assert done.stderr.startswith("Look into it before you send it: tar -xzOf")
    WATCH.end()  # what it watches for was planted on purpose


def test_secrets_of_invalid_settings_are_known(cli: Project, tmp_path: Path) -> None:
    secrets = {name: f"p1anted-{name}-{'x' * 24}" for name in ("file", "yaml", "misspelt", "credential", "foreign")}
    (tmp_path / "file").write_text(secrets["file"])
    (tmp_path / "foreign").write_text(secrets["foreign"])
    (tmp_path / "telemetry.otlp_headers").write_text(f"k=v,x-api-key={secrets['credential']}")
    copy = cli.copy(tmp_path / "installation")
    text = f"auth:\n  master_secret: {secrets['yaml']}\npostgres:\n  old_password: {secrets['misspelt']}\n"
    (copy.root / "settings" / ".secrets.yaml").write_text(text)
    hook = "tgram://123456789:AAp1anted-bot-token/42"
    said = [*secrets.values(), hook.split(":")[2].split("/", maxsplit=1)[0]]
    (tmp_path / "log").write_text("".join(f"a line said {each} here\n" for each in said))
    copy.env |= {
        "POSTGRES_PORT": "many",
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "file"),
        "AUTH_ISSUER": "no URL",
        "TELEMETRY_OTLP_PROTOCOL": "none",
        "VAULT_TOKEN_FILE": str(tmp_path / "foreign"),
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "SENTINEL_NOTIFY_URLS": hook,
        "LOGGER_OUTPUT": str(tmp_path / "log"),
    }
    path = tmp_path / "bundle.tar.gz"
    done = copy.app("support-bundle", "--output", str(path))
    found = content(path)
    assert "postgres.port" in json.loads(found["settings.json"])["error"]
    assert found["log.txt"].count("a line said *") == 6
    assert "p1anted" not in "".join([*found.values(), done.stdout, done.stderr])
    WATCH.end()  # what it watches for was planted on purpose


def test_a_bundle_is_not_overwritten(cli: Project, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    path.write_text("kept")
    assert refused(cli.app("support-bundle", "--output", str(path)), 73).startswith(f"app: {path} exists")
    assert path.read_text() == "kept"


def test_a_bundle_without_database_and_with_invalid_settings_has_the_rest_and_says_what_failed(
    cli: Project, tmp_path: Path
) -> None:
    env = {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(free_port()),
        "POSTGRES_PASSWORD": "p1anted-passw0rd",
        "QUEUE_CONCURRENCY": "0",
        "LOGGER_OUTPUT": str(tmp_path / "missing" / "log"),
    }
    path = tmp_path / "bundle.tar.gz"
    told = printed_json(cli.app("support-bundle", "--output", str(path), "--json", env=env))
    found = content(path)
    assert "queue.concurrency" in json.loads(found["settings.json"])["error"]
    failed = json.loads(found["failed.json"])
    assert told["failed"] == failed
    assert failed["queues.json"] == "NotChecked: the database does not answer"
    assert "No such file" in failed["log.txt"]
    assert {"doctor.json", "packages.txt", "environment.txt"} <= found.keys()
    assert json.loads(found["doctor.json"])["status"] == "fail"
    assert "p1anted" not in "".join(found.values())
