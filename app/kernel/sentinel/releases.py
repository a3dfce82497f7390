"""Order of releases (PEP 440)."""

from collections.abc import Iterable


def is_newer(release: str, known: Iterable[str]) -> bool:
    """Return whether a release is newer than all known ones.

    A version that PEP 440 does not order counts as newer unless it is known, so that no error stays hidden.
    """
    from packaging.version import InvalidVersion, Version

    def version(text: str) -> Version | None:
        try:
            return Version(text)
        except InvalidVersion:
            return None

    others = set(known)
    if release in others:
        return False
    own = version(release)
    return own is None or all(own > other for other in map(version, others) if other is not None)
