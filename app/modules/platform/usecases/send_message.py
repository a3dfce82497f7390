"""Send a message to somebody who is told of errors."""

from dataclasses import dataclass

from app.kernel.errors import NotFound
from app.kernel.operations import Kind, operation
from app.kernel.queue import NeverRetry
from app.modules.platform.domain import Message, Recipients


@operation("platform.send_message", Kind.ASYNC_TASK)
@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send one message to one recipient."""

    recipients: Recipients

    async def __call__(self, message: Message) -> None:
        """Send it. Raises Unavailable to try again, NeverRetry when the recipient was removed from the settings."""
        try:
            await self.recipients.send(message)
        except NotFound as error:
            raise NeverRetry(str(error)) from None
