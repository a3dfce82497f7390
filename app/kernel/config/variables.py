"""Looks values up by the variable that overrides a setting, and in the credentials of systemd."""

from collections.abc import Callable, Mapping
from pathlib import Path

from app.kernel.config.files import CannotRead, read_value

Lookup = Callable[[str], tuple[str, str] | None]
"""Returns the text of a variable such as POSTGRES_PASSWORD, and its source. Raises NotReadable."""


class NotReadable(Exception):
    """The value of a variable cannot be read."""

    def __init__(self, source: str, message: str) -> None:
        super().__init__(message)
        self.source = source


def from_environment(environ: Mapping[str, str]) -> Lookup:
    """Return a lookup in the environment, and in the file that `VARIABLE_FILE` names."""

    def lookup(variable: str) -> tuple[str, str] | None:
        file = environ.get(f"{variable}_FILE")
        if variable in environ:
            if file:
                raise NotReadable(variable, f"{variable}_FILE is set too; keep one of them")
            return environ[variable], variable
        return _from_file(file, f"{variable}_FILE") if file else None

    return lookup


def from_credentials(environ: Mapping[str, str]) -> Lookup:
    """Return a lookup in the credentials that systemd passes to a unit: files named after the setting."""

    def lookup(key: str) -> tuple[str, str] | None:
        folder = environ.get("CREDENTIALS_DIRECTORY")
        if not folder or not (file := Path(folder) / key).is_file():
            return None
        return _from_file(str(file), f"credential {key}")

    return lookup


def _from_file(file: str, source: str) -> tuple[str, str]:
    try:
        return read_value(file), source
    except CannotRead as error:
        raise NotReadable(source, f"cannot read {file} ({error})") from None
