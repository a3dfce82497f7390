"""SeaweedFS as S3 storage of the tests."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from tests.conftest import program
from tests.support.nats import free_ports

ACCESS, SECRET = "tests-access-key", "tests-secret-of-the-access-key"
READER, READER_SECRET = "tests-reader-key", "tests-secret-of-the-reader"
_NAMED = ("master", "volume", "filer", "admin", "s3")


@dataclass
class Seaweed:
    """S3 storage with a bucket `backups`, and keys that may do everything, and only read."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    bucket: str = "backups"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """Return a client of S3 that does nothing of its own."""
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            config=config,
        )


@contextmanager
def seaweed_server(folder: Path) -> Iterator[Seaweed]:
    """Run a server, which ends with the process that started it."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(2 * len(_NAMED))
    options = [f"-{name}.port={port}" for name, port in zip(_NAMED, ports, strict=False)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(_NAMED, ports[len(_NAMED) :], strict=True)]
    keys = [(ACCESS, SECRET, ["Admin"]), (READER, READER_SECRET, ["Read", "List"])]
    identities = [
        {"name": access, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}
        for access, secret, actions in keys
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    with (folder / "log").open("ab") as log:
        ends_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [
            *ends_with_us, program("weed"), "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *options, f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false",
            "-admin.ui=false", "-master.telemetry=false", "-bucket=backups",
        ]  # fmt: skip
        (folder / "data").mkdir(exist_ok=True)
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
    server = Seaweed(folder, ports[_NAMED.index("s3")], process)
    try:
        _wait(server)
        yield server
    finally:
        process.kill()
        process.wait(10)


def _wait(server: Seaweed) -> None:
    deadline = time.monotonic() + 30
    while not _has_bucket(server):
        assert server.process.poll() is None, (server.folder / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, "weed did not start"
        time.sleep(0.05)


def _has_bucket(server: Seaweed) -> bool:
    try:
        if httpx.get(server.endpoint, timeout=2).status_code >= 500:
            return False
        return any(one["Name"] == server.bucket for one in server.client().list_buckets()["Buckets"])
    except (OSError, httpx.HTTPError):
        return False
