"""Rotation of the master secret: nothing stops working while processes with the old and the new one run."""

import base64
import secrets
from hashlib import sha256

import httpx
import psycopg
import pytest

from app.modules.auth.domain.second_factor import totp
from app.modules.auth.master_secret import CannotDecrypt, Sealer
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project, Running, eventually

OLD, NEW, WRONG = (sha256(key).hexdigest() for key in (b"old", b"new", b"wrong"))
ROTATING = {"AUTH_MASTER_SECRET": NEW, "AUTH_MASTER_SECRET_PREVIOUS": OLD}


def session(client: httpx.Client, otp: str | None = None) -> httpx.Response:
    username, password = SUPERUSER
    body = {"username": username, "password": password} | ({"otp": otp} if otp else {})
    return client.post("/auth/v1/login", json=body)


def refreshed(client: httpx.Client, token: str) -> str:
    answer = client.post("/auth/v1/refresh", json={"refresh_token": token})
    assert answer.status_code == 200, answer.text
    return answer.json()["refresh_token"]


def me(client: httpx.Client, access: str) -> int:
    return client.get("/auth/v1/me", headers={"Authorization": f"Bearer {access}"}).status_code


def start(project: Project, env: dict[str, str]) -> tuple[Running, httpx.Client]:
    process = project.start("run-auth-http", env=env)
    return process, project.client(process.ready())


def rewrap(project: Project, env: dict[str, str], status: int = 0) -> str:
    done = project.app("auth", "keys", "rewrap", env=env)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def add_factors(database: TestDatabase, count: int) -> None:
    """Add users with second factors under the old secret."""
    sealer = Sealer([OLD], "second factors")
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        sql = """
            INSERT INTO auth.actors (id, type, username, username_key)
            SELECT gen_random_uuid(), 'user', 'user' || i, 'user' || i FROM generate_series(1, %s) i RETURNING id
        """
        ids = [key for (key,) in connection.execute(sql, (count,)).fetchall()]
        with connection.cursor() as cursor:
            rows = [(key, sealer.seal(b"secret", str(key))) for key in ids]
            cursor.executemany("INSERT INTO auth.totp (actor_id, secret, confirmed_at) VALUES (%s, %s, now())", rows)


