"""Settings of a process that is to use nothing but a database of its own, whatever is configured."""

import os
from collections.abc import Mapping
from types import MappingProxyType

ALONE: Mapping[str, object] = MappingProxyType(
    {
        "postgres.direct_host": "",
        "postgres.replica_hosts": "",
        "redis.url": "",
        "nats.url": "",
        "nats.credentials": "",
        "queue.events_transport": "postgres",
        "sentinel.notify_urls": "",
        "telemetry.otlp_endpoint": "",
        "backup.target": "",
        "operations.expose": "same",
    }
)


def environment(overrides: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a child process in which settings have other values, by `section.key`."""
    found = dict(environ)
    for key, value in overrides.items():
        variable = key.replace(".", "_").upper()
        found.pop(f"{variable}_FILE", None)
        found[variable] = str(value)
    return found
