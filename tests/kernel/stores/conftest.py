"""A real OpenBao, and moto for AWS, once for all tests of a worker."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hvac
import pytest

from app.kernel.config import load
from app.kernel.config.stores import Stores
from app.processes import sections
from tests.conftest import program
from tests.support.debian import free_port
from tests.support.project import ROOT, eventually

MASTER = "8d1f5e2b7c90a4e6135f7b9d02c8e4a61f"
PASSWORD = "p4ss-fr0m-the-st0re"


class Vault(NamedTuple):
    """A server of OpenBao."""

    client: Any
    environ: dict[str, str]

    def policy(self, *paths: str) -> str:
        """Return a token that may read some paths."""
        rules = "".join(f'path "{path}" {{ capabilities = ["read"] }}\n' for path in paths)
        self.client.sys.create_or_update_policy("test", rules)
        return self.client.auth.token.create(policies=["test"])["auth"]["client_token"]


@contextmanager
def started(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | (env or {}))
    try:
        yield
    finally:
        server.kill()
        server.wait(10)


@contextmanager
def openbao(folder: Path, *, tls: bool = False) -> Iterator[Vault]:
    """Run OpenBao; with TLS, the certificate of its authority is `vault-ca.pem` in the folder."""
    address = f"127.0.0.1:{free_port()}"
    url = f"https://{address}" if tls else f"http://{address}"
    command = [program("bao"), "server", "-dev", "-dev-root-token-id=root", f"-dev-listen-address={address}"]
    command += ["-dev-tls", f"-dev-tls-cert-dir={folder}"] if tls else []
    with started([*command, "-dev-no-store-token"], folder / "bao.log", {"HOME": str(folder)}):
        client = hvac.Client(url=url, token="root", verify=str(folder / "vault-ca.pem") if tls else True)
        eventually(lambda: _answers(client))
        client.secrets.kv.v2.create_or_update_secret("app/production", {"master": MASTER, "port": 5499, "flag": True})
        client.secrets.kv.v2.create_or_update_secret("db", {"password": PASSWORD, "user": "of-vault"})
        yield Vault(client, {"VAULT_ADDR": url, "VAULT_TOKEN": "root", "HOME": str(folder)})


def _answers(client: hvac.Client) -> bool:
    try:
        return (
            client.sys.is_initialized()
            and not client.sys.is_sealed()
            and "secret/" in client.sys.list_mounted_secrets_engines()
        )
    except (hvac.exceptions.VaultError, OSError):
        return False


@pytest.fixture(scope="session")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """OpenBao in development mode, with two secrets."""
    with openbao(tmp_path_factory.mktemp("bao")) as opened:
        yield opened


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Secrets Manager by moto in this process, with secrets of all kinds."""
    import boto3
    from moto import mock_aws

    with mock_aws():
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        client = boto3.client("secretsmanager")
        client.create_secret(Name="app/db", SecretString=f'{{"password": "{PASSWORD}"}}')
        client.create_secret(Name="plain", SecretString=MASTER)
        client.create_secret(Name="binary", SecretBinary=MASTER.encode())
        client.create_secret(Name="gone", SecretString=MASTER)
        client.delete_secret(SecretId="gone")
        yield


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of AWS, and no Secrets Manager."""
    for name, value in _CREDENTIALS.items():
        monkeypatch.setenv(name, value)


_CREDENTIALS = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def settings(environ: dict[str, str]) -> Any:
    """Return the settings of an environment, with everything fetched."""
    found = load(ROOT, sections(), {"APP_ENV": "test", **environ})
    found.demand(*sections())
    return found


def fetch(environ: dict[str, str], reference: str, limit_s: float = 5) -> str:
    return Stores(environ, limit_s).fetch(reference)
