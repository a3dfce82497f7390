"""What platform tells people, and how."""

from dataclasses import dataclass
from typing import Protocol

from app.kernel.product import NAME
from app.kernel.queue import Task
from app.kernel.sentinel import Told

ONE_BY_ONE = 3
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Message:
    """What one recipient is told. The recipient is named by a fingerprint: its address is a secret."""

    recipient: str
    title: str
    body: str


SEND_MESSAGE = Task("platform.send_message", Message, timeout_s=60)


class Recipients(Protocol):
    """Who is told of errors."""

    def names(self) -> list[str]:
        """Return a fingerprint for each."""
        ...

    async def send(self, message: Message) -> None:
        """Send it. Raises NotFound when there is no such recipient any more, Unavailable when it was not accepted."""
        ...


def texts(told: list[Told], environment: str) -> list[tuple[str, str]]:
    """Return titles and bodies: one for each group, or a single digest when many opened at once."""
    if len(told) <= ONE_BY_ONE:
        return [(f"[{environment}] {_opening(group)}", _about(group)) for group in told]
    lines = [f"- {_opening(group)} ({group.since} times): {NAME} errors show {group.id}" for group in told[:_SHOWN]]
    if len(told) > _SHOWN:
        lines.append(f"- and {len(told) - _SHOWN} more: {NAME} errors list")
    return [(f"[{environment}] {len(told)} groups of errors", "\n".join(lines))]


def _opening(group: Told) -> str:
    word = "regressed: " if group.state == "regressed" else ""
    return f"{word}{group.title}"[:200]


def _about(group: Told) -> str:
    since = f"{group.since} times since the last message, {group.count} in all"
    return "\n".join(
        [
            f"{since}, first at {group.first_seen_at:%Y-%m-%d %H:%M:%S}Z",
            f"where: {group.culprit}",
            f"processes: {', '.join(group.processes)}",
            f"more: {NAME} errors show {group.id}",
        ]
    )
