"""How long a stop may take."""

from app.kernel.config import ProcessSettings

CLOSE_S = 5.0
"""For closing resources, and for a service that was cancelled."""


def stop_s(settings: ProcessSettings) -> float:
    """Return the longest time from the request to stop until the end; then a process ends itself."""
    return settings.drain_delay + settings.grace + 3 * CLOSE_S