def test_processes_with_the_old_and_the_new_secret_understand_each_other_until_and_after_the_rewrap(
    project: Project, database: TestDatabase
) -> None:
    old_process, old = start(project, {"AUTH_MASTER_SECRET": OLD})
    project.env["AUTH_MASTER_SECRET"] = OLD
    old = log_in(project, old_process)
    new_process, new = start(project, ROTATING)
    new.headers["Authorization"] = old.headers["Authorization"]
    # a session of one is refreshed by the other, and back
    started = session(old).json()["session"]
    refreshed(old, refreshed(new, started["refresh_token"]))
    assert me(new, started["access_token"]) == me(old, started["access_token"]) == 200
    # a second factor enrolled with the new secret works with the old one
    password = {"current_password": SUPERUSER[1]}
    enrolled = new.post("/auth/v1/me/totp", json=password)
    assert enrolled.status_code == 200, enrolled.text
    step = int(database.all("SELECT extract(epoch FROM now())")[0][0]) // 30
    secret = base64.b32decode(enrolled.json()["secret"])
    confirmed = old.post("/auth/v1/me/totp/confirm", json={"otp": totp(secret, step)})
    assert confirmed.status_code == 200, confirmed.text
    codes = confirmed.json()["recovery_codes"]
    assert session(new).json()["code"] == "OTP_REQUIRED"
    started = session(old, totp(secret, step + 1)).json()["session"]
    token = refreshed(old, refreshed(new, started["refresh_token"]))
    # a wrong previous secret is refused, and changes nothing
    wrong = project.app("run-auth-http", "--port", "0", env=ROTATING | {"AUTH_MASTER_SECRET_PREVIOUS": WRONG})
    assert wrong.returncode == 78, wrong.stderr
    assert [line.startswith("hint: ") for line in wrong.stderr.splitlines()] == [False, True]
    assert "neither AUTH_MASTER_SECRET nor AUTH_MASTER_SECRET_PREVIOUS decrypts the signing keys" in wrong.stderr
    assert old_process.stop() == 0
    # rewrapped in batches, one after the other; killed halfway, it is run again
    add_factors(database, 1100)
    before = _killed_halfway(project, database)
    assert 0 < before < 1100
    said = rewrap(project, ROTATING)
    assert f"re-encrypted 0 signing keys and {1101 - before} second factors" in said
    assert "already" in rewrap(project, ROTATING)
    audited = database.all("SELECT details FROM kernel.audit WHERE action = 'auth.rewrap_keys'")
    assert sum(details.get("second_factors", 0) for (details,) in audited) == 1101
    assert sum(details.get("signing_keys", 0) for (details,) in audited) == 1
    token = refreshed(new, token)
    assert new_process.stop() == 0
    _, new = start(project, ROTATING)
    token = refreshed(new, token)
    assert project.app("auth", "keys", "list", env={"AUTH_MASTER_SECRET": OLD}).returncode == 78
    # the end: without the previous secret
    final_process, final = start(project, {"AUTH_MASTER_SECRET": NEW})
    refreshed(final, refreshed(final, token))
    refreshed(final, session(final, codes[0]).json()["session"]["refresh_token"])
    assert me(final, started["access_token"]) == 200
    assert database.all("SELECT count(*) FROM auth.totp")[0][0] == len(_opened(database, NEW)) == 1101
    rotated = project.app("auth", "keys", "rotate", env={"AUTH_MASTER_SECRET": NEW})
    assert rotated.returncode == 0, rotated.stderr
    assert "everything is encrypted under AUTH_MASTER_SECRET already" in rewrap(project, {"AUTH_MASTER_SECRET": NEW})
    database.run(
        "UPDATE auth.totp SET secret = '\\x00' WHERE actor_id = (SELECT min(actor_id::text)::uuid FROM auth.totp)"
    )
    said = rewrap(project, {"AUTH_MASTER_SECRET": NEW}, 1)
    assert "no master secret decrypts 1 second factors" in said
    assert "hint: " in said
    assert final_process.stop() == 0


def _opened(database: TestDatabase, key: str) -> list[bytes]:
    sealer = Sealer([key], "second factors")
    rows = database.all("SELECT actor_id, secret FROM auth.totp")
    return [sealer.open(bytes(sealed), str(actor)) for actor, sealed in rows]


def _killed_halfway(project: Project, database: TestDatabase) -> int:
    """Kill a rewrap that waits for a lock in its second batch; return how many second factors it had changed."""
    with psycopg.connect(database.conninfo) as holder:
        middle = "SELECT actor_id FROM auth.totp ORDER BY actor_id OFFSET 700 LIMIT 1"
        holder.execute(f"SELECT 1 FROM auth.totp WHERE actor_id = ({middle}) FOR UPDATE")
        running = project.start("auth", "keys", "rewrap", env=ROTATING)
        done = "SELECT sum((details->>'second_factors')::int) FROM kernel.audit WHERE action = 'auth.rewrap_keys'"
        count = eventually(lambda: database.all(done)[0][0])
        running.popen.kill()
        running.wait()
    return int(count)


def test_a_secret_is_opened_by_either_master_secret_and_by_no_other() -> None:
    rotating, old, new, wrong = (Sealer(keys, "x") for keys in ([NEW, OLD], [OLD], [NEW], [WRONG]))
    sealed = old.seal(b"content", "name")
    assert rotating.opened(sealed, "name") == (b"content", 1)
    resealed = rotating.resealed(sealed, "name")
    assert resealed is not None
    assert rotating.resealed(resealed, "name") is None
    assert new.open(resealed, "name") == b"content"
    for sealer, content, name in ((wrong, sealed, "name"), (old, resealed, "name"), (rotating, sealed, "other")):
        with pytest.raises(CannotDecrypt):
            sealer.open(content, name)
    assert secrets.compare_digest(old.open(rotating.seal(b"content", "name", under=1), "name"), b"content")
