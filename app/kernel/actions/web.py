"""Addresses of reads in the console. Loads nothing of it, so that commands print them without templates."""

from dataclasses import MISSING, Field, fields
from datetime import datetime
from typing import Any, get_origin
from urllib.parse import quote, urlencode

from app.kernel.actions import Action, Signature
from app.kernel.decoding import name_outside
from app.kernel.http.authenticators import Bearer
from app.kernel.paging import Page

ROOT = "/console"


def has_page(action: Action, signature: Signature) -> bool:
    """Return whether a read is a page of the console: a list, or the row of one."""
    if action.changes or not action.path or action.public or action.authenticator is not Bearer:
        return False
    parent, _, last = action.path.rpartition("/")
    if "{" in parent:
        return False
    return last.startswith("{") or get_origin(signature.returns) is Page


def page_of(action: Action, given: Any) -> str:
    """Return path and query of the page of a read with its input; filters are in the query."""
    parent, _, last = action.path.rpartition("/")
    named = (
        {} if given is None else {name_outside(item.name): (item, getattr(given, item.name)) for item in fields(given)}
    )
    if last.startswith("{"):
        _, value = named.pop(last[1:-1])
        path = f"{parent.rpartition('/')[2]}/{quote(str(value), safe='')}"
    else:
        path = last
    query = {name: _text(value) for name, (item, value) in named.items() if value != _default(item)}
    return f"{ROOT}/{path}{'?' if query else ''}{urlencode(query)}"


def _default(item: "Field[Any]") -> object:
    return None if item.default is MISSING else item.default


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value).lower() if isinstance(value, bool) else str(value)
