"""Logs through loguru with our own sink: JSON lines, or text for people.

Log lines contain no secrets and no local variables of tracebacks. Logging never blocks.
"""

import functools
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from loguru import logger
from opentelemetry import trace
from opentelemetry.trace import SpanContext
from pydantic_core import to_json

from app.kernel.config import LoggerSettings, Misconfigured
from app.kernel.product import NAME
from app.kernel.telemetry.console import WIDTH, few, fitted
from app.kernel.telemetry.output import Output
from app.kernel.telemetry.redact import redacted, redacted_fields
from app.kernel.text import allows_colour, error_text, shown, storable_tree

if TYPE_CHECKING:
    from loguru import Message, Record

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
PRIORITIES = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<2>"}
"""Of sd-daemon(3). The journal takes them off the lines."""
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
_STACKS_A_SECOND = 3
_BEGIN_WIDTH = len("00:00:00.000 CRITICAL ")
_FOR_PROGRAMS = frozenset({"url", "listener"})  # the message has them too
_TAKEN = frozenset({"time", "level", "process", "pid", "worker", "message", "trace_id", "span_id"})
_context: ContextVar[dict[str, object]] = ContextVar("log context", default={})  # noqa: B039 - never mutated
_listener: "Listener | None" = None


REOPEN = (signal.SIGHUP, signal.SIGUSR1)
_LOGURU_LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


def configure(settings: LoggerSettings, process: str, worker: int | None = None) -> Output:
    """Configure level, format and output of logs; return the output. Raises Misconfigured. Safe to repeat.

    SIGHUP and SIGUSR1 reopen the file, for logrotate; they do nothing with stdout.
    """
    to_file = settings.output != "stdout"
    try:
        output = Output(settings.output if to_file else None)
    except OSError as error:
        raise Misconfigured(
            f"logger.output: cannot write {settings.output}: {error.strerror}",
            hint=f"{NAME} config explain logger.output",
        ) from None
    for number in REOPEN:
        signal.signal(number, lambda _number, _frame: output.reopen())
    level = _LOGURU_LEVELS[settings.level]
    lines = _Lines(output.write, settings.format == "json", level, process, output.is_terminal, worker)
    if not to_file and is_journal(1):
        lines.priorities = PRIORITIES
    _install(lines)
    return output


def is_journal(fd: int) -> bool:
    """Return whether systemd has connected a descriptor to its journal (systemd.exec(5), JOURNAL_STREAM)."""
    about = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


class Listener(Protocol):
    """Receives log records, whether they are written or not. Must not block or raise."""

    def take(self, record: "Record") -> None:
        """Receive a record of level info and above."""
        ...

    def again(self, error: BaseException, about: Mapping[str, object]) -> bool:
        """Count a repeated error; return False to receive the whole record instead."""
        ...


def set_listener(listener: Listener | None) -> None:
    """Set the listener of this process; it replaces the previous one."""
    global _listener  # noqa: PLW0603 - per process, like loguru's handlers
    _listener = listener


def new_context(**fields: object) -> None:
    """Set the fields of all further log lines of this task, when a request or a job begins.

    They are not redacted, so they must not be secrets. Loguru's contextualize costs ten times as much, and ends before
    an error is logged.
    """
    _context.set(fields)


def context(**fields: object) -> None:
    """Add fields to all further log lines of this request or job."""
    _context.set({**_context.get(), **redacted_fields(fields)})


def ended(
    level: Level,
    template: str,
    *values: object,
    fields: Mapping[str, object] | None = None,
    span: SpanContext | None = None,
) -> None:
    """Log the end of a request or a job, like loguru, at a third of its cost: lines are formatted in batches.

    `fields` are written in JSON only. `span` is by default the current span.
    """
    if _lines is None:
        logger.log(level, template, *values)
    elif _LEVELS[level] >= _lines.least:
        span, about = span or trace.get_current_span().get_span_context(), _context.get()
        if not _lines.as_json:
            _lines.write(functools.partial(_lines.of_end, time.time(), level, template, values, about))
            return
        if fields:
            about = {**about, **fields}
        _lines.write(functools.partial(_lines.of_event, time.time(), level, template, values, span, about))


def failed(error: BaseException, template: str, *values: object, **about: object) -> None:
    """Log an unexpected error with its stack, like loguru.

    Repetitions within a second are logged without a stack, at a fifth of the cost, so that failing requests do not slow
    down others.
    """
    fields = _context.get()
    alike = _lines is not None and not _stacks.are_few(error) and (not _listener or _listener.again(error, fields))
    if _lines is None or not alike:
        logger.bind(**about).opt(exception=error).error(template, *values)
        return
    span = trace.get_current_span().get_span_context()
    fields = {**fields, **redacted_fields(about), "exception": redacted(error_text(error))}
    _lines.write(functools.partial(_lines.of_event, time.time(), "ERROR", template, values, span, fields))


def configure_command(process: str) -> None:
    """Log warnings and errors of a command to stderr as text. Safe to repeat."""

    def write(line: str | Callable[[], str]) -> None:
        sys.stderr.write(line if isinstance(line, str) else line())
        sys.stderr.flush()

    _install(_Lines(write, as_json=False, level="WARNING", process=process, colour=sys.stderr.isatty()))


def _install(lines: "_Lines") -> None:
    global _lines  # noqa: PLW0603 - per process, like loguru's handlers
    _lines = lines
    least = min(lines.least, _LEVELS["INFO"])  # INFO for the listener
    logger.remove()
    logger.configure(patcher=_add_context)
    # the filter writes the record and rejects it, because loguru would format it once more, with its stack
    logger.add(_nowhere, filter=lines.take, level=least, format="", backtrace=False, diagnose=False, catch=True)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def _nowhere(_message: "Message") -> None:
    """Never called: the filter rejects every record."""


