"""Takes over the secrets that may change while a process runs."""

from collections.abc import Callable

from pydantic import SecretStr

from app.kernel.config.settings import Misconfigured, PendingSecret, Setting, Settings, schema
from app.kernel.telemetry.redact import remember


def renewed(current: Settings, read: Callable[[], Settings]) -> str | None:
    """Read the settings again; return what changed, by key, or None. Secrets that may change take their new values.

    Secrets that this process does not use are not compared. Raises Misconfigured in one line, StoresUnavailable.
    """
    try:
        new = read()
        found = [(setting, before, _now(new, setting)) for setting, before in _used(current)]
    except Misconfigured as error:
        reasons = "; ".join(map(str, error.problems)) or str(error)
        raise Misconfigured(f"{reasons}; the settings stay as they were") from None
    fresh, late = list[str](), list[str]()
    for setting, before, after in found:
        if _plain(before) == after:
            continue
        if isinstance(before, PendingSecret) and isinstance(after, str) and setting.is_renewable:
            remember([after, *after.split()])
            before.renew(after)
            fresh.append(setting.key)
        else:
            late.append(setting.key)
    said = [f"{', '.join(fresh)} changed and in use"] if fresh else []
    said += [f"{', '.join(late)} changed: restart this process to use it"] if late else []
    return "; ".join(said) or None


def _used(settings: Settings) -> list[tuple[Setting, object]]:
    """Return the values of a process, without the secrets that it has not fetched."""
    found = [
        (setting, getattr(section, setting.name))
        for kind, section in settings.sections.items()
        for setting in schema(kind)
    ]
    return [(s, value) for s, value in found if not isinstance(value, PendingSecret) or value.is_fetched]


def _now(settings: Settings, setting: Setting) -> object:
    return _plain(getattr(settings.sections[setting.kind], setting.name))


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
