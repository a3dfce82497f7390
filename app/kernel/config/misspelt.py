"""Finds environment variables that are nearly the name of a setting."""

import re
from collections.abc import Iterable, Mapping

from app.kernel.config.settings import Problem

ENVIRONMENT = "environment"
_LONG_WORD = 7
_SEPARATORS = re.compile(r"[^A-Z0-9]+")


def misspelt(environ: Mapping[str, str], variables: Iterable[str]) -> list[Problem]:
    """Return a warning for each variable that is probably a misspelt name of a setting.

    One character of a word may be wrong, missing, added or swapped with the next one, two of a long word; words may
    be joined or separated differently, and in lower case. Other names in the environment are ignored.
    """
    known = {name: name for variable in variables for name in (variable, f"{variable}_FILE")}
    joined = {_SEPARATORS.sub("", name): name for name in known}
    found: list[Problem] = []
    for name in sorted(set(environ) - known.keys()):
        near = joined.get(_SEPARATORS.sub("", name.upper())) or next((k for k in known if _is_near(name, k)), None)
        if near is not None:
            found.append(Problem(name, ENVIRONMENT, f"no setting has this name; did you mean {near}?"))
    return found


def _is_near(name: str, known: str) -> bool:
    if abs(len(name) - len(known)) > 2:
        return False
    words, wanted = name.split("_"), known.split("_")
    if len(words) != len(wanted):
        return False
    wrong = [(word, right) for word, right in zip(words, wanted, strict=True) if word != right]
    if len(wrong) != 1:
        return False
    [(word, right)] = wrong
    if len(right) <= 3:  # DB is not a misspelt ID
        return sorted(word) == sorted(right)
    return _distance(word, right) <= (2 if len(right) >= _LONG_WORD else 1)


def _distance(a: str, b: str) -> int:
    """Return the number of changes from one word to the other (optimal string alignment)."""
    rows = [[*range(len(b) + 1)]]
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]
