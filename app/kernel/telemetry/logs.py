"""Logs through loguru with a sink of our own: one JSON object a line, or text for people. Never a local variable."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger
from opentelemetry import trace
from pydantic_core import to_json

from app.kernel.config import LoggerSettings, Misconfigured

if TYPE_CHECKING:
    from loguru import Message, Record

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_LOGURU_LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


def configure(settings: LoggerSettings, process: str) -> None:
    """Send logs where the settings say, with process and pid. Raises Misconfigured. Safe to repeat."""
    _install(_stream(settings.output), settings.format == "json", _LOGURU_LEVELS[settings.level], process)


def configure_command(process: str) -> None:
    """Send warnings and errors to stderr as text: for commands, whose stdout is data. Safe to repeat."""
    _install(sys.stderr, as_json=False, level="WARNING", process=process)


def _stream(output: str) -> TextIO:
    if output == "stdout":
        return sys.stdout
    try:
        return Path(output).open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise Misconfigured(f"logger.output: cannot write {output}: {error.strerror}") from None


def _install(stream: TextIO, as_json: bool, level: str, process: str) -> None:
    constant = {"process": process, "pid": os.getpid()}
    colour = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    line: Callable[[Record], str] = (lambda r: _json(r, constant)) if as_json else (lambda r: _text(r, colour))

    def sink(message: "Message") -> None:
        stream.write(line(message.record))
        stream.flush()

    logger.remove()
    logger.add(sink, level=level, format="", colorize=False, backtrace=False, diagnose=False, catch=True)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def _json(record: "Record", constant: dict[str, Any]) -> str:
    fields: dict[str, Any] = {
        "time": record["time"].isoformat(timespec="microseconds"),
        "level": record["level"].name.lower(),
        "message": record["message"],
        **constant,
        **record["extra"],
    }
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        fields["trace_id"] = trace.format_trace_id(context.trace_id)
    if record["exception"] is not None:
        fields["exception"] = _stack(record)
    return to_json(fields, fallback=str, inf_nan_mode="strings").decode() + "\n"


def _text(record: "Record", colour: bool) -> str:
    level = record["level"].name
    name = f"\x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m" if colour else f"{level:<8}"
    extra = " ".join(f"{key}={_printable(str(value))}" for key, value in record["extra"].items())
    message = _printable(record["message"])
    tail = _stack(record) if record["exception"] is not None else ""
    return f"{record['time']:%H:%M:%S.%f} {name} {message}{'  ' + extra if extra else ''}\n{tail}"


def _printable(text: str) -> str:
    """Keep a line a line, and a terminal unharmed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _stack(record: "Record") -> str:
    exception = record["exception"]
    if exception is None or exception.value is None:
        return ""
    return "".join(traceback.format_exception(exception.type, exception.value, exception.traceback))


class _Forward(logging.Handler):
    """Standard library logging into the same sink."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        logger.bind(logger=record.name).opt(exception=record.exc_info).log(level, "{}", record.getMessage())
