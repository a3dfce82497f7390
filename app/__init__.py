"""One code base, one command, many processes."""

import os
from pathlib import Path

from app.kernel.product import NAME, VERSION

__version__ = VERSION

_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = _PACKAGE / "_bundled"
IS_INSTALLED = _BUNDLED.is_dir()
_HOME = os.environ.get("XDG_STATE_HOME") or "~/.local/state"

ROOT = _BUNDLED if IS_INSTALLED else _PACKAGE.parent
"""The folder of `migrations` and `settings`: the checkout, or a folder of an installed wheel."""

# Path.expanduser raises without a home folder
DATA = Path(os.path.expanduser(_HOME), NAME) if IS_INSTALLED else ROOT / ".local"  # noqa: PTH111
"""The folder of the embedded database, created on its first use."""
