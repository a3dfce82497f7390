"""Do messages arrive?"""

from dataclasses import dataclass

from app.kernel.errors import NotFound, Unavailable
from app.kernel.operations import Kind, operation
from app.modules.platform.domain.messages import Message, Recipients


@dataclass(frozen=True, slots=True)
class Tried:
    """A recipient, and why it did not accept a message; empty when it did."""

    recipient: str
    problem: str


@operation("platform.try_recipients", Kind.MANUAL_COMMAND)
@dataclass(frozen=True, slots=True)
class TryRecipients:
    """Send a message to everybody who is told of errors."""

    recipients: Recipients
    environment: str

    async def __call__(self) -> list[Tried]:
        """Return how it went. Raises NotFound when there is nobody. Each call sends once more."""
        names = self.recipients.names()
        if not names:
            raise NotFound("nobody is told of errors; set sentinel.notify_urls")
        return [await self._try(name) for name in names]

    async def _try(self, name: str) -> Tried:
        try:
            await self.recipients.send(
                Message(name, f"[{self.environment}] a test", "Messages about errors arrive here.")
            )
        except Unavailable as error:
            return Tried(name, str(error))
        return Tried(name, "")
