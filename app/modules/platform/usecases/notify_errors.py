"""Tell people what went wrong."""

from dataclasses import dataclass

from app.kernel.db import Transaction
from app.kernel.operations import Kind, operation
from app.kernel.queue import Queue
from app.kernel.sentinel import Errors
from app.modules.platform.domain import SEND_MESSAGE, Message, Recipients, texts


@operation("platform.notify_errors", Kind.ASYNC_TASK)
@dataclass(frozen=True, slots=True)
class NotifyErrors:
    """Make a message for each recipient of each new or regressed group of errors, or a digest of many."""

    errors: Errors
    recipients: Recipients
    queue: Queue
    environment: str

    async def __call__(self, tx: Transaction) -> int:
        """Return how many groups were told of. Exactly once: the messages are enqueued in the transaction."""
        told = await self.errors.take_due(tx)
        for title, body in texts(told, self.environment):
            for recipient in self.recipients.names():
                await self.queue.enqueue(tx, SEND_MESSAGE, Message(recipient, title, body))
        return len(told)
