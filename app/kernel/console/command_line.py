"""The command, or the request, that does the same as a button."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import quote, urlencode

from app.kernel.actions import Action
from app.kernel.console.forms import Field, Form, lines_of
from app.kernel.product import NAME


def command_of(action: Action, form: Form, texts: Mapping[str, str], origin: str) -> str:
    """Return the command with the values filled in; without a command, the request with curl. Never with secrets."""
    if not action.command:
        return _request(action, form, texts, origin)
    given = [field for field in form.fields if field.kind != "password" and field.name != "cursor"]
    arguments = [_argument(field, texts) for field in given if field.parameter.is_argument]
    options = [part for field in given if not field.parameter.is_argument for part in _option(field, texts)]
    return " ".join([NAME, action.command, *filter(None, arguments), *options])


def _argument(field: Field, texts: Mapping[str, str]) -> str:
    text = texts.get(field.name, "")
    if not text and field.parameter.about.none and field.name in texts:
        return "--none"
    return _quoted(text) if text else field.parameter.hint


def _option(field: Field, texts: Mapping[str, str]) -> Iterator[str]:
    text = texts.get(field.name, "")
    if field.parameter.is_flag:
        if text in ("true", "on"):
            yield f"--{field.parameter.option}"
        elif text == "false" and field.parameter.default is True:
            yield f"--no-{field.parameter.option}"
    elif text and field.kind == "lines":
        yield f"--{field.parameter.option} {shlex.quote(json.dumps(lines_of(text), ensure_ascii=False))}"
    elif text:
        yield f"--{field.parameter.option} {_quoted(text)}"


def _request(action: Action, form: Form, texts: Mapping[str, str], origin: str) -> str:
    path = action.path
    rest: dict[str, object] = {}
    for field in form.fields:
        text = texts.get(field.name, "")
        if field.in_path:
            path = path.replace(f"{{{field.name}}}", quote(text, safe="") or field.name.upper())
        elif field.kind == "password":
            rest |= {field.name: "..."} if field.required else {}
        elif text and not field.is_paging:
            rest[field.name] = _value(field, text)
        elif field.required:
            rest[field.name] = [] if field.kind == "lines" else field.name.upper()
    parts = ["curl", *(["-X", action.method] if action.method != "GET" else [])]
    parts.append('-H "Authorization: Bearer $ACCESS_TOKEN"')
    if action.method == "GET":
        path += f"?{urlencode(rest)}" if rest else ""
    elif rest:
        parts.append(f"--json {_quoted(json.dumps(rest, ensure_ascii=False))}")
    return " ".join([*parts, _quoted(origin + path)])


def _value(field: Field, text: str) -> object:
    """Return a text as the value in a body."""
    if field.kind == "lines":
        return lines_of(text)
    if field.kind in ("number", "json") or text in ("true", "false"):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _quoted(text: str) -> str:
    """Return a text as a word of a shell; control characters, which a terminal may obey when pasted, are escaped."""
    if text.isprintable():
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain) + "'"
