"""Captures errors of this process: a log listener that groups and counts them. Never blocks."""

import functools
import hashlib
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from app.kernel.product import NAME
from app.kernel.sentinel import Group, Kind
from app.kernel.telemetry import metrics
from app.kernel.telemetry.redact import redacted, redacted_fields
from app.kernel.text import error_text, shown, storable, storable_tree

if TYPE_CHECKING:
    from loguru import Record

_MOST_GROUPS = 200
_LINES_KEPT = 500
_LINES_SHOWN = 20
_LONGEST = 8000
_FRAMES = 30
_BELONGS_TO = ("request_id", "job_id")
_OURS = f"{NAME}."


class Capture:
    """Groups errors until they are stored. Thread-safe; never raises."""

    def __init__(self, about: dict[str, str]) -> None:
        """`about` is part of each sample: process, host, release, environment."""
        self._about = about
        self._groups: dict[str, Group] = {}
        self._lines: deque[tuple[str, datetime, str]] = deque(maxlen=_LINES_KEPT)
        self._lock = threading.Lock()

    def take(self, record: "Record") -> None:
        """Receive a log record: keep its line for later samples, and capture it when it is an error."""
        extra: dict[str, Any] = record["extra"]
        belongs = next((str(extra[name]) for name in _BELONGS_TO if name in extra), "")
        if belongs:
            self._lines.append((belongs, record["time"], record["message"]))
        level = record["level"].no
        exception = record["exception"]
        if level >= 40 or (level >= 30 and exception is not None):
            self._add(_kind(extra), record, exception.value if exception else None, belongs)

    def again(self, error: BaseException, about: Mapping[str, object]) -> bool:
        """Count an error if its group has a sample; return whether it has."""
        kind = _kind(about)
        return self._count_alike(fingerprint_of(kind, error), kind, type(error).__qualname__)

    def add(self, kind: Kind, type_: str, title: str, culprit: str) -> None:
        """Capture a problem without an exception, such as an outage."""
        fingerprint = _digest(kind, type_, culprit)
        self._count(fingerprint, kind, type_, title, culprit, dict(self._about))

    def drain(self) -> list[Group]:
        """Return and clear the groups."""
        with self._lock:
            groups, self._groups = list(self._groups.values()), {}
        return groups

    def put_back(self, groups: list[Group]) -> None:
        """Keep groups that could not be stored for the next attempt."""
        with self._lock:
            for group in groups:
                newer = self._groups.get(group.fingerprint)
                if newer is not None:
                    newer.count += group.count
                    newer.first_seen_at = group.first_seen_at
                elif len(self._groups) < _MOST_GROUPS:
                    self._groups[group.fingerprint] = group
                else:
                    metrics.dropped("errors", group.count)

    def _add(self, kind: Kind, record: "Record", error: BaseException | None, belongs: str) -> None:
        type_ = "log" if error is None else type(error).__qualname__
        frames = [f"{record['name']}:{record['function']}"] if error is None else _frames(error.__traceback__)
        fingerprint = _digest(kind, type_, *frames)
        if self._count_alike(fingerprint, kind, type_):
            return
        message = redacted(record["message"])
        title = message if error is None else redacted(error_text(error))
        context: dict[str, Any] = {
            **self._about,
            **redacted_fields({key: shown(value) for key, value in record["extra"].items()}),
            "message": message[:_LONGEST],
            "lines": self._lines_of(belongs),
        }
        if (current := trace.get_current_span().get_span_context()).trace_id:
            context["trace_id"] = trace.format_trace_id(current.trace_id)
        if error is not None:
            stack = traceback.format_exception(type(error), error, error.__traceback__, limit=-_FRAMES)
            context["stack"] = redacted("".join(stack))[-_LONGEST:]
        self._count(fingerprint, kind, type_, title[:500], frames[-1] if frames else "unknown", context)

    def _count_alike(self, fingerprint: str, kind: Kind, type_: str) -> bool:
        """Count an error if its group has a sample. One sample is enough for many equal errors."""
        group = self._groups.get(fingerprint)
        if group is None or not group.samples:
            return False
        self._count(fingerprint, kind, type_, group.title, group.culprit, None)
        return True

    def _lines_of(self, belongs: str) -> list[str]:
        """Return the last log lines of the same request or job."""
        found = [(at, line) for owner, at, line in list(self._lines) if belongs and owner == belongs]
        return [f"{at:%H:%M:%S.%f} {redacted(line)}" for at, line in found[-_LINES_SHOWN:]]

    def _count(
        self, fingerprint: str, kind: Kind, type_: str, title: str, culprit: str, context: dict[str, Any] | None
    ) -> None:
        now = datetime.now(UTC)
        metrics.error_captured(kind)
        with self._lock:
            group = self._groups.get(fingerprint)
            if group is None:
                if len(self._groups) >= _MOST_GROUPS:
                    metrics.dropped("errors")
                    return
                told = (storable(type_), storable(title), storable(culprit))
                group = self._groups[fingerprint] = Group(fingerprint, kind, *told, 0, now, now)
            group.count += 1
            group.last_seen_at = now
            if context is not None and not group.samples:
                group.samples = [storable_tree({"at": now.isoformat(), **context})]


def fingerprint_of(kind: Kind, error: BaseException) -> str:
    """Return what groups an exception with others: a digest of kind, type and stack frames."""
    return _digest(kind, type(error).__qualname__, *_frames(error.__traceback__))


def _kind(about: Mapping[str, object]) -> Kind:
    return "job" if "job_id" in about else "request" if "request_id" in about else "service"


def _frames(innermost: TracebackType | None) -> list[str]:
    """Return the frames of our code, outermost first: file and function, because line numbers change."""
    found: list[str] = []
    while innermost is not None:
        module = str(innermost.tb_frame.f_globals.get("__name__"))
        if module.startswith(_OURS):
            found.append(f"{module}:{innermost.tb_frame.f_code.co_name}")
        innermost = innermost.tb_next
    return found[-_FRAMES:]


@functools.lru_cache(1024)
def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:32]
