"""A certificate that is renewed while several workers serve it."""

import signal
import ssl
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from cryptography import x509

from tests.kernel.workers.test_workers import ENV, said, value, workers_of
from tests.support.certificates import Authority
from tests.support.project import Project, eventually


def test_every_worker_serves_a_renewed_certificate_and_none_a_broken_one(project: Project, tmp_path: Path) -> None:
    authority = Authority.made_in(tmp_path / "certificates")
    cert, key = authority.sign("first.example.com", days=30)
    env = {"HTTP_SERVER_TLS_CERT": str(cert), "HTTP_SERVER_TLS_KEY": str(key), "OPERATIONS_EXPOSE": "separate"}
    running = project.start("run-platform-http", "--workers", "2", env=ENV | env | {"OPERATIONS_PORT": "0"})
    eventually(lambda: said(running, "2 workers are ready"))
    url, internal = running.url(listener="http"), running.url(listener="operations")
    first = set(workers_of(running))
    context = ssl.create_default_context(cafile=str(authority.file))

    def served() -> set[int]:
        """Return the ends of validity, in Unix time, that 20 handshakes show."""
        address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        found = {ssl.get_server_certificate(address) for _ in range(20)}
        return {round(x509.load_pem_x509_certificate(text.encode()).not_valid_after_utc.timestamp()) for text in found}

    ends = served()
    assert len(ends) == 1
    failed: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(verify=context) as kept:
            while not stop.is_set():
                try:
                    answers = [kept.get(f"{url}/health"), httpx.get(f"{url}/health", verify=context)]
                except httpx.HTTPError as error:
                    failed.append(repr(error))
                else:
                    failed.extend(str(answer.status_code) for answer in answers if answer.status_code != 200)

    client = threading.Thread(target=ask)
    client.start()
    try:
        good = cert.read_bytes()
        cert.write_bytes(good[:-200])
        running.signal(signal.SIGHUP)
        eventually(lambda: said(running, "reload failed: the new worker 1 ended with status 78"))
        assert set(workers_of(running)) == first
        assert served() == ends
        renewed, renewed_key = authority.sign("second.example.com", days=60)
        renewed.replace(cert)
        renewed_key.replace(key)
        running.signal(signal.SIGHUP)
        eventually(lambda: said(running, "reloaded 2 workers"))
    finally:
        stop.set()
        client.join(20)
    assert failed == []
    (end,) = served()
    assert {end} != ends
    assert value(internal, "http_server_certificate_not_after_seconds") == 2 * end  # of both workers
    assert running.stop() == 0
