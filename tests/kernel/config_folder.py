"""A folder of settings to change, and what the schema has."""

import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from app.kernel.config import (
    Misconfigured,
    Settings,
    environment_name,
    load,
    schema,
)
from app.processes import sections
from tests.support.project import ROOT

SCHEMA = {setting.key: setting.description for kind in sections() for setting in schema(kind)}
SECRETS = [v.key for v in load(ROOT, sections(), {"APP_ENV": "test"}).values() if v.secret]
OPTIONAL = ["nats.url", "redis.sentinel_password", "redis.url", "sentinel.notify_urls", "telemetry.otlp_headers"]
OPTIONAL += ["auth.master_secret_previous", "backup.key", "backup.key_previous", "backup.s3_secret_key"]
REQUIRED = [key for key in SECRETS if key not in OPTIONAL]
REAL = {environment_name(key): sha256(key.encode()).hexdigest() for key in SECRETS}
REAL["NATS_URL"] = f"tls://{REAL['NATS_URL']}@nats.example.com"
REAL["REDIS_URL"] = f"redis://:{REAL['REDIS_URL']}@cache.example.com"
HOSTS = {"POSTGRES_HOST": "db.example.com", "AUTH_ISSUER": "https://api.example.com"}
PRODUCTION = {"APP_ENV": "production", **HOSTS, **REAL}


class Folder:
    """A copy of the settings of this project, to change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "settings"
        self.path.mkdir()
        for file in (ROOT / "settings").glob("[!.]*.yaml"):
            shutil.copy(file, self.path)

    def append(self, name: str, text: str) -> None:
        with (self.path / name).open("a") as file:
            file.write(f"\n{text}\n")

    def write(self, name: str, content: str | bytes) -> None:
        (self.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def load(self, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None) -> Settings:
        """Load the settings as a process does that uses all of them."""
        settings = load(self.root, sections(), {"APP_ENV": "test", **(environ or {})}, overrides)
        settings.demand(*sections())
        return settings

    def refusal(self, environ: Mapping[str, str] | None = None) -> Misconfigured:
        with pytest.raises(Misconfigured) as caught:
            self.load(environ)
        return caught.value

    def problems(self, environ: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
        return [(p.key, p.source, p.message) for p in self.refusal(environ).problems]


def source_of(settings: Settings, key: str) -> str:
    return next(value.source for value in settings.values() if value.key == key)
