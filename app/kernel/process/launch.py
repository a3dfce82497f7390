"""How a process was launched: what its parent passes, and who watches it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.kernel.product import NAME
from app.kernel.sockets import Sockets
from app.kernel.systemd.notify import Notifier

if TYPE_CHECKING:
    from app.kernel.workers.worker import Worker

PRIVATE = f"{NAME.upper()}_PRIVATE"
"""Environment variable: set for a private process."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a process gets from systemd, from a supervisor of workers, or from neither."""

    notify: Notifier = field(default_factory=Notifier)
    sockets: Sockets = field(default_factory=Sockets)
    worker: "Worker | None" = None
    on_terminal: bool = False
    """Whether a person watches the log, which then is brief."""
    is_private: bool = False
    """Whether the process that started it is its only client: commands on this machine do not find it."""