class _Lines:
    """Formats log lines and writes them."""

    def __init__(
        self,
        write: Callable[[str | Callable[[], str]], None],
        as_json: bool,
        level: str,
        process: str,
        colour: bool,
        worker: int | None = None,
    ) -> None:
        self.write = write
        self.least = logger.level(level).no
        self.as_json = as_json
        about = {"process": process, "pid": os.getpid()} | ({} if worker is None else {"worker": worker})
        self._constant = to_json(about).decode()[1:-1]
        self._worker = "" if worker is None else f" [{worker}]"
        self.priorities: dict[str, str] = {}
        self._colour = allows_colour(colour)

    def take(self, record: "Record") -> bool:
        if record["level"].no >= self.least:
            self.write(self._of_record(record))
        if _listener is not None:
            _listener.take(record)
        return False

    def _of_record(self, record: "Record") -> str:
        about, level = redacted_fields(record["extra"]), record["level"].name
        message, stack = redacted(record["message"]), _stack(record) if record["exception"] is not None else ""
        if not self.as_json:
            return self._text(record["time"], level, message, about) + stack
        if stack:
            about["exception"] = stack
        span = trace.get_current_span().get_span_context()
        return self._json(record["time"].timestamp(), level, message, span, about)

    def of_event(
        self,
        moment: float,
        level: str,
        template: str,
        values: tuple[object, ...],
        span: SpanContext,
        about: dict[str, Any],
    ) -> str:
        message = redacted(_filled(template, values)) if values else template
        if self.as_json:
            return self._json(moment, level, message, span, about)
        return self._text(datetime.fromtimestamp(moment).astimezone(), level, message, about)

    def of_end(
        self, moment: float, level: str, template: str, values: tuple[object, ...], about: dict[str, Any]
    ) -> str:
        """Return a line of text of limited width."""
        begin, room = self._begin(datetime.fromtimestamp(moment).astimezone(), level), WIDTH - _BEGIN_WIDTH
        message = fitted(lambda texts: _printable(redacted(_filled(template, texts))), values, room)
        fields = {key: _printable(shown(value)) for key, value in about.items()}
        return f"{begin} {message}{few(fields, room - len(message))}\n"

    def _json(self, moment: float, level: str, message: str, span: SpanContext, about: dict[str, Any]) -> str:
        if not _TAKEN.isdisjoint(about):
            about = {f"{name}_" if name in _TAKEN else name: value for name, value in about.items()}
        second, microsecond = divmod(int(moment * 1_000_000), 1_000_000)
        fields: dict[str, Any] = {"message": message, **about}
        if span.trace_id:
            fields["trace_id"] = f"{span.trace_id:032x}"
            fields["span_id"] = f"{span.span_id:016x}"
        try:
            more = to_json(fields, fallback=shown, inf_nan_mode="strings").decode()
        except ValueError:  # a lone surrogate, or a cycle
            more = to_json(storable_tree(fields), inf_nan_mode="strings").decode()
        begin = f'{{"time":"{_until_the_second(second)}.{microsecond:06d}+00:00","level":"{level.lower()}"'
        return f"{self.priorities.get(level, '')}{begin},{self._constant},{more[1:]}\n"

    def _text(self, at: datetime, level: str, message: str, about: dict[str, Any]) -> str:
        told = ((key, value) for key, value in about.items() if key not in _FOR_PROGRAMS)
        extra = " ".join(f"{key}={_printable(shown(value))}" for key, value in told)
        return f"{self._begin(at, level)} {_printable(message)}{'  ' + extra if extra else ''}\n"

    def _begin(self, at: datetime, level: str) -> str:
        name = f"\x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m" if self._colour else f"{level:<8}"
        return f"{self.priorities.get(level, '')}{at:%H:%M:%S}.{at.microsecond // 1000:03} {name}{self._worker}"


_lines: _Lines | None = None


@functools.lru_cache(2)
def _until_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _add_context(record: "Record") -> None:
    record["extra"] = {**_context.get(), **record["extra"]}


def _printable(text: str) -> str:
    """Escape line breaks and control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _stack(record: "Record") -> str:
    exception = record["exception"]
    if exception is None or exception.value is None:
        return ""
    error = exception.value
    if _stacks.is_new(error):
        return redacted("".join(traceback.format_exception(error)))
    return redacted(error_text(error))


def _filled(template: str, values: Sequence[object]) -> str:
    try:
        return template.format(*values)
    except Exception:  # noqa: BLE001 - __str__ may raise anything
        return f"{template} {' '.join(shown(value) for value in values)}"


class _Stacks:
    """Limits how many equal stacks are logged in a second."""

    def __init__(self) -> None:
        self._second = 0
        self._seen: dict[tuple[type, CodeType | None, int], int] = {}

    def are_few(self, error: BaseException) -> bool:
        """Return whether few errors of this type and origin were logged in this second."""
        return self._seen.get(self._key(error), 0) < _STACKS_A_SECOND

    def is_new(self, error: BaseException) -> bool:
        """Return the same, and count the error as logged."""
        key = self._key(error)
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key] <= _STACKS_A_SECOND

    def _key(self, error: BaseException) -> tuple[type, CodeType | None, int]:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._seen = second, {}
        innermost = error.__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        return (type(error), innermost.tb_frame.f_code, innermost.tb_lineno) if innermost else (type(error), None, 0)


_stacks = _Stacks()


class _Forward(logging.Handler):
    """Forwards the standard library's logging to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        logger.bind(logger=record.name).opt(exception=record.exc_info).log(level, "{}", record.getMessage())
