"""Settings: Dynaconf layers, validated into frozen dataclasses. Reports all problems at once, and no secrets.

Later layers override earlier ones: `settings/default.yaml`, `settings/{APP_ENV}.yaml`, `settings/.secrets.yaml`,
credentials of systemd (secrets only, `$CREDENTIALS_DIRECTORY/section.key`), the environment (`SECTION_KEY`, or
`SECTION_KEY_FILE` with the name of a file that has the value), command options. A value may refer to a store of
secrets, `secret://vault/PATH#KEY`. What only some processes use is checked and fetched by those; see `Settings.demand`.
"""

# ruff: noqa: I001 - it would split the import
from app.kernel.config.backup import BackupSettings as BackupSettings
from app.kernel.config.layers import load as load, load_valid as load_valid
from app.kernel.config.sections import (
    CLOSE_S as CLOSE_S,
    DURATION_FORM as DURATION_FORM,
    KERNEL_SECTIONS as _SECTIONS,
    Duration as Duration,
    HttpServerSettings as HttpServerSettings,
    KeepSettings as KeepSettings,
    Key as Key,
    LoggerSettings as LoggerSettings,
    Names as Names,
    NatsSettings as NatsSettings,
    OptionalSecret as OptionalSecret,
    OperationsSettings as OperationsSettings,
    Port as Port,
    PostgresSettings as PostgresSettings,
    ProcessSettings as ProcessSettings,
    PublicUrl as PublicUrl,
    QueueSettings as QueueSettings,
    RedisSettings as RedisSettings,
    Secret as Secret,
    Section as Section,
    SentinelSettings as SentinelSettings,
    TelemetrySettings as TelemetrySettings,
)
from app.kernel.config.settings import (
    ENVIRONMENTS as ENVIRONMENTS,
    Misconfigured as Misconfigured,
    Problem as Problem,
    Settings as Settings,
    StoresUnavailable as StoresUnavailable,
    UNSAFE as UNSAFE,
    current_environment as current_environment,
    environment_name as environment_name,
    schema as schema,
)

KERNEL_SECTIONS = (*_SECTIONS, BackupSettings)
