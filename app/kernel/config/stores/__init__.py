"""Stores of secrets: `secret://vault/PATH#KEY` (KV version 2) and `secret://aws/NAME#KEY` as the value of a setting."""

import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, TypeGuard
from urllib.parse import unquote

from app.kernel.product import NAME

LIMIT_S = 10.0
"""The longest time that a process waits for its secrets, in all."""
_SCHEME = "secret://"
_FORMS = "secret://vault/PATH#KEY or secret://aws/NAME#KEY"
_STORES = {"vault": ("hvac", "hvac>=2.4"), "aws": ("boto3", "boto3>=1.43")}
"""The library of each store, and the requirement that installs it."""

Read = Callable[[str, Mapping[str, str], float], Mapping[str, object] | str]
"""Reads a secret: its path, the environment, seconds. Returns its fields, or its text. Raises CannotFetch."""


class CannotFetch(Exception):
    """A secret cannot be fetched; never says what it is. Unless `is_final`, a later try may succeed."""

    def __init__(self, message: str, hint: str, *, is_final: bool = True) -> None:
        super().__init__(message)
        self.hint = hint
        self.is_final = is_final


class Reference(NamedTuple):
    """A secret in a store. Without a key it is the whole text."""

    store: str
    path: str
    key: str


def is_reference(value: object) -> TypeGuard[str]:
    """Return whether the value of a setting refers to a store."""
    return isinstance(value, str) and value.strip().lower().startswith(_SCHEME)


def parsed(text: str) -> Reference:
    """Return the parts of a reference. Raises CannotFetch."""
    store, _, rest = text.strip()[len(_SCHEME) :].partition("/")
    path, hash_, key = rest.partition("#")
    path, key = unquote(path).strip("/"), unquote(key)
    if store not in _STORES:
        raise CannotFetch("not a store of secrets", f"write {_FORMS}")
    parts = path.split("/")
    if not path.isprintable() or not key.isprintable() or "?" in rest or {"", ".", ".."} & set(parts):
        raise CannotFetch("a malformed reference", f"write {_FORMS}")
    if (hash_ and not key) or (store == "vault" and (not key or len(parts) < 2)):
        path = f"secret/{NAME}" if store == "vault" else f"{NAME}/production"
        raise CannotFetch("a malformed reference", f"write {_FORMS}, such as secret://{store}/{path}#password")
    return Reference(store, path, key)


class Stores:
    """Fetches secrets, each path once, within `LIMIT_S` in all."""

    def __init__(self, environ: Mapping[str, str], limit_s: float = LIMIT_S) -> None:
        self._environ = environ
        self._limit_s = self._left_s = limit_s
        self._read: dict[tuple[str, str], Mapping[str, object] | str] = {}

    def fetch(self, text: str) -> str:
        """Return the secret that a reference names. Raises CannotFetch."""
        reference = parsed(text)
        place = reference[:2]
        if place not in self._read:
            self._read[place] = self._from_store(reference)
        found, key = self._read[place], reference.key
        if isinstance(found, str):
            if key:
                raise CannotFetch("the secret is not a JSON object", "leave #KEY out for the whole text")
            return found
        if not key:
            raise CannotFetch("the secret has several keys", f"add #KEY: {_listed(found)}")
        if key not in found:
            raise CannotFetch(f"the secret has no key {key}", f"it has {_listed(found)}")
        value = found[key]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise CannotFetch(f"the key {key} is neither a text nor a number", "store the value as a text")
        return str(value)

    def _from_store(self, reference: Reference) -> Mapping[str, object] | str:
        library, requirement = _STORES[reference.store]
        if find_spec(library) is None:
            raise CannotFetch(f"{library} is not installed", f"pip install '{requirement}'")
        read: Read = import_module(f"{__name__}.{reference.store}").read
        return self._bounded(lambda left_s: read(reference.path, self._environ, left_s))

    def _bounded(self, work: Callable[[float], Mapping[str, object] | str]) -> Mapping[str, object] | str:
        """Run the work in a thread of its own: timeouts of HTTP libraries restart with each byte."""
        done: list[Mapping[str, object] | str] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                done.append(work(self._left_s))
            except BaseException as error:  # noqa: BLE001 - raised below
                failed.append(error)

        began = time.monotonic()
        thread = threading.Thread(target=run, name="secrets", daemon=True)
        if self._left_s > 0:
            thread.start()
            thread.join(self._left_s)
            self._left_s -= time.monotonic() - began
        if done:
            return done[0]
        if not failed:
            message = f"the store did not answer within {self._limit_s:g} s"
            raise CannotFetch(message, "check its address and the network, or try again", is_final=False)
        if isinstance(failed[0], CannotFetch):
            raise failed[0]
        # its message could contain what was read
        kind = type(failed[0]).__name__
        raise CannotFetch(f"the store cannot be used ({kind})", "check its address and version", is_final=False)


def _listed(found: Mapping[str, object]) -> str:
    return ", ".join(sorted(found)[:10]) or "none"
