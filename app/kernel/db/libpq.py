"""What libpq, on whose defaults psycopg connects, takes from elsewhere than from us."""

import os
import re

from loguru import logger

_VARIABLE = re.compile(r"PG[A-Z]+")  # PGHOSTADDR, PGOPTIONS, PGSERVICE, PGTZ and so on; its list grows with versions


def forget_variables() -> list[str]:
    """Take libpq's variables out of the environment of this process, so that settings alone decide; return their names.

    Safe to repeat. Call it before threads start: the C library's environment is not safe to change beside them.
    """
    found = sorted(name for name in os.environ if _VARIABLE.fullmatch(name))
    for name in found:
        del os.environ[name]
    if found:
        logger.info("ignoring {}: the settings POSTGRES_* decide", ", ".join(found))
    return found
