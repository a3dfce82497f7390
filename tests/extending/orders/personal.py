"""What a scrubbed export has of the tables of this module."""

from app.kernel.db.export import Personal

PERSONAL: Personal = {"orders": {"item": "empty", "state": "kept"}}
