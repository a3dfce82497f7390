"""The types of settings, and the sections of the kernel. Each section is a frozen dataclass under one name."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from app.kernel.addresses import endpoints, nats_servers, network
from app.kernel.redis.address import address as redis_address
from app.kernel.text import misnamed

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[match[2] or "s"]
    if isinstance(value, str | bool):
        raise ValueError("expected a duration such as 500ms, 30s, 5m, 12h or 7d")
    return value


def duration_text(seconds: float) -> str:
    """Return a duration in the largest unit without a fraction: `400d`, `90s`, `0.5s`."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.15g}{unit}"
    return f"{seconds * 1000:.15g}ms" if 0 < seconds < _SECONDS["ms"] * 100 else f"{seconds:.15g}s"


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _queue_names(value: tuple[str, ...]) -> tuple[str, ...]:
    if any(misnamed("queue", name) for name in value):
        raise ValueError("expected names of queues, of 1 to 128 printable characters, separated by commas")
    return value


def _stream_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise ValueError("expected 1 to 64 letters, digits, hyphens and underscores")
    return value


def _host(value: str) -> str:
    if value != value.strip() or (len(value.split()) > 1 and not value.startswith("/")):
        raise ValueError("expected a name or an address, without white space, or a folder")
    if not value.startswith("/") and ("://" in value or "@" in value[1:]):
        raise ValueError(
            "expected a name, an address or a folder, not a URL: user, password and port have their own keys"
        )
    return value


def _public_url(value: str) -> str:
    if value and not re.fullmatch(r"https?://[^/?#@\s]+", value):
        raise ValueError("expected http:// or https://, and a name or an address, without a path")
    return value


def _hosts(value: str) -> str:
    """Check one or more hosts of a server, separated by commas, some with a port."""
    hosts = value.split(",") if value else []
    if len(hosts) > _MOST_HOSTS or not all(hosts):
        raise ValueError(f"expected up to {_MOST_HOSTS} names or addresses, separated by commas, without white space")
    for host in hosts:
        endpoints(_host(host), 1)
    return value


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        try:
            network(text)
        except ValueError:
            raise ValueError("expected addresses or CIDR such as 10.0.0.0/8, separated by commas") from None
    return value


def _nats_url(value: SecretStr) -> SecretStr:
    if (text := value.get_secret_value()) != LATER:
        nats_servers(text)
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    if (text := value.get_secret_value()) and text != LATER:
        redis_address(text)
    return value


