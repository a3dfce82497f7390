"""What other modules may use of platform."""

PERMISSIONS = {
    "platform:processes:read": "See the processes that are alive.",
    "platform:audit:read": "Read the audit trail.",
}
"""The permissions that platform declares."""
