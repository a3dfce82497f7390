"""Settings: Dynaconf layers, validated into frozen dataclasses. Every problem at once; secrets never shown.

Layers, later ones win: `settings/default.yaml`, `settings/{APP_ENV}.yaml`, `settings/.secrets.yaml`, the environment
(`SECTION_KEY`, or `SECTION_KEY_FILE` for the name of a file that holds the value), options of the command.
"""

from app.kernel.config.layers import load
from app.kernel.config.sections import (
    DURATION_FORM,
    KERNEL_SECTIONS,
    Duration,
    HttpServerSettings,
    KeepSettings,
    Key,
    LoggerSettings,
    Names,
    OperationsSettings,
    Port,
    PostgresSettings,
    ProcessSettings,
    QueueSettings,
    Secret,
    Section,
    SentinelSettings,
    TelemetrySettings,
)
from app.kernel.config.settings import (
    ENVIRONMENTS,
    Misconfigured,
    Problem,
    Settings,
    Value,
    current_environment,
    describe,
    environment_name,
)

__all__ = [
    "DURATION_FORM",
    "ENVIRONMENTS",
    "KERNEL_SECTIONS",
    "Duration",
    "HttpServerSettings",
    "KeepSettings",
    "Key",
    "LoggerSettings",
    "Misconfigured",
    "Names",
    "OperationsSettings",
    "Port",
    "PostgresSettings",
    "Problem",
    "ProcessSettings",
    "QueueSettings",
    "Secret",
    "Section",
    "SentinelSettings",
    "Settings",
    "TelemetrySettings",
    "Value",
    "current_environment",
    "describe",
    "environment_name",
    "load",
]
