"""Logs through loguru with a sink of our own: one JSON object a line, or text for people.

Never a local variable of a traceback, never a secret, and never a wait for whoever reads them.
"""

import functools
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from types import CodeType
from typing import TYPE_CHECKING, Any

from loguru import logger
from opentelemetry import trace
from opentelemetry.trace import SpanContext
from pydantic_core import to_json

from app.kernel.config import LoggerSettings, Misconfigured
from app.kernel.telemetry.output import Output
from app.kernel.telemetry.redact import redacted, redacted_fields

if TYPE_CHECKING:
    from loguru import Message, Record

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_INFO = 20
_STACKS_A_SECOND = 5
_context: ContextVar[dict[str, object]] = ContextVar("log context", default={})  # noqa: B039 - never changed
_listeners: "list[Callable[[Record], None]]" = []


def _by_loguru(level: str, template: str, values: tuple[Any, ...], _span: SpanContext, about: dict[str, Any]) -> None:
    logger.bind(**about).log(level, template, *values)


_ended: Callable[[str, str, tuple[Any, ...], SpanContext, dict[str, Any]], None] = _by_loguru
_LOGURU_LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


def configure(settings: LoggerSettings, process: str) -> None:
    """Send logs where the settings say, with process and pid. Raises Misconfigured. Safe to repeat.

    SIGHUP opens the file anew, for logrotate.
    """
    to_file = settings.output != "stdout"
    try:
        output = Output(settings.output if to_file else None)
    except OSError as error:
        raise Misconfigured(f"logger.output: cannot write {settings.output}: {error.strerror}") from None
    if to_file:
        signal.signal(signal.SIGHUP, lambda _number, _frame: output.reopen())
    colour = not to_file and sys.stdout.isatty()
    _install(output.write, settings.format == "json", _LOGURU_LEVELS[settings.level], process, colour)


def also(listener: "Callable[[Record], None]") -> None:
    """Give every record of level info and above to this, too, wherever it is written or not."""
    _listeners.append(listener)


class context:  # noqa: N801 - it is used like a function
    """Say these fields on every line that is logged inside, as loguru's contextualize does, at a tenth of its cost."""

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._token = _context.set({**_context.get(), **self._fields})

    def __exit__(self, *_: object) -> None:
        _context.reset(self._token)


def ended(level: str, template: str, *values: object, span: SpanContext | None = None, **about: object) -> None:
    """Write the line of a request or a job that is over, as loguru would.

    It is formatted together with others: that costs a third. `about` are identifiers of ours. `span` is the current
    one unless it is given.
    """
    _ended(level, template, values, span or trace.get_current_span().get_span_context(), about)


def configure_command(process: str) -> None:
    """Send warnings and errors to stderr as text: for commands, whose stdout is data. Safe to repeat."""

    def write(line: str | Callable[[], str]) -> None:
        sys.stderr.write(line if isinstance(line, str) else line())
        sys.stderr.flush()

    _install(write, as_json=False, level="WARNING", process=process, colour=sys.stderr.isatty())


def _install(
    write: Callable[[str | Callable[[], str]], None], as_json: bool, level: str, process: str, colour: bool
) -> None:
    constant = {"process": process, "pid": os.getpid()}
    colour = colour and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    least = logger.level(level).no

    heard = min(least, _INFO)  # by the listeners

    def line(record: "Record", context: SpanContext) -> str:
        return _json(record, context, constant) if as_json else _text(record, colour)

    def sink(message: "Message") -> None:
        record = message.record
        if record["level"].no >= least:
            write(line(record, trace.get_current_span().get_span_context()))
        for listener in _listeners:
            listener(record)

    levels = {name: logger.level(name) for name in _COLOURS}

    def text_of(
        moment: float, level: str, template: str, values: tuple[Any, ...], context: SpanContext, about: dict[str, Any]
    ) -> str:
        message = redacted(template.format(*values)) if values else template
        if as_json:
            return _json_line(moment, level.lower(), message, constant, about, context, "")
        at = datetime.fromtimestamp(moment, UTC)
        record: Any = {"time": at, "level": levels[level], "message": message, "extra": about, "exception": None}
        return _text(record, colour)

    def ended(level: str, template: str, values: tuple[Any, ...], context: SpanContext, about: dict[str, Any]) -> None:
        if levels[level].no >= least:
            write(functools.partial(text_of, time.time(), level, template, values, context, about))

    global _ended  # noqa: PLW0603 - like loguru's handlers, it is the process's
    _ended = ended
    logger.remove()
    logger.configure(patcher=_add_context)
    logger.add(sink, level=heard, format="", colorize=False, backtrace=False, diagnose=False, catch=True)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def _add_context(record: "Record") -> None:
    record["extra"] = {**_context.get(), **record["extra"]}


def _json(record: "Record", context: SpanContext, constant: dict[str, Any]) -> str:
    about, level = redacted_fields(record["extra"]), record["level"].name.lower()
    message, stack = redacted(record["message"]), _stack(record) if record["exception"] is not None else ""
    return _json_line(record["time"].timestamp(), level, message, constant, about, context, stack)


def _json_line(
    moment: float,
    level: str,
    message: str,
    constant: dict[str, Any],
    about: dict[str, Any],
    context: SpanContext,
    stack: str,
) -> str:
    second, microseconds = divmod(round(moment * 1_000_000), 1_000_000)
    time = f"{_until_the_second(second)}.{microseconds:06d}+00:00"
    fields: dict[str, Any] = {"time": time, "level": level, "message": message, **constant, **about}
    if context.is_valid:
        fields["trace_id"] = f"{context.trace_id:032x}"
        fields["span_id"] = f"{context.span_id:016x}"
    if stack:
        fields["exception"] = stack
    return to_json(fields, fallback=str, inf_nan_mode="strings").decode() + "\n"


@functools.lru_cache(2)
def _until_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _text(record: "Record", colour: bool) -> str:
    level = record["level"].name
    name = f"\x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m" if colour else f"{level:<8}"
    extra = " ".join(f"{key}={_printable(str(value))}" for key, value in redacted_fields(record["extra"]).items())
    message = _printable(redacted(record["message"]))
    tail = _stack(record) if record["exception"] is not None else ""
    return f"{record['time']:%H:%M:%S.%f} {name} {message}{'  ' + extra if extra else ''}\n{tail}"


def _printable(text: str) -> str:
    """Keep a line a line, and a terminal unharmed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _stack(record: "Record") -> str:
    exception = record["exception"]
    if exception is None or exception.value is None:
        return ""
    error = exception.value
    if _stacks.is_new(error):
        return redacted("".join(traceback.format_exception(error)))
    return redacted("".join(traceback.format_exception_only(error))) + "(its stack is the same as of those before)\n"


class _Stacks:
    """Tells which stacks are worth showing: ten thousand alike in a minute say no more than a few."""

    def __init__(self) -> None:
        self._second = 0
        self._seen: dict[tuple[type, CodeType | None, int], int] = {}

    def is_new(self, error: BaseException) -> bool:
        """Return whether fewer than a few of this type were raised at this place within this second."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._seen = second, {}
        innermost = error.__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        code = innermost.tb_frame.f_code if innermost else None
        key = (type(error), code, innermost.tb_lineno if innermost else 0)
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key] <= _STACKS_A_SECOND


_stacks = _Stacks()


class _Forward(logging.Handler):
    """Standard library logging into the same sink."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        logger.bind(logger=record.name).opt(exception=record.exc_info).log(level, "{}", record.getMessage())