_MOST_HOSTS = 8
LATER = "a value that is replaced before it is used"
"""In place of a secret that is fetched when it is used."""
_MS, _HOUR, _DAY = 0.001, 3600.0, 86400.0
CLOSE_S = 5.0
"""For closing resources, and for a service that was cancelled."""
DURATION_FORM = BeforeValidator(_seconds)
Duration = Annotated[float, DURATION_FORM, Field(ge=0, le=3650 * _DAY, allow_inf_nan=False)]
"""Seconds, written as `500ms`, `30s`, `5m`, `12h`, `7d` or a number of seconds. Ten years at most, so that adding it to
the current time does not overflow in Python or PostgreSQL."""
_Timeout = Annotated[Duration, Field(ge=_MS, le=_DAY)]
_Retention = Annotated[float, DURATION_FORM, Field(ge=_HOUR, le=36500 * _DAY, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Separated by commas."""
Port = Annotated[int, Field(ge=0, le=65535)]
Secret = SecretStr
MAY_BE_EMPTY = "may be empty"
OptionalSecret = Annotated[SecretStr, MAY_BE_EMPTY]
"""The secret of an optional feature; a plain `Secret` is required outside local and test."""
IS_PUBLIC = "is public"
PublicUrl = Annotated[str, Field(min_length=1), IS_PUBLIC]
"""The address of this deployment for others; outside local and test no loopback address."""
IS_RENEWABLE = "is renewable"
"""A secret that is read again on SIGHUP: its users ask for the value each time."""
IS_KEY = "is a key"
Key = Annotated[SecretStr, Field(min_length=32), IS_KEY]
"""A secret that keys are derived from: outside local and test it must look random."""


class Section(Protocol):
    """A frozen dataclass of settings under one name."""

    section: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """Shutdown and supervision of a process."""

    section: ClassVar[str] = "process"
    drain_delay: Annotated[Duration, Field(le=_DAY, description="between /ready turning 503 and the listener closing")]
    grace: Annotated[Duration, Field(le=30 * _DAY, description="for requests and jobs to finish after the drain delay")]

    worker_timeout: Annotated[
        Duration, Field(ge=2, le=_DAY, description="a worker (--workers) that is blocked for this long is replaced")
    ]

    @property
    def stop_s(self) -> float:
        """The longest time from the request to stop until the end; then a process ends itself."""
        return self.drain_delay + self.grace + 3 * CLOSE_S


@dataclass(frozen=True, slots=True)
class HttpServerSettings:
    """The HTTP server of the API processes."""

    section: ClassVar[str] = "http_server"
    host: Annotated[str, AfterValidator(_host), Field(min_length=1, description="address to listen on")]
    port: Annotated[Port, Field(description="port to listen on; 0 for a free one")]
    debug: Annotated[bool, Field(description="show the exception in 500 responses; local and test only")]
    handle_timeout: Annotated[_Timeout, Field(description="a request that takes longer is answered 504")]
    max_body_bytes: Annotated[int, Field(ge=1024, le=1024**3, description="a larger request body is answered 413")]
    max_connections: Annotated[
        int, Field(ge=10, le=100_000, description="maximum number of connections; half of them from one address")
    ]
    trusted_proxies: Annotated[
        Names,
        AfterValidator(_networks),
        Field(description="proxies whose X-Forwarded-For is trusted: addresses or CIDR"),
    ]
    read_timeout: Annotated[
        _Timeout, Field(description="a request header that takes longer is answered 408; also for a TLS handshake")
    ]
    body_timeout: Annotated[_Timeout, Field(description="a request body that takes longer is answered 408")]
    keep_alive_timeout: Annotated[
        _Timeout, Field(description="a connection without a request is closed; longer than the idle time of the proxy")
    ]
    h2c: Annotated[bool, Field(description="accept HTTP/2 in clear text with prior knowledge")]
    tls_cert: Annotated[str, Field(description="file with the certificate and its chain (PEM); empty: no TLS")]
    tls_key: Annotated[str, Field(description="file with the private key of the certificate (PEM)")]
    public_url: Annotated[
        str,
        AfterValidator(_public_url),
        Field(description="public address of the console, such as https://api.example.com; empty: host and port"),
    ] = ""

    @property
    def address(self) -> str:
        """The address of the console, without a path."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared
        shown = f"[{host}]" if ":" in host else host
        return self.public_url or f"{'https' if self.tls_cert else 'http'}://{shown}:{self.port}"


@dataclass(frozen=True, slots=True)
class OperationsSettings:
    """The operations endpoint: /health, /ready with details, /metrics, and the documentation of an API."""

    section: ClassVar[str] = "operations"
    host: Annotated[str, AfterValidator(_host), Field(min_length=1, description="address to listen on")]
    port: Annotated[Port, Field(description="port to listen on; 0 for a free one")]
    expose: Annotated[
        Literal["same", "separate"],
        Field(description="where an API has it: on http_server.port too, or on operations.port only"),
    ]


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """The database. Without a host, the embedded server is used (local and test only)."""

    section: ClassVar[str] = "postgres"
    host: Annotated[
        str,
        AfterValidator(_hosts),
        Field(
            description="host name, address or socket folder, or several with commas (db1,db2:5433), of which the one"
            " that accepts writes is used; empty: the embedded server"
        ),
    ]
    port: Annotated[Port, Field(ge=1, description="port of the hosts that are written without one")]
    direct_host: Annotated[
        str,
        AfterValidator(_hosts),
        Field(description="the server itself, written as host, when that is a pooler such as PgBouncer; empty: host"),
    ]
    direct_port: Annotated[Port, Field(description="port of direct_host; 0: the same as port")]
    replica_hosts: Annotated[
        str,
        AfterValidator(_hosts),
        Field(description="streaming replicas for reads that may lag, written as host; empty: none"),
    ]
    replica_max_lag: Annotated[
        Duration, Field(ge=3, le=3600, description="a replica that lags by more is not used, until it has caught up")
    ]
    user: Annotated[str, Field(min_length=1, description="role to connect as")]
    password: Annotated[Secret, IS_RENEWABLE, Field(description="password of the role")]
    db: Annotated[str, Field(min_length=1, description="name of the database")]
    ssl: Annotated[Literal["disable", "require", "verify-full"], Field(description="transport security")]
    ssl_root_cert: Annotated[
        str, Field(description="file of trusted certificates for verify-full; system: those of the system")
    ]
    pool_size: Annotated[int, Field(ge=1, le=1000, description="maximum number of connections of one process")]
    pool_timeout: Annotated[_Timeout, Field(description="longest wait for a connection")]
    pool_queue: Annotated[
        int, Field(ge=1, le=100_000, description="maximum number of requests that wait for a connection")
    ]
    statement_timeout: Annotated[_Timeout, Field(description="longest statement")]
    lock_timeout: Annotated[_Timeout, Field(description="longest wait for a lock")]
    startup_timeout: Annotated[Duration, Field(le=_DAY, description="how long a starting process waits for the server")]
    migrate: Annotated[bool, Field(description="apply pending migrations when starting; otherwise refuse to start")]


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Redis or Valkey, which processes share for limits and caches. Without a URL they do without."""

    section: ClassVar[str] = "redis"
    url: Annotated[
        OptionalSecret,
        AfterValidator(_redis_url),
        Field(description="redis://, rediss:// (TLS), redis+sentinel://HOST,HOST/SERVICE or redis+cluster://HOST,HOST"),
    ]
    sentinel_user: Annotated[str, Field(description="user at the Sentinels, whose login is not that of the primary")]
    sentinel_password: Annotated[OptionalSecret, Field(description="password of the Sentinels; empty: none")]
    ssl_root_cert: Annotated[
        str, Field(min_length=1, description="file of trusted certificates for TLS; system: those of the system")
    ]
    timeout: Annotated[
        Duration, Field(ge=_MS, le=10, description="longest wait for an answer; then processes continue without Redis")
    ]


@dataclass(frozen=True, slots=True)
class LoggerSettings:
    """Logs of the long-running processes."""

    section: ClassVar[str] = "logger"
    level: Annotated[Literal["debug", "info", "warn", "error"], Field(description="least severe level written")]
    format: Annotated[Literal["json", "console"], Field(description="JSON lines, or text for people")]
    output: Annotated[str, Field(min_length=1, description="stdout, or the path of a file")]


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Jobs and schedules."""

    section: ClassVar[str] = "queue"
    names: Annotated[
        Names, AfterValidator(_queue_names), Field(min_length=1, description="queues that a consumer works on")
    ]
    concurrency: Annotated[
        int, Field(ge=1, le=10_000, description="maximum number of jobs that one consumer runs at once")
    ]
    poll_interval: Annotated[
        Duration, Field(ge=_MS, le=_HOUR, description="maximum delay until a due job or tick is noticed")
    ]
    lease: Annotated[
        Duration, Field(ge=0.1, le=_DAY, description="a job is retried if its lease is not renewed for this long")
    ]
    events_transport: Annotated[
        Literal["postgres", "nats"], Field(description="how events reach subscribers; nats needs nats.url")
    ]


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """NATS JetStream. With an address, consumers relay events to it and receive them from it."""

    section: ClassVar[str] = "nats"
    url: Annotated[
        OptionalSecret,
        AfterValidator(_nats_url),
        Field(description="servers, separated by commas: nats://HOST:4222, tls://USER:PASSWORD@HOST:4222"),
    ]
    credentials: Annotated[str, Field(description="file with the credentials of a user (.creds)")]
    tls_ca: Annotated[
        str, Field(min_length=1, description="file of trusted certificates (PEM); system: those of the system")
    ]
    stream: Annotated[
        str, AfterValidator(_stream_name), Field(description="name of the stream and its subjects; one per deployment")
    ]
    replicas: Annotated[int, Field(ge=1, le=5, description="number of servers that have a copy of the stream")]
    max_bytes: Annotated[
        int, Field(ge=0, le=2**50, description="size of the stream at which events wait in the database; 0: no limit")
    ]
    timeout: Annotated[_Timeout, Field(description="longest wait for an answer of NATS")]


@dataclass(frozen=True, slots=True)
class KeepSettings:
    """Retention."""

    section: ClassVar[str] = "keep"
    finished_jobs: Annotated[_Retention, Field(description="jobs that are done or cancelled")]
    dead_letters: Annotated[_Retention, Field(description="jobs that failed for good")]
    events: Annotated[_Retention, Field(description="published events; older ones cannot be replayed")]
    audit: Annotated[_Retention, Field(ge=365 * _DAY, description="the audit trail; at least a year")]
    errors: Annotated[_Retention, Field(description="captured errors, after the last occurrence in the group")]


@dataclass(frozen=True, slots=True)
class SentinelSettings:
    """Captured errors: who is notified, how often, and what counts as an outage."""

    section: ClassVar[str] = "sentinel"
    notify_urls: Annotated[
        OptionalSecret,
        IS_RENEWABLE,
        Field(description="Apprise URLs, separated by spaces: Slack, Telegram, Discord, e-mail, webhooks"),
    ]
    cooldown: Annotated[Duration, Field(ge=1, description="between two messages about one group of errors")]
    late_schedule: Annotated[Duration, Field(ge=1, description="a schedule that is overdue for this long is an outage")]
    stuck_queue: Annotated[Duration, Field(ge=1, description="a queue with a job overdue for this long is an outage")]
    held_snapshot: Annotated[Duration, Field(ge=1, description="a transaction that is open for this long is an outage")]


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Export of traces. Without an endpoint, traces are not exported."""

    section: ClassVar[str] = "telemetry"
    otlp_endpoint: Annotated[str, Field(description="OpenTelemetry collector, such as http://127.0.0.1:4318")]
    otlp_protocol: Annotated[Literal["http", "grpc"], Field(description="protocol; grpc needs an extra package")]
    otlp_headers: Annotated[OptionalSecret, IS_RENEWABLE, Field(description="headers: NAME=VALUE, separated by spaces")]
    trace_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of new traces to export; the caller decides for continued ones")
    ]


KERNEL_SECTIONS: tuple[type[Section], ...] = (
    ProcessSettings,
    HttpServerSettings,
    OperationsSettings,
    PostgresSettings,
    RedisSettings,
    LoggerSettings,
    QueueSettings,
    NatsSettings,
    KeepSettings,
    SentinelSettings,
    TelemetrySettings,
)
