"""What a declaration of a module, and a job, may ask for: bounds, so that whatever is stored can be read again."""

from typing import Final

LONGEST_DELAY_S: Final = 3650 * 86400.0
"""How far from now, in the future or in the past, a job may be due."""
LONGEST_RETRY_S: Final = 30 * 86400.0
"""For how long an operation may put off its next attempt."""

_WHOLE: Final = ("max_attempts", "concurrency", "priority", "every_s")
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "max_attempts": (1, 1000),
    "timeout_s": (0.001, 7 * 86400),
    "concurrency": (1, 1_000_000),
    "priority": (-1000, 1000),
    "delay_s": (0, LONGEST_DELAY_S),
    "every_s": (1, 366 * 86400),
}


def misfit(option: str, value: object) -> str:
    """Return what is wrong with the value of an option; an empty text when it is within its range."""
    least, most = _RANGES[option]
    whole = option in _WHOLE
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool) and least <= value <= most:
        return ""
    return f"{option} must be {'a whole number, ' if whole else ''}{least:.15g} to {most:.15g}"
