"""Why an attempt to connect failed, told by facts: servers speak their own language."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from app.kernel.db.libpq import attempt
from tests.commands.outcome import last_line
from tests.support.project import Project


@contextmanager
def speaking(*answers: bytes) -> Iterator[int]:
    """Run a server that reads what it is sent, answers each message so, and hangs up; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        for answer in answers:
                            connection.recv(10_000)
                            connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def fatal(state: str, text: str) -> bytes:
    """Return an ErrorResponse as a German server words it."""
    fields = b"".join(f"{kind}{value}\0".encode() for kind, value in (("S", "FATAL"), ("C", state), ("M", text)))
    return b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"


@pytest.mark.parametrize(
    ("state", "text", "status"),
    [
        ("57P03", "das Datenbanksystem startet", 69),
        ("57P03", "das Datenbanksystem fährt herunter", 69),
        ("57P03", "das Datenbanksystem ist im Wiederherstellungsmodus", 69),
        ("53300", "tut mir leid, schon zu viele Verbindungen", 69),
        ("53200", "Speicher aufgebraucht", 69),
        ("55000", "Datenbank »app« akzeptiert gegenwärtig keine Verbindungen", 69),
        ("57P01", "Verbindung wird abgebrochen aufgrund von Anweisung des Administrators", 69),
        ("08P01", "server login has been failing, try again later", 69),
        ("28P01", "Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen: too many, starting up", 78),
        ("28000", "kein pg_hba.conf-Eintrag für Host »127.0.0.1«", 78),
        ("3D000", "Datenbank »app« existiert nicht", 78),
        ("42501", "keine Berechtigung für Datenbank »app«", 78),
    ],
)
async def test_what_a_server_refuses_with_is_decided_by_its_sqlstate(state: str, text: str, status: int) -> None:
    with speaking(fatal(state, text)) as port:
        ended = await attempt(f"host=127.0.0.1 port={port} user=app dbname=app sslmode=disable connect_timeout=2")
    assert (ended.sqlstate, 78 if ended.for_good else 69) == (state, status)
    assert text in ended.reason


async def test_a_refusal_of_pgbouncer_names_its_files() -> None:
    with speaking(fatal("08P01", "SASL authentication failed")) as port:
        ended = await attempt(
            f"host=127.0.0.1 port={port} user=app dbname=app sslmode=disable connect_timeout=2", "-c a=1"
        )
    assert "PgBouncer's auth_file and [databases]" in ended.hint


@pytest.mark.parametrize(
    ("answers", "ssl", "for_good", "in_tls"),
    [
        ((b"N",), "require", True, False),
        ((b"S", b""), "require", False, True),  # hangs up in the handshake
        ((b"",), "require", False, False),
        ((b"",), "disable", False, False),
        ((b"R\0\0\0\x08\0\0\0\x03",), "disable", True, False),  # wants a password, and there is none
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "disable", False, False),
    ],
)
async def test_without_a_sqlstate_facts_decide(
    answers: tuple[bytes, ...], ssl: str, for_good: bool, in_tls: bool
) -> None:
    with speaking(*answers) as port:
        ended = await attempt(f"host=127.0.0.1 port={port} user=app dbname=app sslmode={ssl} connect_timeout=2")
    assert (ended.for_good, ended.in_tls, ended.sqlstate) == (for_good, in_tls, "")


def test_a_server_that_speaks_german_is_waited_for(cli: Project) -> None:
    with speaking(fatal("57P03", "das Datenbanksystem startet")) as port:
        cli.env |= {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(port), "POSTGRES_PASSWORD": "pw-german"}
        done = cli.app("run-event-consumer", "--port", "0", env={"POSTGRES_STARTUP_TIMEOUT": "1s"})
    assert done.returncode == 69
    assert "das Datenbanksystem startet" in last_line(done.stderr)
    assert "start it" not in done.stderr
