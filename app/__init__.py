"""One code base, one command, many processes."""

from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `app`, `migrations` and `settings`."""
