"""Messages about captured errors."""

from dataclasses import dataclass
from typing import Protocol

from app.kernel.product import NAME
from app.kernel.queue import Task
from app.kernel.sentinel import DueGroup

ONE_BY_ONE = 3
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Message:
    """A message to one recipient, named by a fingerprint because its address is a secret."""

    recipient: str
    title: str
    body: str


SEND_MESSAGE = Task("platform.send_message", Message, timeout_s=60)


class Recipients(Protocol):
    """Recipients of notifications."""

    def names(self) -> list[str]:
        """Return the fingerprint of each recipient."""
        ...

    async def send(self, message: Message) -> None:
        """Send a message. Raises NotFound for an unknown recipient, Unavailable if the recipient rejects it."""
        ...


def texts(due: list[DueGroup], environment: str) -> list[tuple[str, str]]:
    """Return titles and bodies: one for each group, or a single digest of many groups."""
    if len(due) <= ONE_BY_ONE:
        return [(f"[{environment}] {_opening(group)}", _about(group)) for group in due]
    lines = [f"- {_opening(group)} ({group.since} times): {NAME} errors show {group.id}" for group in due[:_SHOWN]]
    if len(due) > _SHOWN:
        lines.append(f"- and {len(due) - _SHOWN} more: {NAME} errors list")
    return [(f"[{environment}] {len(due)} groups of errors", "\n".join(lines))]


def _opening(group: DueGroup) -> str:
    word = "regressed: " if group.state == "regressed" else ""
    return f"{word}{group.title}"[:200]


def _about(group: DueGroup) -> str:
    since = f"{group.since} times since the last message, {group.count} in all"
    return "\n".join(
        [
            f"{since}, first at {group.first_seen_at:%Y-%m-%d %H:%M:%S}Z",
            f"where: {group.culprit}",
            f"processes: {', '.join(group.processes)}",
            f"more: {NAME} errors show {group.id}",
        ]
    )
